"""Episodes that were curated: the funnel of filters, tokens by kind, losses by kind, and where each can be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from burnish.core.page import Cell, Column, Datum, Figure, Row, Section, Series, Table, meters
from burnish.core.page.numbers import percent
from burnish.data.trajectories.kinds import KIND_NAMES
from burnish.data.trajectories.pages import LIST_FILE
from burnish.report.figures import is_number, merged, newest_tables
from burnish.report.run import RunRecord

FUNNEL, TOKENS, LOSS = "funnel", "trained tokens", "loss"
DRAWN = (FUNNEL, TOKENS)
"""Names of the ledger's tables."""
FIRST = "loss_first_token"
BY_KIND = {
    **{f"loss_{name}": name for name in KIND_NAMES.values()},
    FIRST: "first token of a turn",
    "loss_unlearned": "to be unlearned",
}
"""Columns of a table of losses that say it by kind of token."""


@dataclass(frozen=True)
class EpisodesView:
    """What the page shows of one node that made rows of episodes.

    Attributes:
        node: its name.
        page: address of the list of its rows; "" where there is none.
        funnel, tokens: tables.
        samples: (filter, episode, why) of some that were dropped.
    """

    node: str
    page: str
    funnel: Table
    tokens: Table | None
    samples: list[tuple[str, str, str]]


def views(run: RunRecord, place: Path) -> list[EpisodesView]:
    """One for each node with a funnel.

    Args:
        run: what was logged.
        place: directory of the report, from which pages are linked.
    """
    counted = {table.node: table for table in newest_tables(run, TOKENS)}
    found = []
    for table in newest_tables(run, FUNNEL):
        if not table.rows or not all({"filter", "dropped", "left"} <= row.keys() for row in table.rows):
            continue
        page = run.directory / "nodes" / table.node / LIST_FILE
        tokens = counted[table.node].rows if table.node in counted else []
        shown = quote(Path(os.path.relpath(page, place)).as_posix()) if page.is_file() else ""
        samples = [
            (str(step["filter"]), str(one["episode"]), str(one["reason"]))
            for step in table.rows
            for one in step.get("sample") or []
        ]
        kinds = _tokens(tokens) if tokens else None
        found.append(EpisodesView(table.node, shown, _funnel(table.rows), kinds, samples))
    return found


def _funnel(steps: list[dict[str, Any]]) -> Table:
    rows = []
    for step, bar in zip(steps, meters([float(step["left"]) for step in steps]), strict=True):
        dropped = Cell(f"{step['dropped']:,}" if step is not steps[0] else "")
        rows.append(Row(str(step["filter"]), [bar, Cell(f"{step['left']:,}"), dropped]))
    columns = [Column("Left as a bar", drawn=True, spare=True), Column("Left"), Column("Dropped")]
    return Table("What every filter dropped", "Filter", columns, [Section(rows)])


def _tokens(counts: list[dict[str, Any]]) -> Table:
    total = sum(one["tokens"] for one in counts) or 1
    rows = [
        Row(str(one["kind"]), [bar, Cell(f"{one['tokens']:,}"), Cell(percent(one["tokens"] / total))])
        for one, bar in zip(counts, meters([float(one["tokens"]) for one in counts]), strict=True)
    ]
    columns = [Column("Tokens as a bar", drawn=True, spare=True), Column("Tokens"), Column("Share")]
    return Table("Trained tokens by kind", "Kind", columns, [Section(rows)])


def figures(run: RunRecord) -> list[Figure]:
    """The loss of every kind of token over the steps, one picture for each node that told them."""
    found = []
    for node, rows in merged(run, LOSS).items():
        newest = {row["step"]: row for row in rows if is_number(row.get("step"))}
        series = []
        for column, name in BY_KIND.items():
            data = [Datum(at, newest[at][column]) for at in sorted(newest) if is_number(newest[at].get(column))]
            if data:
                series.append(Series(name, data, line=True, markers=False))
        if series:
            found.append(_figure(node, series))
    return found


def _figure(node: str, series: list[Series]) -> Figure:
    told = [f"{one.name} from {one.data[0].y:.4g} to {one.data[-1].y:.4g}" for one in series]
    return Figure(
        title=f"Loss by kind of token, {node}",
        description="; ".join(told),
        x_label="step",
        y_label="nats a token, without weights",
        series=series,
        note="Where the first token of a turn gets worse while the rest improves, the model is trained against what it "
        "would say itself.",
        from_zero_x=True,
        from_zero_y=True,
        log_y=False,
    )
