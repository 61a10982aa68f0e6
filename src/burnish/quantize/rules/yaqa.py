"""YAQA: two-sided rounding with the Kronecker factors of the Fisher matrix, so that the model's distribution is kept.

    L(What) = tr(H_O E H_I E^T),    H_O (x) H_I the Hessian of KL(original || rounded), estimated with drawn labels

Each factor is shrunk toward the identity, H_I also toward the activation covariance. Where the output side does not
help, it is left out: that matrix is rounded one-sidedly, and the table says so.

Source: Model-Preserving Adaptive Rounding (2025, arXiv:2505.22988), which shrinks with a fixed 0.01; here the strength
is measured on windows that no factor has seen (`tuning`), or foretold on held-out folds. Published is sketch B; which
of the two is better depended on width and budget (table on the page), so both are collected and measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from burnish.quantize.rule import HELD_OUT, RoundingRule, Strength
from burnish.quantize.rules.gptq import one_sided

if TYPE_CHECKING:
    from burnish.quantize.factors import Factors, SplitSums
    from burnish.quantize.maths.float_grid import WeightGrid
    from burnish.quantize.method import Rounding


class Yaqa(RoundingRule):
    name: ClassVar[str] = "yaqa"
    summary: ClassVar[str] = "two-sided, best, slowest"
    needs: ClassVar[frozenset[str]] = frozenset({"covariance", "sketch"})
    tokens: ClassVar[int] = 65_536
    refits: ClassVar[int] = 3
    compared: ClassVar[tuple[Strength, ...]] = (
        Strength(input_damping=0.1),  # one-sided
        Strength(0.1, 0.1),
        HELD_OUT,
    )
    baseline: ClassVar[str] = "gptq"

    def flops(self, out_features: int, in_features: int) -> float:
        return out_features * in_features * (out_features + in_features)  # half of every product of the feedback

    def factors(self, sums: SplitSums, grid: WeightGrid, rounding: Rounding) -> Factors:
        return one_sided(sums, grid, rounding) if rounding.strength.is_one_sided else two_sided(sums, grid, rounding)


def two_sided(sums: SplitSums, grid: WeightGrid, rounding: Rounding) -> Factors:
    """H_O and H_I of the sketch, with the strength that is asked for or the best on held-out folds."""
    from burnish.quantize.factors import Factors, squared_steps
    from burnish.quantize.maths.shrinkage import MIXES, Shrinkage, choose_shrinkage

    strength, sketch, order = rounding.strength, rounding.sketch, rounding.order_of(one_sided=False)
    output_steps, input_steps = squared_steps(grid)

    def on_held_out() -> tuple[Shrinkage, Shrinkage]:
        fitting, held_out = sums.fitting(), sums.held_out()
        inputs, outputs = zip(fitting.sketches[sketch], held_out.sketches[sketch], strict=True)
        of_inputs = choose_shrinkage(
            *map(sums.moved, inputs),
            target=sums.moved(fitting.covariance),
            steps=input_steps,
            mixes=MIXES,
            order=order,
        )
        return choose_shrinkage(*map(sums.moved, outputs), steps=output_steps, order=order), of_inputs

    output_choice, input_choice = Shrinkage(strength.output_damping), Shrinkage(strength.input_damping, strength.mix)
    if strength.held_out:
        output_choice, input_choice = sums.chosen(["sketch", sketch, order], [output_steps, input_steps], on_held_out)
    output_factor, input_factor = sums.factors(sketch)
    output_side = output_choice.apply(output_factor)
    return Factors(
        output_side,
        input_choice.apply(input_factor, sums.covariance()),
        kind="one-sided" if output_side is None else "two-sided",
        output_choice=output_choice,
        input_choice=input_choice,
    )


RULE = Yaqa()
