"""The stages `chain`, `table` and `trajectories`: problems made here, and episodes of agents, as rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from burnish.core.errors import SettingsError
from burnish.core.stage import VOLATILE, Context, DataRef, Stage
from burnish.data.chain import Chains, chain_rows
from burnish.data.table import Tables, table_rows
from burnish.data.trajectories.filters import DEFAULT, parse_filters
from burnish.data.trajectories.kinds import check_failed, check_weights

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model
    from burnish.core.kinds import Plan
    from burnish.core.made_data import Data


class Draw(Stage):
    """Draw problems with worked solutions; the checkpoint that is given plays no part."""

    makes_data: ClassVar[bool] = True

    number: int = Field(default=1000, ge=1, description="how many")
    distinct: bool = Field(default=False, description="no question twice")
    apart_from: DataRef | None = Field(default=None, description="problems whose questions must not occur again")

    def rows(self, taken: set[str]) -> Iterator[dict[str, Any]]:
        """The problems; none of these questions occurs."""
        raise NotImplementedError(f"stage {self.name!r} does not define rows()")

    def run(self, model: Model, ctx: Context) -> Data:
        from burnish.data.run import run

        return run(self, model, ctx)


class DrawChains(Draw):
    """Draw verifiable chains, each with a worked solution; the checkpoint that is given plays no part."""

    name: ClassVar[str] = "chain"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "verifiable chains: sums modulo m whose every step can be checked"

    kind: Chains = Field(
        default=Chains(),
        description="what they are made of: modulus, steps, operations and the like, as in the command",
    )

    def rows(self, taken: set[str]) -> Iterator[dict[str, Any]]:
        return chain_rows(self.kind, self.number, seed=self.seed, apart_from=taken, distinct=self.distinct)


class DrawTables(Draw):
    """Draw tables of digits with a question about some cells; the checkpoint that is given plays no part."""

    name: ClassVar[str] = "table"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "table reading: sums of cells of a grid, which a description says too"

    kind: Tables = Field(
        default=Tables(), description="what they are made of: rows, columns, cells and direct, as in the command"
    )

    def rows(self, taken: set[str]) -> Iterator[dict[str, Any]]:
        return table_rows(self.kind, self.number, seed=self.seed, apart_from=taken, distinct=self.distinct)


class CurateTrajectories(Stage):
    """Filter episodes of agents and mark what the model has written, for the tokenizer of the given checkpoint."""

    name: ClassVar[str] = "trajectories"
    version: ClassVar[int] = 2
    summary: ClassVar[str] = "episodes of agents, filtered, redacted and masked token by token"
    makes_data: ClassVar[bool] = True

    episodes: DataRef | None = Field(
        default=None, description="files of episodes, or a folder: messages, SWE-agent's .traj, OpenHands' JSON"
    )
    filters: list[str] = Field(
        default=list(DEFAULT), description="in this order, NAME or NAME=NUMBER; an empty list keeps all"
    )
    apart_from: DataRef | None = Field(
        default=None, description="repository and base_commit of what is evaluated on, a row each"
    )
    weights: dict[str, float] = Field(
        default={}, description="weight in the loss of reasoning, action, arguments, edit and final tokens; else 1"
    )
    failed: float = Field(
        default=0.0,
        description="weight, at most 0.1, by which the last turn of what verified alone would drop is unlearned",
    )
    context: int = Field(default=0, ge=0, description="leave out episodes with a longer row, in tokens; 0 takes any")
    bad_rows: Literal["refuse", "skip"] = Field(
        default="refuse", description="episodes that cannot be read; skip leaves them out and counts them"
    )
    workers: int = Field(
        default=1,
        ge=1,
        description="processes that read, filter and mask; the rows are the same with any number",
        json_schema_extra=VOLATILE,
    )

    @model_validator(mode="after")
    def _fits_together(self) -> CurateTrajectories:
        try:
            filters = parse_filters(self.filters, has_evaluation=self.apart_from is not None)
            check_weights(self.weights)
            check_failed(self.failed, [filter_.name for filter_ in filters])
        except SettingsError as error:
            advice = f"; {error.fix}" if error.fix else ""
            raise ValueError(f"{error.what}{advice}") from None
        return self

    def plan(self, before: Plan) -> Plan:
        """Data; raises where no episodes are named."""
        if self.episodes is None:
            raise SettingsError("no episodes are named", where="episodes", fix="give episodes: FILE or FOLDER")
        return super().plan(before)

    def preflight(self, start: Model, before: Plan) -> None:
        from burnish.data.trajectories.curate import try_episode

        assert self.episodes is not None, "the plan has refused to go on without"
        try_episode([self.episodes], start.tokenizer, skip_bad=self.bad_rows == "skip")

    def run(self, model: Model, ctx: Context) -> Data:
        from burnish.data.run import run_trajectories

        return run_trajectories(self, model, ctx)
