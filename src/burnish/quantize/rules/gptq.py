"""GPTQ (LDLQ): one-sided rounding, H_O = I and H_I the covariance of the layer's inputs, damped.

    L(What) = tr(E H_I E^T),    H_I = Σ_t x_t^T x_t / mean diagonal + damping I

Source: GPTQ (2022, arXiv:2210.17323); QuIP (2023, arXiv:2307.13304) for LDLQ. Where no damping is given, ours is chosen
for every matrix on held-out folds (`maths.shrinkage`) instead of being 0.01 for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from burnish.quantize.rule import RoundingRule

if TYPE_CHECKING:
    from burnish.quantize.factors import Factors, SplitSums
    from burnish.quantize.maths.float_grid import WeightGrid
    from burnish.quantize.method import Rounding


class Gptq(RoundingRule):
    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = "one-sided, seconds to minutes"
    needs: ClassVar[frozenset[str]] = frozenset({"covariance"})
    tokens: ClassVar[int] = 16_384
    refits: ClassVar[int] = 1
    propagates: ClassVar[bool] = True

    def flops(self, out_features: int, in_features: int) -> float:
        return out_features * in_features * in_features  # half of every product of the feedback

    def factors(self, sums: SplitSums, grid: WeightGrid, rounding: Rounding) -> Factors:
        return one_sided(sums, grid, rounding)


def one_sided(sums: SplitSums, grid: WeightGrid, rounding: Rounding) -> Factors:
    """H_I alone, with the damping that is asked for or the best on held-out folds."""
    from burnish.quantize.factors import Factors, squared_steps
    from burnish.quantize.maths.shrinkage import DAMPINGS, Shrinkage, choose_shrinkage

    order, steps = rounding.order_of(one_sided=True), squared_steps(grid)[1]

    def on_held_out() -> Shrinkage:
        parts = sums.fitting().covariance, sums.held_out().covariance
        return choose_shrinkage(*map(sums.moved, parts), steps=steps, dampings=DAMPINGS, order=order)

    choice = Shrinkage(rounding.strength.input_damping)
    if rounding.strength.held_out:
        choice = sums.chosen(["covariance", order], [steps], on_held_out)
    return Factors(input_side=choice.apply(sums.covariance()), kind="one-sided", input_choice=choice)


RULE = Gptq()
