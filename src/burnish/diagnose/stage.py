"""The stage `diagnose`: what a model has unlearned against its original, as pairs to learn from (`run.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from burnish.core.errors import SettingsError
from burnish.core.kinds import Plan, Weights
from burnish.core.stage import VOLATILE, CheckpointRef, Context, DataRef, Stage
from burnish.verify.registry import known

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.made_data import Data


class Diagnose(Stage):
    """Find what a model has lost against its original: the problems, the step where each goes wrong, and pairs."""

    name: ClassVar[str] = "diagnose"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "problems that a model has lost against its original, the faulty step of each, and pairs"
    makes_data: ClassVar[bool] = True
    accepts_weights: ClassVar[frozenset[Weights]] = frozenset(Weights)
    accepts_adapter: ClassVar[bool] = True
    memory_settings: ClassVar[str] = "batch_size"

    original: CheckpointRef | None = Field(default=None, description="the model that it was made of, which judges")
    data: DataRef | None = Field(default=None, description="problems, a JSON object a line, as their verifier reads")
    held_out: DataRef | None = Field(default=None, description="problems that measure later; no pair is made of these")
    verifier: Annotated[str, AfterValidator(known)] = Field(
        default="math", description="what says whether an answer is right"
    )
    judge: Literal["rollouts", "arithmetic", "none"] = Field(
        default="rollouts",
        description="what finds the faulty step: the original going on from each, or false sums; none: a row for every "
        "problem says who is right",
    )
    k: int = Field(default=8, ge=1, description="times that the original goes on from a part of a solution")
    least: float = Field(
        default=0.5, gt=0, le=1, description="share of these that are right where the original can still go on"
    )
    temperature: float = Field(default=1.0, ge=0, description="of going on; answers themselves are the likeliest")
    most: int = Field(default=600, ge=1, description="pairs, of each kind of fault about as many")
    max_new_tokens: int = Field(default=256, ge=1, description="most tokens of an answer; what is cut is not right")
    batch_size: int = Field(default=64, ge=1, description="answers at a time", json_schema_extra=VOLATILE)

    def plan(self, before: Plan) -> Plan:
        """Rows; raises where no problems or no original are named."""
        if self.data is None:
            raise SettingsError("no problems are named", where="data", fix="give data: FILE, or --data FILE")
        if self.original is None:
            raise SettingsError(
                "no original is named", where="original", fix="give original: CHECKPOINT, or --original CHECKPOINT"
            )
        after = super().plan(before)
        return after.with_(notes=(*after.notes, "memory is the model's; the original's comes on top"))

    def preflight(self, start: Model, before: Plan) -> None:
        from burnish.generate.problems import try_first

        try_first(start.tokenizer, self.data, self.verifier)

    def run(self, model: Model, ctx: Context) -> Data:
        from burnish.diagnose.run import run

        return run(self, model, ctx)
