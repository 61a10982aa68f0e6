"""`Tune`: the scales and norms of a packed checkpoint, trained against the original.

tuned = burnish.Tune(steps=200)(packed, data=texts, teacher=original)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from burnish.core.kinds import Plan, Weights, packing
from burnish.core.stage import VOLATILE, Context
from burnish.distill.as_stored import AsStored

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model


class Tune(AsStored):
    """Trains group scales and norms of a packed checkpoint to predict what the original predicts."""

    name: ClassVar[str] = "tune"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "scales and norms of a packed checkpoint learn the original's distribution; codes stay"
    accepts_weights: ClassVar[frozenset[Weights]] = frozenset({Weights.PACKED})
    not_here: ClassVar[Mapping[str, str]] = {
        **AsStored.not_here,
        "lora_rank": "adapters would stand beside the packed weights",
        "only": "scales and norms say what is trained",
        "weight_decay": "relative scales begin at 1, and would shrink",
        "on_policy": "packed weights do not sample while they are trained",
        "compile": "weights are made anew in every step",
    }

    read_by_layer: ClassVar[frozenset[str]] = frozenset(
        {
            *("seed", "data", "validation", "holdout", "validation_rows", "context", "overlong", "bad_rows"),
            *("steps", "epochs", "batch", "lr", "schedule", "warmup", "decay", "final_lr", "keep_best"),
            *("teacher", "scales", "norms", "by_layer"),
        }
    )
    """Settings that count where layers are trained one by one."""

    by_layer: bool = Field(
        default=False,
        description="train layer after layer towards what the original's layer gives, with one layer of the original "
        "in memory; steps are those of each layer",
    )
    scales: bool = Field(default=True, description="train the scales of all groups of whole numbers")
    norms: bool = Field(default=True, description="train the gains of all norms")
    batch: int = Field(default=4, ge=1, description="rows per optimizer step")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate, relative to each scale")
    weight_decay: float = Field(default=0.0, ge=0, description="none: relative scales begin at 1")
    eval_every: int = Field(
        default=20,
        ge=0,
        description="steps between measurements on held-out rows; 0 measures at the end",
        json_schema_extra=VOLATILE,
    )
    keep_best: bool = Field(
        default=True,
        description="end with the scales of the lowest loss on held-out rows, measured at the start and by eval_every",
    )

    @model_validator(mode="after")
    def _only_scales_and_norms(self) -> Tune:
        if not (self.scales or self.norms):
            raise ValueError("scales and norms are both off: nothing would be trained")
        return self

    @model_validator(mode="after")
    def _reads_what_is_given(self) -> Tune:
        fields = type(self).model_fields
        unread = self.canonical().keys() - self.read_by_layer if self.by_layer else ()
        for name in (name for name in fields if name in unread):
            if getattr(self, name) != fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name} counts for nothing with by_layer, whose loss is that of a layer's output")
        return self

    def plan(self, before: Plan) -> Plan:
        after = super().plan(before)
        dense = 4 * before.num_parameters
        notes = ("codes stay; scales and norms change",)
        if self.by_layer:
            from burnish.core.checkpoint import without_memory
            from burnish.tune.by_layer import check_layers

            check_layers(without_memory(before.config))
            notes = (*notes, "of the original one layer is in memory, and of activations those of one layer")
        return after.with_(peak_memory_bytes=(2 if self.by_layer else 3) * dense, notes=notes)

    def preflight(self, start: Model, before: Plan) -> None:
        super().preflight(start, before)
        if (found := packing(before.config)) and start.path is not None:  # what is only planned does not say it yet
            from burnish.core.checkpoint.packed_integers import check_whole_numbers

            check_whole_numbers(found, purpose="scales are tuned of")

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.tune.run import run

        return run(self, model, ctx)
