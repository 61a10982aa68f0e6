"""`Evaluate`: the settings of a measurement.

    evaluation = burnish.Evaluate(num_windows=20)(quantized, reference=original)
    evaluation.metrics["perplexity"]      # {"value": 21.5, "low": 18.9, "high": 24.6, "unit": ""}

It makes no checkpoint, so it is not a stage; a recipe's `evaluate:` takes the same fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from burnish.core.errors import SettingsError
from burnish.core.settings import VOLATILE, CheckpointRef, DataRef, Device, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from burnish.core.checkpoint import Model
    from burnish.core.kinds import Plan
    from burnish.core.ledger import Ledger
    from burnish.evaluate.evaluation import Evaluation

    Speeds = dict[str, Evaluation]


class Evaluate(Settings):
    """Measures a causal language model: quality on a text, divergence from a reference, speed, memory, sizes."""

    text: DataRef = Field(
        default="wikitext2-test", description="text to measure on: a shipped name, a file or a directory"
    )
    second_text: DataRef | None = Field(
        default=None,
        description="another text to measure quality on, as many windows of it: what helps on one alone is seen",
    )
    third_text: DataRef | None = Field(default=None, description="one more text, as second_text")
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
    engine: Literal["auto", "vllm", "llama.cpp"] | None = Field(
        default=None,
        description="engine to measure speed in as well; auto is the one whose environment VLLM_PYTHON or LLAMA_PYTHON "
        "names, and none without them",
        json_schema_extra=VOLATILE,
    )
    engine_python: str | None = Field(
        default=None,
        description="interpreter of the engine's environment, where VLLM_PYTHON or LLAMA_PYTHON does not name it",
        json_schema_extra=VOLATILE,
    )
    engine_compiled: bool = Field(
        default=False,
        description="let vLLM compile the model, which takes minutes to start",
        json_schema_extra=VOLATILE,
    )
    engine_batches: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 4, 16),
        min_length=1,
        description="prompts at a time in the engine, at its shortest context",
        json_schema_extra=VOLATILE,
    )
    engine_contexts: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(128, 2048),
        min_length=1,
        description="tokens of a prompt in the engine; the longer ones one prompt at a time",
        json_schema_extra=VOLATILE,
    )
    engine_rounds: int = Field(
        default=5, ge=1, description="rounds in which all engines are asked", json_schema_extra=VOLATILE
    )

    @model_validator(mode="after")
    def _has_an_engine(self) -> Evaluate:
        """What is said of an engine would count for nothing without one."""
        said = (name for name in type(self).model_fields if name.startswith("engine_"))
        changed = next((name for name in said if getattr(self, name) != type(self).model_fields[name].default), None)
        if self.engine is None and changed is not None:
            raise ValueError(f"{changed} counts for nothing without an engine: give engine: auto, vllm or llama.cpp")
        return self

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

    @property
    def further_texts(self) -> dict[str, str]:
        """{"second" and "third": the text}, where they are given."""
        texts = {"second": self.second_text, "third": self.third_text}
        return {name: text for name, text in texts.items() if text is not None}

    def preflight(self, start: Model, before: Plan) -> None:
        """Whether the text fills the windows, the start's positions hold them, and the engine is there."""
        from burnish.data.attempt import try_window
        from burnish.evaluate.measure import longest_context

        self.check_context(longest_context(start))
        self.check_engine(start)
        limits = {"num_windows": self.num_windows, "max_chars": self.max_chars}
        try_window(start.tokenizer, self.text, self.context, before.config, **limits, where="text")
        for name, text in self.further_texts.items():
            try_window(start.tokenizer, text, self.context, before.config, **limits, where=f"{name}_text")

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

    # -- speed in an engine --------------------------------------------------------------------------------------------

    def measured_together(self) -> dict[str, Any] | None:
        """What decides the speed in an engine; None where none is measured."""
        from burnish.evaluate.engines.environments import chosen

        engine = chosen(self.engine) if self.engine else None
        if engine is None:
            return None
        names = ("engine_compiled", "engine_batches", "engine_contexts", "engine_rounds", "decode_tokens", "text")
        return {"engine": engine.name} | {name: getattr(self, name) for name in names}

    def together(self, places: Mapping[str, Path], *, logs: Path | None = None, progress: bool = False) -> Speeds:
        """Speed of checkpoints in the engine, asked in turns: {name: its measurement}, empty without an engine.

        Args:
            places: their directories by name; the first decides the dtype.
            logs: directory for what the engines say.
            progress: whether to show bars.

        Raises:
            EngineError: no environment, another version, or none of the checkpoints runs.
            SettingsError: longer contexts than a model has.
        """
        from burnish.evaluate.engines.measure import Subject, measure_together

        if self.engine is None:
            return {}
        subjects = [Subject(name, place) for name, place in places.items()]
        return measure_together(self, subjects, logs=logs, progress=progress)

    def check_engine(self, model: Model) -> None:
        """Refuses what an engine would be started for in vain: no environment, longer contexts than the model has."""
        from burnish.evaluate.engines.environments import chosen, interpreter
        from burnish.evaluate.measure import longest_context

        engine = chosen(self.engine) if self.engine else None
        if engine is None:
            return
        interpreter(engine, self.engine_python)
        longest, asked = longest_context(model), max(self.engine_contexts) + self.decode_tokens + 1
        if longest is not None and asked > longest:
            raise SettingsError(
                f"engine_contexts and decode_tokens add up to {asked:,} with the first token of the answer, but the "
                f"model's positions end at {longest:,}",
                fix="lower engine_contexts",
            )
