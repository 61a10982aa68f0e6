"""The stage `select`: what a model answers rightly, its shortest answers first, as rows to learn from (`run.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from burnish.core.errors import SettingsError
from burnish.core.kinds import Plan
from burnish.core.stage import VOLATILE, Context, DataRef, Stage
from burnish.verify.registry import known

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.made_data import Data


class Select(Stage):
    """Keep the shortest right answers that a model itself writes to problems, and say how hard each of them is."""

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a model's own shortest right answers, with the solve rate of every problem"
    makes_data: ClassVar[bool] = True
    memory_settings: ClassVar[str] = "batch_size"

    data: DataRef | None = Field(default=None, description="problems, a JSON object a line, as their verifier reads")
    verifier: Annotated[str, AfterValidator(known)] = Field(
        default="math", description="what says whether an answer is right"
    )
    k: int = Field(default=8, ge=1, description="samples of each problem")
    keep: int = Field(default=1, ge=1, description="right answers of a problem that are kept, the shortest")
    easy: float = Field(
        default=1.0, ge=0, le=1, description="share of the problems whose every sample is right that are kept"
    )
    temperature: float = Field(default=1.0, ge=0, description="of the samples")
    max_new_tokens: int = Field(default=256, ge=1, description="most tokens of a sample; what is cut is not kept")
    batch_size: int = Field(default=64, ge=1, description="samples at a time", json_schema_extra=VOLATILE)

    def plan(self, before: Plan) -> Plan:
        """Rows; raises where no problems are named."""
        if self.data is None:
            raise SettingsError("no problems are named", where="data", fix="give data: FILE, or --data FILE")
        return super().plan(before)

    def preflight(self, start: Model, before: Plan) -> None:
        from burnish.generate.problems import try_first

        try_first(start.tokenizer, self.data, self.verifier)

    def run(self, model: Model, ctx: Context) -> Data:
        from burnish.select.run import run

        return run(self, model, ctx)
