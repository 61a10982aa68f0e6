"""`Qat`: a model trained with weights of three or four levels against its own predictions, and packed.

small = burnish.Qat(bits="ternary", steps=1000)(model, data=texts)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from burnish.core.kinds import Kind, Plan, Weights
from burnish.core.settings import VOLATILE
from burnish.core.stage import CheckpointRef, Context
from burnish.distill.as_stored import AsStored

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.quantize.stage import Quantize


class Qat(AsStored):
    """Trains a model whose weights have three or four levels to predict what the original predicts, and packs it."""

    name: ClassVar[str] = "qat"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "ternary or 2-bit weights learn the original's distribution over the next token"
    accepts: ClassVar[frozenset[Kind]] = frozenset({Kind.CAUSAL_LM})
    teaches_itself: ClassVar[bool] = True
    not_here: ClassVar[Mapping[str, str]] = {
        **AsStored.not_here,
        "lora_rank": "low_rank is the part beside the weights of few levels",
        "only": "all but embeddings and the head is trained",
        "on_policy": "weights are made anew for every token that is sampled",
        "compile": "how far weights are rounded changes from step to step",
        "objective": "its loss is of the text alone",
        "rope_scaling": "the original that it learns from has other positions",
    }

    teacher: CheckpointRef | None = Field(
        default=None, description="the model to learn from; the one that is quantized when not given"
    )
    bits: Annotated[Literal["ternary", "2"], BeforeValidator(str)] = Field(
        default="ternary", description="ternary: levels -1, 0, 1 times a scale; 2: -2, -1, 0, 1. Both take two bits"
    )
    group_size: int | None = Field(
        default=64, ge=1, description="inputs that share a scale; null for one scale per row"
    )
    scale_init: Literal["gaussian", "absmean"] = Field(
        default="gaussian",
        description="where scales begin: least squared error of a Gaussian weight, or the mean size (BitNet)",
    )
    low_rank: int = Field(
        default=0, ge=0, description="rank of a product in bfloat16 beside the weights, trained too: a LoRA adapter"
    )
    low_rank_fit: Literal["activations", "plain"] = Field(
        default="activations",
        description="where it begins: the error of a layer's output on rows of the data, or that of its weight",
    )
    ramp: float = Field(
        default=0.1, ge=0, le=1, description="share of the steps in which weights go from dense to rounded"
    )
    ignore: tuple[str, ...] = Field(default=(), description="matrices to leave dense: names, or re:PATTERN")

    batch: int = Field(default=8, ge=1, description="rows per optimizer step")
    lr: float = Field(default=3e-4, gt=0, description="peak learning rate, of weights and scales alike")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled; it moves weights towards level 0")
    eval_every: int = Field(
        default=50,
        ge=0,
        description="steps between measurements of the rounded weights on held-out rows; 0 measures at the end",
        json_schema_extra=VOLATILE,
    )

    @model_validator(mode="after")
    def _low_rank_is_there(self) -> Qat:
        if not self.low_rank and self.low_rank_fit != type(self).model_fields["low_rank_fit"].default:
            raise ValueError("low_rank_fit counts for nothing without low_rank")
        return self

    @property
    def rounding(self) -> Quantize:
        """The quantization whose matrices and format are those of this stage."""
        from burnish.quantize.stage import Quantize

        return Quantize(method="rtn", bits=2, group_size=self.group_size, ignore=self.ignore)

    def plan(self, before: Plan) -> Plan:
        from burnish.core.checkpoint import without_memory
        from burnish.qat.run import layer_of, whole_layers
        from burnish.quantize.plan import plan

        trained = super().plan(before)
        views = whole_layers(self, without_memory(before.config))
        packed = plan(self.rounding, before)
        notes = [*trained.notes, *packed.notes[len(before.notes) :]]
        shapes = [layer_of(view).weight.shape for view in views]
        factors = sum(self.low_rank * sum(shape) for shape in shapes)
        if factors:
            more = 16 * factors / sum(shape.numel() for shape in shapes)
            notes.append(f"a LoRA adapter of rank {self.low_rank} beside them: {more:.2f} bits per weight more")
        return packed.with_(
            weights=Weights.PACKED,
            num_bytes=packed.num_bytes + 2 * factors,
            adapter=bool(factors),
            peak_memory_bytes=(trained.peak_memory_bytes or 0) + 8 * before.num_parameters,
            seconds=trained.seconds,
            notes=tuple(notes),
        )

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.qat.run import run

        return run(self, model, ctx)
