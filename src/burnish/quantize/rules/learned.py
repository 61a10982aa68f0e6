"""Learned rounding: block after block, codes and scales move until the block's output is the original's again.

    min over offsets and scales of Σ_t |(block(x_t; What) - y_t) R|² / |y_t|²,   R R^T = H_O / mean diagonal + damping I

x_t is what the rounded layers before the block give, y_t the original's output of the block, H_O the output-side factor
of the block's last matrix, whose output is added to the stream that the block hands on: the gradient of drawn labels is
the same in both places. So the error of a block weighs as much as the predictions are sensitive to it. Every token is
measured by its own size, because the norms that read the stream divide by it: in many models the first token is a
hundred times as large as the others, and would be all that a plain sum of squares sees. It begins at the codes of
another rule and never ends with a larger error than these have.

Source: Optimize Weight Rounding via Signed Gradient Descent (2023, arXiv:2309.05516) for the descent, the bounded
offsets and the order of blocks (`maths.learning`); both weights and the other starts are the project's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from burnish.core.errors import SettingsError
from burnish.quantize.rule import RoundingRule

BATCH_TOKENS = 1024
"""That a step of the descent looks at."""

if TYPE_CHECKING:
    from burnish.quantize.stage import Quantize


class Learned(RoundingRule):
    name: ClassVar[str] = "learned"
    summary: ClassVar[str] = "codes and scales learned block by block from another rule's start"
    needs: ClassVar[frozenset[str]] = frozenset({"covariance", "sketch"})
    tokens: ClassVar[int] = 8_192
    iterations: ClassVar[int] = 40  # what has been measured, see the page
    by_block: ClassVar[bool] = True

    def check(self, settings: Quantize) -> None:
        schemes = [settings.scheme, *(override.scheme for override in settings.overrides.values())]
        if "fp8-dynamic" in schemes:
            raise SettingsError(
                "method learned moves integers by one step, and fp8-dynamic has none", fix="use scheme: int"
            )
        if settings.curve:
            raise SettingsError(
                "curve is true, but learned rounding is not measured against tokens", fix="leave curve out"
            )

    def learning_flops(self, settings: Quantize, active_weights: int) -> float:
        """Of the descent: forward, and backward to the weights and to the inputs, and the error before and after."""
        return 6 * active_weights * BATCH_TOKENS * settings.num_iterations + 4 * active_weights * settings.num_tokens


RULE = Learned()
