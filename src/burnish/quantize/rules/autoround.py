"""AutoRound: its authors' own program rounds, on our windows; codes and scales come back and are packed as ever.

    min over offsets, and over clips of the scales, of Σ_t |block(x_t; What) - y_t|²,    x_t behind the rounded blocks

Source: Optimize Weight Rounding via Signed Gradient Descent (2023, arXiv:2309.05516). `learned` is our own of its kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from burnish.core.errors import SettingsError
from burnish.quantize.rule import RoundingRule

if TYPE_CHECKING:
    from burnish.quantize.stage import Quantize

NOT_WITH = ("target", "curve", "refit", "scale_search", "damping", "head_bits", "quantize_embedding")
"""What asks our own rounding to do something."""


class AutoRound(RoundingRule):
    name: ClassVar[str] = "autoround"
    summary: ClassVar[str] = "AutoRound's own program (extra autoround)"
    needs: ClassVar[frozenset[str]] = frozenset({"covariance"})  # for the table; it collects what it needs by itself
    tokens: ClassVar[int] = 8_192
    iterations: ClassVar[int] = 200  # the library's own
    by_library: ClassVar[bool] = True

    def check(self, settings: Quantize) -> None:
        schemes = [settings.scheme, *(override.scheme for override in settings.overrides.values())]
        if set(schemes) != {"int"}:
            raise SettingsError("method autoround makes packed integers alone", where="scheme", fix="use scheme: int")
        for name in NOT_WITH:
            if getattr(settings, name):
                raise SettingsError(
                    f"method autoround rounds by itself, so that {name} means nothing to it",
                    where=name,
                    fix=f"leave {name} out, or use method: learned, which does the like",
                )

    def not_by_layer(self, settings: Quantize) -> str:
        return "autoround takes the whole model"

    def learning_flops(self, settings: Quantize, active_weights: int) -> float:
        """As those of our own descent."""
        from burnish.quantize.rules.learned import RULE as LEARNED

        return LEARNED.learning_flops(settings, active_weights)


RULE = AutoRound()
