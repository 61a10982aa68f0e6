"""`Slim`: a mixture of experts made smaller: all experts kept and narrower, or fewer experts; still a stock checkpoint.

slim = burnish.Slim(target="20%")(model, calibration=texts)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from burnish.core.settings import VOLATILE, CheckpointRef, DataRef
from burnish.core.stage import Context, Plan, Stage

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model

NEURON_SCORES = ("fisher", "taylor", "taylor_total", "energy", "act_l2", "wanda", "magnitude", "random")
EXPERT_SCORES = ("reap", "frequency", "magnitude", "random")


class Slim(Stage):
    """Cuts a mixture of experts to a target size, before any recovery."""

    name: ClassVar[str] = "slim"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "narrow or drop the experts of a mixture (SlimMoE, REAP)"
    memory_settings: ClassVar[str] = "memory (bytes of refit statistics held at once) or length"

    method: Literal["narrow", "drop"] = Field(
        default="narrow",
        description="narrow: keep every expert, make all narrower (SlimMoE); drop: remove whole experts",
    )
    target: str | None = Field(
        default=None,
        description="size to reach: a share of the parameters (20%) or bytes of weights in bfloat16 (24GB)",
    )
    width: int | None = Field(default=None, ge=1, description="width of each expert, instead of a target")
    num_experts: int | None = Field(default=None, ge=1, description="experts to keep per layer, instead of a target")
    num_key_value_heads: int | None = Field(
        default=None, ge=1, description="attention groups to keep, each with its query heads; null keeps all"
    )
    multiple: int = Field(default=64, ge=1, description="a width found from a target is a multiple of this")
    score: str | None = Field(
        default=None,
        description=f"what is kept: {', '.join(NEURON_SCORES)} (narrow, default fisher); "
        f"{', '.join(EXPERT_SCORES)} (drop, default reap)",
    )
    labels: Literal["sampled", "text", "teacher"] = Field(
        default="sampled",
        description="loss behind first-order scores: cross-entropy on labels drawn from the model or on the text, or "
        "the divergence from a teacher that is another model",
    )
    teacher: CheckpointRef | None = Field(default=None, description="the other model, for labels: teacher")
    refit: bool = Field(default=False, description="refit down_proj of narrowed experts by least squares")
    calibration: DataRef = Field(default="wikitext2-valid", description="text to score on")
    tokens: int = Field(default=65_536, ge=1, description="calibration tokens")
    length: int = Field(default=256, ge=8, description="tokens per calibration window")
    allow_unseen: bool = Field(
        default=False, description="rank neurons of experts that saw no calibration token by the size of their weights"
    )
    memory: int = Field(
        default=2_000_000_000, ge=1, description="bytes of refit statistics held at once", json_schema_extra=VOLATILE
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Slim:
        known = NEURON_SCORES if self.method == "narrow" else EXPERT_SCORES
        if self.score is not None and self.score not in known:
            raise ValueError(f"score is {self.score!r}, but to {self.method} it is one of {', '.join(known)}")
        sizes = {"target": self.target, "width": self.width, "num_experts": self.num_experts}
        given = [name for name, value in sizes.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say how small; give one of them")
        wrong = "num_experts" if self.method == "narrow" else "width"
        if given == [wrong]:
            other = "drop" if self.method == "narrow" else "narrow"
            raise ValueError(f"{wrong} is a setting of method: {other}")
        if not given and self.num_key_value_heads is None:
            raise ValueError("nothing says how small: give target, width or num_experts, or num_key_value_heads")
        if self.method == "drop" and self.refit:
            raise ValueError("refit repairs narrowed experts, and method: drop narrows none")
        if self.labels == "teacher" and self.teacher is None:
            raise ValueError(
                "labels: teacher needs a teacher that is another model: the divergence of a model from itself has no "
                "gradient, so every score would be rounding noise (use labels: sampled for the first cut)"
            )
        return self

    @property
    def score_name(self) -> str:
        """The score, with the method's default."""
        return self.score or ("fisher" if self.method == "narrow" else "reap")

    def plan(self, before: Plan) -> Plan:
        from burnish.slim.plan import plan

        return plan(self, before)

    def run(self, model: Model, ctx: Context) -> Model:
        from burnish.slim.run import run

        return run(self, model, ctx)
