"""The stage `steer`: vectors to steer a model by, and how strongly (`run.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from burnish.core.errors import SettingsError
from burnish.core.kinds import Kind, Plan, Weights
from burnish.core.stage import Context, DataRef, Stage
from burnish.steer.maths.intervene import Mode
from burnish.steer.maths.steps import CUES
from burnish.verify.registry import known

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.steer.run import SteeringFile

NEWLINE = r"\n"
"""How a shell writes a line end in a separator."""
OF_STRENGTHS = ("coef", "top", "mode", "lose", "tuning", "strength_temperature", "batch_size")
"""Settings of how strengths are tried."""


class Steer(Stage):
    """Find the heads that tell checking from going on, write a steering file, and try how strongly to steer by it."""

    name: ClassVar[str] = "steer"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "probes and directions of attention heads that tell checks, and a strength to steer at"
    memory_settings: ClassVar[str] = "batch_size"

    traces: DataRef | None = Field(
        default=None, description="problems with `completion`, or chats, of which the right ones are read"
    )
    problems: DataRef | None = Field(default=None, description="instead: problems that the model answers first")
    verifier: Annotated[str, AfterValidator(known)] = Field(
        default="math", description="what says whether an answer is right"
    )
    separator: str = Field(default="\n\n", min_length=1, description="ends a step; every token that holds it counts")
    cues: list[str] = Field(default=list(CUES), description="what a checking step holds: words, or re:PATTERN")
    think_end: str = Field(default="</think>", description="the token behind which nothing is steered")
    rank: int | None = Field(
        default=None, ge=1, description="of the subspace of directions; null for 1000 or the width"
    )
    permutations: int = Field(default=99, ge=1, description="of the labels, for what the best head reaches by chance")
    force: bool = Field(default=False, description="write vectors even where no head beats chance")
    temperature: float = Field(default=0.0, ge=0, description="of the answers to `problems`; 0 takes the likeliest")
    max_new_tokens: int = Field(default=1024, ge=1, description="most tokens of an answer")
    limit: int | None = Field(default=None, ge=1, description="take so many of `problems` only")
    batch_size: int = Field(default=128, ge=1, description="answers at a time while strengths are tried")

    strengths: DataRef | None = Field(
        default=None, description="problems on which strengths are tried, the first ones choose and the others report"
    )
    coef: list[float] = Field(default=[-1.0, -4.0], min_length=1, description="coefficients that are tried")
    top: list[Annotated[float, Field(gt=0)]] = Field(
        default=[0.1, 0.38, 1.0], min_length=1, description="shares of the heads, or how many"
    )
    mode: Mode = Field(default="threshold", description="which gate")
    lose: float = Field(default=0.01, ge=0, le=1, description="accuracy that the point may lose where it is chosen")
    tuning: float = Field(default=0.5, gt=0, lt=1, description="share of `strengths` that chooses")
    strength_temperature: float = Field(default=1.0, ge=0, description="of the answers to `strengths`")

    def plan(self, before: Plan) -> Plan:
        """Vectors; raises unless either traces or problems are named, and where strengths are settled but not tried."""
        if (self.traces is None) == (self.problems is None):
            raise SettingsError("give either traces or problems", where="steer")
        given = [name for name in OF_STRENGTHS if name in self.model_fields_set]
        if self.strengths is None and given:
            raise SettingsError(
                "counts for nothing without problems to try strengths on",
                where=given[0],
                fix=f"name them in strengths, or leave {given[0]} out",
            )
        return before.with_(config=None, kind=Kind.STEERING, weights=Weights.DENSE, shapes={}, num_bytes=0)

    def preflight(self, start: Model, before: Plan) -> None:
        from burnish.steer.run import marks

        marks(self, start.tokenizer)

    def run(self, model: Model, ctx: Context) -> SteeringFile:
        from burnish.steer.run import run

        return run(self, model, ctx)
