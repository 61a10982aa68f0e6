"""Training under a bound: the loss on other data stays at or below a level while the optimizer minimises its own loss.

    gradient    mean gradient of the step  +  max(0, y + beta e) * mean gradient on a batch of the other data
    e           running mean of (loss on the other data - level) over the steps before
    y           <- max(0, y + beta c), every `every` steps, c the mean violation over their batches

A level may be said as a rise over the loss at the start. Then each batch is compared with its own loss at the start,
which has the same mean as one level for all and far less noise: which rows a batch has drops out.

The outer loop is that of the augmented Lagrangian method (`burnish.optim.maths.augmented`); the recipe's optimizer
takes the steps. A product of two estimates on one batch would be biased: e knows only batches of earlier steps, which
are independent of the batch whose gradient it weighs. It lags behind by some ten steps. Which rows a step sees is a
function of its number, and what the steps hand on is kept in the states of the training, so a resumed one ends with
the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from burnish.core.errors import SettingsError
from burnish.data.packing import IGNORED, PackedRows
from burnish.train.losses import Batch, LossFn, causal_lm_loss, detached
from burnish.train.sampler import Sampler

MEMORY = 0.9
"""Weight of the past in the running mean of the violation."""
OWN_ORDER = 7919
"""Added to the seed, so that the order of these rows is not that of the data."""


@dataclass(frozen=True)
class Bounded:
    """What is bounded, and how.

    Attributes:
        rows: of the other data, trained on.
        held_out: rows of it to measure on.
        level: the largest mean loss, in nats a token; None where `rise` says it.
        rise: how much larger than at the start the mean loss may be, in nats a token.
        penalty: beta, in units of the training loss a nat^2.
        batch_size: rows a step.
        micro_batch_size: rows per forward pass; None is all.
        every: steps between two changes of the multiplier.
        seed: of the order of rows.
        loss_fn: the next-token loss of the model that is trained.
    """

    rows: PackedRows
    held_out: PackedRows
    level: float | None
    rise: float | None
    penalty: float
    batch_size: int
    micro_batch_size: int | None
    every: int
    seed: int
    loss_fn: LossFn = causal_lm_loss

    @property
    def key(self) -> str:
        """What the trained weights depend on."""
        limit = self.level if self.rise is None else f"+{self.rise}"
        return f"{self.rows.hash} {limit} {self.penalty} {self.batch_size} {self.every}"


@dataclass
class _State:
    """What steps hand on.

    Attributes:
        before: mean loss of the held-out rows at the start.
        first: of rows by number, (sum of the losses, tokens that count) at the start, where a rise is bounded.
    """

    before: float = math.nan
    first: dict[str, list[float]] = field(default_factory=dict)
    multiplier: float = 0.0
    estimate: float | None = None
    violations: list[float] = field(default_factory=list)
    tokens: int = 0
    table: list[dict[str, Any]] = field(default_factory=list)


class Bound:
    """The bound of one training, with its multiplier.

    Attributes:
        bounded: see there.
    """

    def __init__(self, bounded: Bounded) -> None:
        self.bounded = bounded
        self._sampler = Sampler(len(bounded.rows), bounded.batch_size, bounded.seed + OWN_ORDER)
        self._now = _State()

    @property
    def pull(self) -> float:
        """The weight of the bound's gradient: max(0, y + beta e)."""
        return max(0.0, self._now.multiplier + self.bounded.penalty * (self._now.estimate or 0.0))

    @property
    def table(self) -> list[dict[str, Any]]:
        """A row for every change of the multiplier."""
        return self._now.table

    @property
    def tokens(self) -> int:
        """Input tokens of the other data so far."""
        return self._now.tokens

    @property
    def level(self) -> float:
        """The largest mean loss of the held-out rows."""
        bounded = self.bounded
        if bounded.rise is not None:
            return self._now.before + bounded.rise
        assert bounded.level is not None, "the settings have one of both"
        return bounded.level

    def start(self, steps: int, held_out: float, loss_of: Callable[[Batch], tuple[float, float]]) -> None:
        """Before the first step: what the model is like now.

        Args:
            steps: of the training.
            held_out: mean loss of the held-out rows.
            loss_of: (sum of the losses, tokens that count) of a batch.
        """
        self._now.before = held_out
        if self.bounded.rise is not None:
            rows = sorted({row for step in range(steps) for row in self._sampler.rows(step)})
            self._now.first = {str(row): list(loss_of(self.bounded.rows.take([row]))) for row in rows}

    def add_gradient(
        self, step: int, weight: float, forward: nn.Module, put: Callable[[Batch], dict[str, Tensor]], autocast: Any
    ) -> float:
        """Adds the bound's gradient, times `weight`, to what the step has.

        Args:
            step: its number, from 0.
            weight: what the gradients of the step will be divided by.
            forward: the model.
            put: a batch to the model's device.
            autocast: () -> context of the forward pass.

        Returns:
            The mean loss of the batch less the level.
        """
        bounded, pull = self.bounded, self.pull
        rows = self._sampler.rows(step)
        micro = bounded.micro_batch_size or len(rows)
        batches = [bounded.rows.take(rows[first : first + micro]) for first in range(0, len(rows), micro)]
        counted = sum(int((batch["targets"] != IGNORED).sum()) for batch in batches)
        total = 0.0
        for number, batch in enumerate(batches):
            torch.manual_seed(((bounded.seed + OWN_ORDER) * 1_000_003 + step) * 1009 + number)
            with torch.set_grad_enabled(pull > 0), autocast():
                loss = bounded.loss_fn(forward, put(batch))
            if pull:
                (loss.total * (pull * weight / counted)).backward()
            total += float(detached(loss, [])[0])
        return total / counted - self._limit(rows)

    def _limit(self, rows: list[int]) -> float:
        """The largest mean loss of these rows."""
        bounded = self.bounded
        if bounded.rise is None:
            return self.level
        sums = [self._now.first[str(row)] for row in rows]
        return sum(total for total, _ in sums) / sum(tokens for _, tokens in sums) + bounded.rise

    def observe(self, step: int, violation: float) -> None:
        """Takes note of what a step's batch has said, and moves the multiplier where it is due."""
        now, bounded = self._now, self.bounded
        now.tokens += bounded.batch_size * bounded.rows.length
        if math.isfinite(violation):
            past = violation if now.estimate is None else now.estimate
            now.estimate = MEMORY * past + (1 - MEMORY) * violation
            now.violations.append(violation)
        if (step + 1) % bounded.every == 0 and now.violations:
            self._move(step + 1)

    def _move(self, done: int) -> None:
        """The outer step; its row."""
        now, bounded = self._now, self.bounded
        mean = sum(now.violations) / len(now.violations)
        now.multiplier = max(0.0, now.multiplier + bounded.penalty * mean)
        now.table.append(
            {
                "step": done,
                "bound_loss": mean + self.level,
                "loss_bound": self.level,
                "violation": max(0.0, mean),
                "multiplier": now.multiplier,
                "bound_tokens": now.tokens,
            }
        )
        now.violations = []

    # -- kept with the states ----------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self._now)

    def go_on(self, state: dict[str, Any], steps: int) -> None:
        """From a state, to so many steps in all.

        Raises:
            SettingsError: more steps, or larger batches, than the losses at the start were taken for.
        """
        self._now = _State(**state)
        if self.bounded.rise is None:
            return
        wanted = {str(row) for step in range(steps) for row in self._sampler.rows(step)}
        if lacking := wanted - set(self._now.first):
            raise SettingsError(
                f"the losses at the start of {len(lacking)} rows of bound_data are not known, for the training was "
                "begun with fewer steps",
                where="bound_rise",
                fix="keep steps, or pass --restart",
            )

    def verdict(self, after: float) -> dict[str, Any]:
        """What held-out rows of the bounded data say: their loss at the start and the end, and whether it is met."""
        return {
            "held_out_before": self._now.before,
            "held_out_after": after,
            "level": self.level,
            "violation": max(0.0, after - self.level),
            "multiplier": self.pull,
            "status": "met" if after <= self.level else "broken",
            "bound_tokens": self.tokens,
        }
