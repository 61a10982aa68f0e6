"""A rounding rule: with which factors matrices are rounded, and what it needs to know of the text for that.

    What = round(W; H_O, H_I),    H_O and H_I the rule's `factors`, see `maths.rounding`

Every rule is a subclass in a file of its own in `rules`. Whatever others would ask a rule for by name stands there as a
fact: what has to be collected, how much text it takes, whether it works a layer at a time. Light, so that commands are
parsed without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from burnish.quantize.factors import Factors, SplitSums
    from burnish.quantize.maths.float_grid import WeightGrid
    from burnish.quantize.method import Rounding
    from burnish.quantize.stage import Quantize

INFINITE = float("inf")


@dataclass(frozen=True)
class Strength:
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

    @property
    def is_one_sided(self) -> bool:
        return self.output_damping == INFINITE and not self.held_out

    def __str__(self) -> str:
        if self.held_out:
            return "held-out"
        covariance = f" with {self.mix:g} of the covariance" if 0 < self.mix < 1 else ""
        if self.output_damping == INFINITE:
            return f"one-sided {self.input_damping:g}{covariance}"
        return f"{self.output_damping:g} and {self.input_damping:g}{covariance}"


HELD_OUT = Strength(held_out=True)


class RoundingRule:
    """Facts and factors of one rule; one that says nothing of its own rounds to nearest.

    Attributes:
        name: what settings call it.
        summary: a few words for the help.
        needs: what is collected from the text: "covariance" of the inputs, and the "sketch" of the Kronecker factors,
            for which gradients go through the whole network.
        tokens: of calibration text, where the settings do not say.
        refits: how often scales are fitted to packed codes where the settings do not say.
        iterations: steps per layer where something is learned and the settings do not say.
        by_block: whether a whole layer at a time is learned from the codes that the rule of `start` gave it.
        by_library: whether somebody else's program rounds the whole model (`quantize.autoround`).
        propagates: whether a layer may be measured on the outputs of layers that are already rounded.
        compared: strengths of shrinkage, from the simplest, that are measured on windows that no factor has seen where
            the user fixes no damping, two-sided ones with each sketch where none is fixed; empty where held-out folds
            decide matrix by matrix.
        baseline: the rule that a curve shows beside it; empty for none.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    tokens: ClassVar[int] = 0
    refits: ClassVar[int] = 0
    iterations: ClassVar[int] = 0
    by_block: ClassVar[bool] = False
    by_library: ClassVar[bool] = False
    propagates: ClassVar[bool] = False
    compared: ClassVar[tuple[Strength, ...]] = ()
    baseline: ClassVar[str] = ""

    def check(self, settings: Quantize) -> None:
        """Raises `SettingsError` for settings that do not fit the rule."""

    def not_by_layer(self, settings: Quantize) -> str:
        """Why it cannot work on a layer at a time, with the rest of the network on disk; empty where it can."""
        if settings.compares:
            return f"{self.name} compares whole models unless damping and sketch are given"
        return ""

    def flops(self, out_features: int, in_features: int) -> float:
        """Of rounding one matrix, beyond looking at every weight once."""
        return 0.0

    def learning_flops(self, settings: Quantize, active_weights: int) -> float:
        """Of learning, for a rule `by_block` or `by_library`."""
        return 0.0

    def factors(self, sums: SplitSums, grid: WeightGrid, rounding: Rounding) -> Factors:
        """What one matrix is rounded with; asked only where something was collected and the matrix saw enough text."""
        from burnish.quantize.factors import Factors

        return Factors()
