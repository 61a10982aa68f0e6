"""How the embedding and the head are rounded: column after column like GPTQ, each error made good in the row's rest.

What a row's error costs is the text's matter (`calibrate.vocabulary`); a rule that takes no text rounds to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from burnish.arch import MatrixView
from burnish.calibrate.vocabulary import VocabularyStatistics
from burnish.quantize.factors import SplitSums
from burnish.quantize.maths.allocation import sensitivity_of_rows
from burnish.quantize.method import Rounding, rounded_batch
from burnish.quantize.rules import RULES
from burnish.quantize.scheme import Scheme

if TYPE_CHECKING:
    from burnish.quantize.stage import Quantize

TOKENS = 8_192
"""Of the calibration text that go through the network for these matrices by themselves."""
REFITS = 3
"""Of scales, where the settings do not say: it takes seconds, and SmolLM2's embedding at 4 bits came a tenth nearer to
the original than with one, on windows of the calibration text."""


@dataclass(frozen=True)
class VocabularyRounding:
    """Rounding of these matrices.

    Attributes:
        statistics: None where there is no text.
        rounding: but for the scheme.
    """

    statistics: VocabularyStatistics | None
    rounding: Rounding

    @classmethod
    def of(cls, settings: Quantize, rounding: Rounding, statistics: VocabularyStatistics | None) -> VocabularyRounding:
        """Beside decoder layers that are rounded so: one-sided where their rule takes text."""
        rule = RULES["gptq" if RULES[settings.method].needs and statistics else "rtn"]
        refit = settings.refit if settings.refit is not None else REFITS if rule.needs else 0
        return cls(statistics, replace(rounding, rule=rule, refit=refit if statistics else 0, overrides={}))

    def under(self, scheme: Scheme) -> Rounding:
        return replace(self.rounding, scheme=scheme)

    def values(self, view: MatrixView, scheme: Scheme) -> Tensor:
        """What a matrix becomes, as it will be stored."""
        sums = None if self.statistics is None else SplitSums(self.statistics, view, [view])
        ((codes, grid, _),) = rounded_batch([view], self.under(scheme), [sums])
        return grid.values(codes).to(self.rounding.scale_dtype)

    def cost(self, view: MatrixView, values: Tensor) -> float:
        """Ω of that, in nats per token."""
        assert self.statistics is not None, "what it costs is told by text"
        error, folds = view.tensor - values.to(view.tensor.dtype), self.statistics.folds
        uses, num_tokens = self.statistics.uses(view, folds), self.statistics.num_tokens(folds)
        return sum(sensitivity_of_rows(error, use.rows.to(error), use.columns.to(error), num_tokens) for use in uses)
