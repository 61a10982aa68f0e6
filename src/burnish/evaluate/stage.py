"""`Evaluate`: the settings of a measurement.

    evaluation = burnish.Evaluate(num_windows=20)(quantized, reference=original)
    evaluation.metrics["perplexity"]      # {"value": 21.5, "low": 18.9, "high": 24.6, "unit": ""}

It makes no checkpoint, so it is not a stage; a recipe's `evaluate:` takes the same fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from burnish.core.errors import SettingsError
from burnish.core.settings import VOLATILE, CheckpointRef, DataRef, Device, Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from burnish.core.checkpoint import Model
    from burnish.core.kinds import Plan
    from burnish.core.ledger import Ledger
    from burnish.evaluate.evaluation import Evaluation


class Evaluate(Settings):
    """Measures a causal language model: quality on a text, divergence from a reference, speed, memory, sizes."""

    text: DataRef = Field(
        default="wikitext2-test", description="text to measure on: a shipped name, a file or a directory"
    )
    num_windows: int = Field(default=20, ge=1, description="windows of text")
    context: int = Field(default=1024, ge=2, description="tokens per window")
    max_chars: int | None = Field(default=400_000, ge=1, description="characters of the text that are used")
    reference: CheckpointRef | None = Field(default=None, description="checkpoint to measure the divergence from")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="dtype to compute in; auto is float32 on a CPU and bfloat16 on a GPU"
    )
    speed: bool = Field(default=True, description="measure tokens per second and memory as well")
    prompt_tokens: int = Field(default=512, ge=1, description="tokens of the prompt in the speed measurement")
    decode_tokens: int = Field(default=32, ge=1, description="tokens generated in the speed measurement")
    repeats: int = Field(default=3, ge=1, description="repeats of the speed measurement")
    device: Device = Field(default="auto", description="auto, cpu, cuda or cuda:N", json_schema_extra=VOLATILE)

    def __call__(
        self,
        model: Model,
        reference: Model | str | Path | None = None,
        *,
        text: Sequence[str] | None = None,
        ledger: Ledger | None = None,
        progress: bool = False,
    ) -> Evaluation:
        """Measures `model`.

        Args:
            model: what to measure. It is left as it is; to compute in another dtype, a copy is made or read.
            reference: what to measure the divergence from; the setting of that name where not given.
            text: texts in place of the setting `text`.
            ledger: where an earlier measurement of this checkpoint under this protocol is taken from, if there is one.
            progress: whether to show bars.

        Raises:
            DataError: the text is missing or too short.
            CheckpointError: no tokenizer, or a reference with another vocabulary.
            SettingsError: windows longer than the model's context.
            NumericalError: a logit is not finite.
        """
        from burnish.core.checkpoint import load
        from burnish.evaluate.measure import measure

        against = reference if reference is not None else self.reference
        if isinstance(against, str | Path):
            against = load(against)
        return measure(self, model, against, text=text, ledger=ledger, progress=progress)

    def preflight(self, start: Model, before: Plan) -> None:
        """Whether the text fills the windows, and the start's positions hold them."""
        from burnish.data.attempt import try_window
        from burnish.evaluate.measure import longest_context

        self.check_context(longest_context(start))
        limits = {"num_windows": self.num_windows, "max_chars": self.max_chars}
        try_window(start.tokenizer, self.text, self.context, before.config, **limits, where="text")

    def check_context(self, longest: int | None) -> None:
        """Refuses windows that the model's position range does not hold."""
        if longest is None:
            return
        if self.context > longest:
            raise SettingsError(
                f"context is {self.context:,}, but the model's positions end at {longest:,}", fix="lower context"
            )
        if self.speed and self.prompt_tokens + self.decode_tokens > longest:
            raise SettingsError(
                f"prompt_tokens and decode_tokens add up to {self.prompt_tokens + self.decode_tokens:,}, but the "
                f"model's positions end at {longest:,}",
                fix="lower prompt_tokens",
            )
