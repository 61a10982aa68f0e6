"""`Distill`: the training loop with a teacher; `Speculator`: a model as the teacher of a draft of itself.

student = burnish.Distill(steps=1000)(student, data=texts, teacher=teacher)
draft = burnish.Speculator(vocabulary=3072)(model, data=texts)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from burnish.core.checkpoint.own_classes import splits_the_stream
from burnish.core.errors import SettingsError
from burnish.core.kinds import Kind, Plan, Weights
from burnish.core.stage import CheckpointRef, Context, DataRef, Stage
from burnish.train.stage import Train

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.distill.speculator.draft import EagleDraft


class Distill(Train):
    """Trains a student to predict what a teacher predicts, on texts or chats."""

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "a student learns a teacher's distribution over the next token"
    teaches_itself: ClassVar[bool] = False
    """Whether the model that comes in is the teacher where none is named."""

    teacher: CheckpointRef | None = Field(
        default=None,
        description="the model to learn from; must be given, with the student's tokens or divergence alm",
    )
    divergence: Literal["forward", "reverse", "jsd", "top_k", "alm", "uld", "gold"] = Field(
        default="forward",
        description="of logits; top_k: forward KL from the teacher's likeliest tokens and one for the rest; alm, uld, "
        "gold: from a teacher with another tokenizer, by likelihood of the text, by rank, by name and rank",
    )
    temperature: float = Field(default=1.0, gt=0, description="divides the logits of both")
    top_k: int = Field(default=8, ge=1, description="tokens of divergence top_k")
    beta: float = Field(default=0.5, gt=0, lt=1, description="of divergences jsd and gold")
    alpha: float = Field(
        default=0.9, ge=0, le=1, description="share of the divergence; the rest is cross-entropy on the data"
    )
    weighting: Literal["token", "sequence", "turn", "certain", "uncertain", "focus"] = Field(
        default="token",
        description="how much a token counts: equally, per sequence or turn, by the teacher's certainty, by divergence",
    )
    gamma: float = Field(default=1.0, ge=0, description="how strongly certain, uncertain and focus tell tokens apart")
    hidden: float = Field(
        default=0.0, ge=0, description="coefficient of the hidden states' error, projected where their sizes differ"
    )
    hidden_layers: list[int] = Field(
        default=[], description="layers of the student, from 1, whose hidden states are compared; empty for all"
    )
    router: float = Field(default=0.0, ge=0, description="coefficient of the routers' divergence, for equal experts")

    offline: bool = Field(
        default=False,
        description="compute the teacher's top_k logits once, before training, and read them from disk after that",
    )

    on_policy: float = Field(
        default=0.0, ge=0, le=1, description="share of the texts that the student continues itself while it is trained"
    )
    prompt_tokens: int = Field(
        default=16, ge=1, description="on_policy: tokens of a text that are kept; of a chat all before the last answer"
    )
    sampling_temperature: float = Field(default=1.0, gt=0, description="on_policy: how the student samples")

    @property
    def across(self) -> bool:
        """Whether the divergence is of texts, so that tokenizers may differ."""
        return self.divergence in ("alm", "uld", "gold")

    @property
    def weighted(self) -> bool:
        """Whether weights that data gives its tokens count: not where the loss is of other tokens than those."""
        return not self.across and not self.on_policy

    @model_validator(mode="after")
    def _has_one_loss(self) -> Distill:
        if self.objective is not None:
            raise ValueError("objective is a loss of burnish train, and distillation has its own: leave it out")
        return self

    @model_validator(mode="after")
    def _layers_are_layers(self) -> Distill:
        if self.hidden_layers and not self.hidden:
            raise ValueError("hidden_layers chooses among hidden states, which count for nothing while hidden is 0")
        if any(number < 1 for number in self.hidden_layers):
            raise ValueError(f"hidden_layers names the layer {min(self.hidden_layers)}, but the first one is 1")
        if len(set(self.hidden_layers)) < len(self.hidden_layers):
            raise ValueError("hidden_layers names a layer twice")
        return self

    @model_validator(mode="after")
    def _texts_alone_go_across(self) -> Distill:
        needs = [name for name in ("hidden", "router") if getattr(self, name)]
        if self.weighting != "token":
            needs.append(f"weighting {self.weighting}")
        if self.across and needs:
            raise ValueError(
                f"divergence {self.divergence} compares stretches of text, and {needs[0]} compares token by token"
            )
        return self

    @model_validator(mode="after")
    def _samples_fit(self) -> Distill:
        if not self.on_policy:
            return self
        if self.offline:
            raise ValueError("offline keeps what the teacher says of the data, and on_policy asks it of other texts")
        if self.optimizer == "pstorm" or self.sharpness:
            raise ValueError(
                "on_policy draws new texts for every gradient, and pstorm and sharpness compare two on the same ones"
            )
        if self.prompt_tokens >= self.context:
            raise ValueError(f"prompt_tokens is {self.prompt_tokens}, which leaves nothing of a context {self.context}")
        return self

    @model_validator(mode="after")
    def _offline_keeps_top_k_alone(self) -> Distill:
        if not self.offline:
            return self
        if self.divergence != "top_k":
            raise ValueError(
                f"offline keeps the teacher's top_k logits, and divergence {self.divergence} needs them all"
            )
        needs = [name for name in ("hidden", "router") if getattr(self, name)]
        if self.weighting in ("certain", "uncertain"):
            needs.append(f"weighting {self.weighting}")
        if needs:
            raise ValueError(f"offline keeps the teacher's top_k logits alone, and {needs[0]} needs the teacher itself")
        return self

    def plan(self, before: Plan) -> Plan:
        if self.teacher is None and not self.teaches_itself:
            raise SettingsError("no teacher is named", where="teacher", fix="give teacher: CHECKPOINT, or --teacher")
        text = before.config.get_text_config()
        layers, tokens = text.num_hidden_layers, text.vocab_size
        beyond = [number for number in self.hidden_layers if number > layers]
        if beyond:
            raise SettingsError(
                f"hidden_layers names the layer {beyond[0]}, but the student has {layers}",
                where="hidden_layers",
                fix=f"name layers from 1 to {layers}",
            )
        if self.hidden and splits_the_stream(before.config.model_type):
            raise SettingsError(
                f"hidden compares what comes between layers, and those of a {before.config.model_type} hand on a part "
                "of it later",
                where="hidden",
                fix="leave it out",
            )
        if self.divergence == "top_k" and self.top_k > tokens:
            raise SettingsError(f"top_k is {self.top_k}, but the vocabulary has {tokens} tokens", where="top_k")
        after = super().plan(before)
        beside = "the teacher's come on top"
        note = f"memory and time are the student's; {beside}{', and sampling' if self.on_policy else ''}"
        return after.with_(notes=(*after.notes, note))

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.distill.run import run

        return run(self, model, ctx)


class Speculator(Stage):
    """Train a draft that proposes tokens to a model: one layer over the model's own states, a part of the vocabulary.

    The model answers the beginnings of texts or chats, and the draft learns what it says there.
    """

    name: ClassVar[str] = "speculator"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "an EAGLE-3 draft of a model with a pruned vocabulary, from the model's own answers"
    memory_settings: ClassVar[str] = "batch or context"

    data: DataRef | None = Field(
        default=None, description="texts whose pieces, or chats whose last question, the model answers; must be given"
    )
    answers: int = Field(default=512, ge=2, description="most answers, spread over the data")
    prompt_tokens: int = Field(default=32, ge=1, description="of a piece of a text that are kept")
    answer_tokens: int = Field(default=128, ge=8, description="most tokens of an answer")
    context: int = Field(default=512, ge=16, description="most tokens of a prompt and its answer; longer chats are out")
    temperature: float = Field(default=1.0, ge=0, description="of the answers; 0 takes the likeliest")
    vocabulary: int | None = Field(
        default=None, ge=1, description="tokens that the draft can propose; a quarter of all when not given"
    )
    hidden_layers: list[int] = Field(
        default=[], description="layers, from 1, whose output the draft reads; three over the depth when empty"
    )
    unroll: int = Field(default=3, ge=1, le=16, description="tokens in a row that the draft learns to propose")
    epochs: float = Field(default=10.0, gt=0, le=10_000, description="passes over the answers")
    batch: int = Field(default=8, ge=1, description="answers per optimizer step")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate of AdamW")
    holdout: float = Field(
        default=0.1, gt=0, lt=1, description="share of the answers kept for measuring, the last ones"
    )
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the products in training")

    def plan(self, before: Plan) -> Plan:
        """A draft; raises on a vocabulary or layers that the model does not have."""
        if self.data is None:
            raise SettingsError("no data is named", where="data", fix="give data: FILE, or --data FILE")
        text = before.config.get_text_config()
        if self.vocabulary is not None and self.vocabulary > text.vocab_size:
            raise SettingsError(
                f"vocabulary is {self.vocabulary:,}, but the model has {text.vocab_size:,} tokens", where="vocabulary"
            )
        longest = getattr(text, "max_position_embeddings", None)
        if longest is not None and self.context > longest:
            raise SettingsError(
                f"context is {self.context:,}, but the model was made for {longest:,} positions", where="context"
            )
        if self.prompt_tokens + self.answer_tokens > self.context:
            raise SettingsError(
                f"prompt_tokens and answer_tokens come to {self.prompt_tokens + self.answer_tokens:,}, but context is "
                f"{self.context:,}",
                where="context",
            )
        self.layers_of(text.num_hidden_layers)
        return before.with_(config=None, kind=Kind.SPECULATOR, weights=Weights.DENSE, shapes={}, num_bytes=0)

    def layers_of(self, num_layers: int) -> list[int]:
        """Layers whose output is read, ascending: what is named, or the second, the middle one and the last but two.

        Raises:
            SettingsError: one that is not there, or the last one, behind which comes the head.
        """
        if num_layers < 2:
            raise SettingsError("the model has one layer, and a draft reads those before the last", where="model")
        if not self.hidden_layers:
            return sorted({min(max(layer, 1), num_layers - 1) for layer in (2, num_layers // 2, num_layers - 3)})
        chosen = sorted(set(self.hidden_layers))
        if len(chosen) < len(self.hidden_layers):
            raise SettingsError("hidden_layers names a layer twice", where="hidden_layers")
        if wrong := [layer for layer in chosen if not 1 <= layer < num_layers]:
            raise SettingsError(
                f"hidden_layers names the layer {wrong[0]}, and the draft reads layers 1 to {num_layers - 1} of this "
                "model",
                where="hidden_layers",
            )
        return chosen

    def run(self, model: Model, ctx: Context) -> EagleDraft:
        from burnish.distill.run import run_speculator

        return run_speculator(self, model, ctx)
