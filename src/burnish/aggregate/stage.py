"""The stage `aggregate`: rows that teach a model to read its own answers (work in `run.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from burnish.core.errors import SettingsError
from burnish.core.kinds import Plan
from burnish.core.stage import VOLATILE, Context, DataRef, Stage

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.made_data import Data


class Aggregate(Stage):
    """Put earlier answers of the model itself before a share of the problems, in the words of GSA and RSA."""

    name: ClassVar[str] = "aggregate"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "chats of which a share are aggregation prompts over the model's own samples"
    makes_data: ClassVar[bool] = True
    memory_settings: ClassVar[str] = "batch_size"

    data: DataRef | None = Field(default=None, description="chats that end with a right answer of the assistant")
    share: float = Field(default=0.5, ge=0, le=1, description="chance that a chat becomes an aggregation prompt")
    k: int = Field(default=4, ge=1, description="own answers that each of them shows")
    prompt: Literal["gsa", "rsa"] = Field(default="rsa", description="whose words; rsa has its own for k = 1")
    temperature: float = Field(default=1.0, ge=0, description="of the own answers")
    max_new_tokens: int = Field(default=256, ge=1, description="most tokens of an own answer")
    batch_size: int = Field(default=256, ge=1, description="own answers at a time", json_schema_extra=VOLATILE)

    def plan(self, before: Plan) -> Plan:
        if self.data is None:
            raise SettingsError("no data is named", where="data", fix="give data: FILE, or --data FILE")
        return super().plan(before)

    def run(self, model: Model, ctx: Context) -> Data:
        from burnish.aggregate.run import run

        return run(self, model, ctx)
