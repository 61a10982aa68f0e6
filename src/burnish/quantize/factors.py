"""With which factors one matrix is rounded: what was collected of it, shrunk by a rule.

A `Rule` says how: by itself for every matrix and side, on held-out folds of the calibration text, or with one strength
for all. Which rule is used is decided by `tuning`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.arch import MatrixView
from burnish.quantize.maths.float_grid import WeightGrid
from burnish.quantize.maths.shrinkage import DAMPINGS, MIXES, Shrinkage, choose_shrinkage
from burnish.quantize.statistics import Statistics, Sums

if TYPE_CHECKING:
    from burnish.quantize.method import Rounding

INFINITE = float("inf")
IDENTITY = Shrinkage(INFINITE)
BORROWED_DAMPING = 0.01


@dataclass(frozen=True)
class Rule:
    """How strongly the factors of all matrices are shrunk.

    Attributes:
        output_damping: multiple of the mean diagonal that is added to H_O; infinity rounds one-sidedly.
        input_damping: likewise for H_I.
        mix: share of the activation covariance in H_I.
        held_out: choose all of this per matrix and side on held-out folds instead.
    """

    output_damping: float = INFINITE
    input_damping: float = 0.01
    mix: float = 0.0
    held_out: bool = False

    def __str__(self) -> str:
        if self.held_out:
            return "held-out"
        covariance = f" with {self.mix:g} of the covariance" if 0 < self.mix < 1 else ""
        if self.output_damping == INFINITE:
            return f"one-sided {self.input_damping:g}{covariance}"
        return f"{self.output_damping:g} and {self.input_damping:g}{covariance}"


HELD_OUT = Rule(held_out=True)


@dataclass
class Factors:
    """What one matrix is rounded with.

    Attributes:
        output_side, input_side: None for the identity.
        covariance: of the whole text, for the one-sided proxy in the table; None where nothing was collected.
        two_sided: (H_O, H_I) of the whole text without shrinkage, for the two-sided proxy; None without a sketch.
        kind: "two-sided", "one-sided", "one-sided, borrowed" or "nearest".
        output_choice, input_choice: the shrinkage behind them.
        num_tokens: that the matrix saw.
    """

    output_side: Tensor | None = None
    input_side: Tensor | None = None
    covariance: Tensor | None = None
    two_sided: tuple[Tensor, Tensor] | None = None
    kind: str = "nearest"
    output_choice: Shrinkage = IDENTITY
    input_choice: Shrinkage = IDENTITY
    num_tokens: int = 0


class MatrixSums:
    """The sums of one matrix: over all folds, and apart for fitting and holding out.

    Those of a wide layer are large, so the parts are read when they are asked for and not kept.
    """

    def __init__(self, statistics: Statistics, view: MatrixView, every_view: Sequence[MatrixView]) -> None:
        self.statistics, self.view, self.every_view = statistics, view, every_view
        self.all = statistics.read(view, statistics.folds)

    def fitting(self) -> Sums:
        return self.statistics.read(self.view, self.statistics.fitting)

    def held_out(self) -> Sums:
        return self.statistics.read(self.view, self.statistics.held_out)

    def covariance(self) -> Tensor:
        assert self.all.covariance is not None
        return self.all.covariance.to(self.view.tensor.device)

    def importance(self) -> Tensor:
        return self.covariance().diagonal()

    def borrowed(self) -> Tensor:
        """Covariance over all experts of this role in this layer."""
        siblings = [v for v in self.every_view if v.layer == self.view.layer and v.role == self.view.role]
        covariances = [self.statistics.read(sibling, self.statistics.folds).covariance for sibling in siblings]
        return torch.stack([c for c in covariances if c is not None]).sum(0).to(self.view.tensor.device)


def choose_factors(view: MatrixView, rounding: Rounding, sums: MatrixSums | None, grid: WeightGrid) -> Factors:
    """The factors of one matrix, shrunk by the rounding's rule."""
    if sums is None or rounding.method == "rtn":
        return Factors()
    device = view.tensor.device
    dtype = torch.float64 if view.tensor.dtype is torch.float64 else torch.float32
    rule = rounding.rule
    num_tokens = sums.all.num_tokens
    covariance = sums.covariance().to(dtype)
    if view.expert is not None and num_tokens < rounding.min_expert_tokens:
        covariance = sums.borrowed().to(dtype)
        if not covariance.any():
            return Factors(num_tokens=num_tokens)
        choice = Shrinkage(BORROWED_DAMPING)
        return Factors(
            input_side=choice.apply(covariance),
            covariance=covariance,
            kind="one-sided, borrowed",
            input_choice=choice,
            num_tokens=num_tokens,
        )

    output_steps, input_steps = squared_steps(grid)
    one_sided = rounding.method == "gptq" or (rule.output_damping == INFINITE and not rule.held_out)
    if one_sided:
        choice = Shrinkage(rule.input_damping)
        if rule.held_out:
            choice = choose_shrinkage(
                moved(sums.fitting().covariance, device, dtype),
                moved(sums.held_out().covariance, device, dtype),
                steps=input_steps,
                dampings=DAMPINGS,
                order=rounding.order_of(one_sided=True),
            )
        output_side, output_choice, input_choice = None, IDENTITY, choice
        input_side = choice.apply(covariance)
    else:
        input_factor, output_factor = (moved(side, device, dtype) for side in sums.all.sketches[rounding.sketch])
        output_choice = Shrinkage(rule.output_damping)
        input_choice = Shrinkage(rule.input_damping, rule.mix)
        if rule.held_out:
            order = rounding.order_of(one_sided=False)
            fitting, held_out = sums.fitting(), sums.held_out()
            fitting_sides = [moved(side, device, dtype) for side in fitting.sketches[rounding.sketch]]
            held_out_sides = [moved(side, device, dtype) for side in held_out.sketches[rounding.sketch]]
            input_choice = choose_shrinkage(
                fitting_sides[0],
                held_out_sides[0],
                target=moved(fitting.covariance, device, dtype),
                steps=input_steps,
                mixes=MIXES,
                order=order,
            )
            output_choice = choose_shrinkage(fitting_sides[1], held_out_sides[1], steps=output_steps, order=order)
        output_side = output_choice.apply(output_factor)
        input_side = input_choice.apply(input_factor, covariance)
    two_sided = None
    if rounding.sketch in sums.all.sketches:
        input_factor, output_factor = (moved(side, device, dtype) for side in sums.all.sketches[rounding.sketch])
        two_sided = (output_factor, input_factor)
    return Factors(
        output_side,
        input_side,
        covariance,
        two_sided,
        "one-sided" if output_side is None else "two-sided",
        output_choice,
        input_choice,
        num_tokens,
    )


def moved(matrix: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    assert matrix is not None
    return matrix.to(device, dtype)


def squared_steps(grid: WeightGrid) -> tuple[Float[Tensor, " out"], Float[Tensor, " in"]]:
    """Mean squared step of every row and of every column, each with mean 1."""
    squared = grid.scale.square()
    rows = squared.mean(dim=1)
    columns = squared.mean(dim=0).repeat_interleave(grid.group_size)
    return rows / rows.mean(), columns / columns.mean()
