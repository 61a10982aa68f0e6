"""Short-ARC: shorter answers as long as accuracy holds, by a reward that no short wrong answer can win.

For a group of rollouts of one prompt, c correct or not, l tokens, p = mean c:

    L_ref  = the shortest correct answer (or a quantile of the correct ones)
    s_i    = clip((l_i - L_ref) / S, 0, 1)            S = L_ref, or a number of tokens
    w(p)   = clip((p - p_min) / (1 - p_min), 0, 1)    no pressure on prompts that are not yet mastered
    r_i    = c_i (1 - alpha w(p) s_i)                 alpha < 1, so every right answer beats every wrong one

and a controller of alpha that treats accuracy as a constraint. Advantages are r_i minus the group's mean: divided by
the group's standard deviation, which in a group without a wrong answer is length alone, they would not depend on alpha.

Source: ours. Of "Short-ARC: Adaptive Reasoning Control to Prevent LLM Overthinking" (submitted for ICLR 2026) only
the title and a sentence could be found: adaptive reasoning control by GRPO. The parts are known ones: the gate by solve
rate (LASER-D, ALP), the controlled price (A-DLP), correctness as a factor (Arora and Zanette).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

HIGHEST_ALPHA = 0.9
"""Below 1, or a long right answer would be worth no more than a wrong one."""


def short_arc(
    correct: Float[Tensor, "groups rollouts"],
    length: Float[Tensor, "groups rollouts"],
    alpha: float,
    p_min: float = 0.5,
    scale: float | None = None,
    quantile: float = 0.0,
) -> Float[Tensor, "groups rollouts"]:
    """r of every rollout.

    Args:
        correct: c.
        length: l, tokens.
        alpha: how much of the reward a long answer loses, 0 to below 1.
        p_min: solve rate from which there is pressure, 0 to below 1.
        scale: S, tokens; None for L_ref, a length relative to the shortest answer that is right.
        quantile: of the correct lengths that is L_ref; 0 for the shortest.
    """
    reference = reference_length(correct, length, quantile)
    span = reference if scale is None else torch.full_like(reference, scale)
    excess = ((length - reference) / span).clamp(0, 1)
    return correct * (1 - alpha * gate(correct.mean(dim=1, keepdim=True), p_min) * excess)


def gate(rate: Float[Tensor, "groups 1"], p_min: float) -> Float[Tensor, "groups 1"]:
    """w(p), from 0 at p_min to 1 where all rollouts are correct."""
    return ((rate - p_min) / (1 - p_min)).clamp(0, 1)


def reference_length(
    correct: Float[Tensor, "groups rollouts"], length: Float[Tensor, "groups rollouts"], quantile: float = 0.0
) -> Float[Tensor, "groups 1"]:
    """L_ref; the shortest of all where none is correct, which no reward then depends on. At least one token."""
    among = torch.where(correct > 0, length, torch.nan)
    found = among.nanquantile(quantile, dim=1, keepdim=True)
    return torch.where(found.isnan(), length.amin(dim=1, keepdim=True), found).clamp(min=1)


def redundancy(
    correct: Float[Tensor, "groups rollouts"], length: Float[Tensor, "groups rollouts"]
) -> Float[Tensor, ""]:
    """Share of the correct answers' tokens that the shortest correct answer of their group does without."""
    known = (correct.sum(dim=1, keepdim=True) > 0) * correct
    total = (known * length).sum()
    return (known * (length - reference_length(correct, length))).sum() / total.clamp(min=1)


@dataclass
class Controller:
    """Moves alpha so that accuracy stays at its target or above.

        alpha <- clip(alpha + eta clip((EMA(accuracy) - target) / tolerance, -brake, 1), 0, alpha_max)

    The gap is measured in tolerances, not in accuracy: a gap can never exceed 1 - target, and a step in proportion to
    it hardly moves when the start is already good. Below the target the step grows up to `brake` times as large, so
    pressure is let go of sooner than it was built up. At the bounds nothing is wound up: the state is alpha itself.

    Attributes:
        target: accuracy to hold; the start's own minus the tolerance.
        tolerance: what accuracy may lose.
        alpha: now.
        eta: largest step up.
        brake: largest step down, in units of eta.
        memory: of the running mean of accuracy, per update; its start is not biased towards 0.
        alpha_max: below 1.
        mean: the running mean, before its weights are made to sum to 1.
        updates: so far.
    """

    target: float
    tolerance: float = 0.01
    alpha: float = 0.5
    eta: float = 0.02
    brake: float = 4.0
    memory: float = 0.9
    alpha_max: float = HIGHEST_ALPHA
    mean: float = field(default=0.0)
    updates: int = field(default=0)

    @property
    def accuracy(self) -> float:
        """The running mean; NaN before the first update."""
        return self.mean / (1 - self.memory**self.updates) if self.updates else math.nan

    def update(self, accuracy: float) -> float:
        """Hears of an update's accuracy and gives the next alpha."""
        self.updates += 1
        self.mean = self.memory * self.mean + (1 - self.memory) * accuracy
        gap = (self.accuracy - self.target) / self.tolerance
        self.alpha = min(max(self.alpha + self.eta * min(max(gap, -self.brake), 1.0), 0.0), self.alpha_max)
        return self.alpha

    def state(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return asdict(self)
