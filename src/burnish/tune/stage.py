"""`Tune`: the scales and norms of a packed checkpoint, trained against the original.

tuned = burnish.Tune(steps=200)(packed, data=texts, teacher=original)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from burnish.core.kinds import Plan, Weights, packing
from burnish.core.stage import VOLATILE, Context
from burnish.distill.stage import Distill

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model

NOT_HERE = {
    "lora_rank": "adapters would stand beside the packed weights",
    "only": "scales and norms say what is trained",
    "sharpness": "the weights are a function of what is trained",
    "weight_decay": "relative scales begin at 1, and would shrink",
    "split_fused": "there are no matrices to step",
    "on_policy": "packed weights do not sample while they are trained",
    "compile": "weights are made anew in every step",
    "bound_data": "its loss is of dense weights",
}


class Tune(Distill):
    """Trains group scales and norms of a packed checkpoint to predict what the original predicts."""

    name: ClassVar[str] = "tune"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "scales and norms of a packed checkpoint learn the original's distribution; codes stay"
    accepts_weights: ClassVar[frozenset[Weights]] = frozenset({Weights.PACKED})
    beside_packed: ClassVar[bool] = False

    scales: bool = Field(default=True, description="train the scales of all groups of whole numbers")
    norms: bool = Field(default=True, description="train the gains of all norms")
    context: int = Field(default=256, ge=2, description="tokens of a row")
    batch: int = Field(default=4, ge=1, description="rows per optimizer step")
    optimizer: Literal["adamw"] = Field(default="adamw", description="what follows the gradient")  # pyright: ignore[reportIncompatibleVariableOverride]
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate, relative to each scale")
    weight_decay: float = Field(default=0.0, ge=0, description="none: relative scales begin at 1")
    holdout: float = Field(default=0.1, ge=0, lt=1, description="share of the rows kept for measuring, the last ones")
    validation_rows: int | None = Field(
        default=16, ge=1, description="most rows that are measured on, spread over those held out; null for all"
    )
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
    alpha: float = Field(default=1.0, ge=0, le=1, description="share of the divergence; the rest is cross-entropy")

    @model_validator(mode="before")
    @classmethod
    def _validation_in_place_of_holdout(cls, given: Any) -> Any:
        return {"holdout": 0.0} | given if isinstance(given, dict) and given.get("validation") is not None else given

    @model_validator(mode="after")
    def _only_scales_and_norms(self) -> Tune:
        if not (self.scales or self.norms):
            raise ValueError("scales and norms are both off: nothing would be trained")
        for name, reason in NOT_HERE.items():
            if getattr(self, name):
                raise ValueError(f"{name} does not go with tune: {reason}")
        return self

    def plan(self, before: Plan) -> Plan:
        after = super().plan(before)
        dense = 4 * before.num_parameters
        return after.with_(peak_memory_bytes=3 * dense, notes=("codes stay; scales and norms change",))

    def preflight(self, start: Model, before: Plan) -> None:
        super().preflight(start, before)
        if (found := packing(before.config)) and start.path is not None:  # what is only planned does not say it yet
            from burnish.core.checkpoint.packed_integers import check_whole_numbers

            check_whole_numbers(found, purpose="scales are tuned of")

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.tune.run import run

        return run(self, model, ctx)
