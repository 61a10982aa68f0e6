"""With which factors one matrix is rounded: what was collected of it, shrunk as the rounding's rule and strength say.

Experts that saw too few tokens borrow: their input side is the covariance of all experts of that role in the layer,
they have no output side, and where even those saw nothing, rounding is to nearest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.arch import MatrixView
from burnish.calibrate.statistics import MatrixSums, Statistics
from burnish.quantize.maths.float_grid import WeightGrid
from burnish.quantize.maths.shrinkage import Shrinkage

if TYPE_CHECKING:
    from burnish.quantize.method import Rounding

Choice = TypeVar("Choice")

IDENTITY = Shrinkage(math.inf)
BORROWED_DAMPING = 0.01


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

    @property
    def input_factor(self) -> Float[Tensor, "in in"] | None:
        """The best that is known of the inputs: weighted by gradients where there are any, without shrinkage."""
        return self.covariance if self.two_sided is None else self.two_sided[1]


class SplitSums:
    """The sums of one matrix: over all folds, and apart for fitting and holding out.

    Those of a wide layer are large, so the parts are read when they are asked for and not kept.
    """

    def __init__(self, statistics: Statistics, view: MatrixView, every_view: Sequence[MatrixView]) -> None:
        self.statistics, self.view, self.every_view = statistics, view, every_view
        self.all = statistics.read(view, statistics.folds)

    def fitting(self) -> MatrixSums:
        return self.statistics.read(self.view, self.statistics.fitting)

    def held_out(self) -> MatrixSums:
        return self.statistics.read(self.view, self.statistics.held_out)

    def chosen(self, of: Sequence[Hashable], steps: Sequence[Tensor], choose: Callable[[], Choice]) -> Choice:
        """What folds choose for this matrix, which is found out once: rounding asks for it again in every whole model
        that is compared, at every width whose steps have the same proportions, and at last.

        Args:
            of: what the choice depends on beside the sums and the steps.
            steps: squared steps of the grid, see `squared_steps`.
            choose: finds it out.
        """
        proportions = hashlib.sha256(b"".join(side.cpu().numpy().tobytes() for side in steps)).digest()
        key, known = (self.view.name, *of, proportions), self.statistics.choices
        if key not in known:
            known[key] = choose()
        return known[key]

    def moved(self, matrix: Tensor | None) -> Tensor:
        """On the weight's device, in the dtype of the computation."""
        assert matrix is not None
        weight = self.view.tensor
        return matrix.to(weight.device, torch.float64 if weight.dtype is torch.float64 else torch.float32)

    def covariance(self) -> Float[Tensor, "in in"]:
        return self.moved(self.all.covariance)

    def factors(self, sketch: str) -> tuple[Float[Tensor, "out out"], Float[Tensor, "in in"]]:
        """H_O and H_I of the whole text, without shrinkage."""
        input_side, output_side = self.all.sketches[sketch]
        return self.moved(output_side), self.moved(input_side)

    def borrowed(self) -> Float[Tensor, "in in"]:
        """Covariance over all experts of this role in this layer."""
        siblings = [v for v in self.every_view if v.layer == self.view.layer and v.role == self.view.role]
        covariances = [self.statistics.read(sibling, self.statistics.folds).covariance for sibling in siblings]
        return self.moved(torch.stack([c for c in covariances if c is not None]).sum(0))


def choose_factors(view: MatrixView, rounding: Rounding, sums: SplitSums | None, grid: WeightGrid) -> Factors:
    """The factors of one matrix: by the rounding's rule, or borrowed from the layer's other experts."""
    if sums is None:
        return Factors()
    if view.expert is not None and sums.all.num_tokens < rounding.min_expert_tokens:
        covariance = sums.borrowed()
        if not covariance.any():
            return Factors(num_tokens=sums.all.num_tokens)
        found = Factors()
        if rounding.rule.needs:
            choice = Shrinkage(BORROWED_DAMPING)
            found = Factors(input_side=choice.apply(covariance), kind="one-sided, borrowed", input_choice=choice)
        return replace(found, covariance=covariance, num_tokens=sums.all.num_tokens)
    known = known_factors(sums, rounding.sketch)
    chosen = rounding.rule.factors(sums, grid, rounding)
    return replace(chosen, covariance=known.covariance, two_sided=known.two_sided, num_tokens=known.num_tokens)


def known_factors(sums: SplitSums, sketch: str) -> Factors:
    """What the whole text says of a matrix, without a choice of sides to round with."""
    return Factors(
        covariance=sums.covariance(),
        two_sided=sums.factors(sketch) if sketch in sums.all.sketches else None,
        num_tokens=sums.all.num_tokens,
    )


def squared_steps(grid: WeightGrid) -> tuple[Float[Tensor, " out"], Float[Tensor, " in"]]:
    """Mean squared step of every row and of every column, each with mean 1."""
    squared = grid.scale.square()
    rows = squared.mean(dim=1)
    columns = squared.mean(dim=0).repeat_interleave(grid.group_size)
    return rows / rows.mean(), columns / columns.mean()
