"""Scores of RULER by the depth of the evidence, as a heat map of each node: a row for a task and length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from burnish.core.page import Cell, Column, Row, Section, Table
from burnish.core.page.numbers import percent
from burnish.core.page.svg import tag
from burnish.report.figures import is_number, newest_tables
from burnish.report.run import RunRecord

DEPTHS = "ruler_depths"
DRAWN = (DEPTHS,)
"""Names of the ledger's tables."""
FAINTEST, STRONGEST = 0.03, 0.4
"""Opacity of a score of 0 and of 1: what is written over it stays readable on light and on dark."""


@dataclass(frozen=True)
class DepthView:
    """What the page shows of one node.

    Attributes:
        node: its name.
        table: depths across, tasks and lengths down.
    """

    node: str
    table: Table


def views(run: RunRecord) -> list[DepthView]:
    """Of every node with scores by depth."""
    tables = ((one.node, [row for row in one.rows if _is_whole(row)]) for one in newest_tables(run, DEPTHS))
    return [DepthView(node, _heat(rows)) for node, rows in tables if rows]


def _is_whole(row: dict[str, Any]) -> bool:
    return all(is_number(row.get(name)) for name in ("length", "depth", "score"))


def _heat(rows: list[dict[str, Any]]) -> Table:
    depths = sorted({row["depth"] for row in rows})
    scores = {(row.get("task"), row["length"], row["depth"]): row["score"] for row in rows}
    lines = []
    for task, length in dict.fromkeys((row.get("task"), row["length"]) for row in rows):
        found = [scores.get((task, length, depth)) for depth in depths]
        known = [score for score in found if score is not None]
        cells = [Cell() if score is None else Cell(drawing=_shaded(score)) for score in found]
        lines.append(Row(str(task), [*cells, Cell(percent(max(known) - min(known)))], below=f"{length:,} tokens"))
    columns = [*(Column(f"{depth:.0%}", drawn=True) for depth in depths), Column("Spread")]
    return Table("Scores by the depth of the evidence", "Task", columns, [Section(lines)])


def _shaded(score: float) -> Markup:
    """The score over a field that is the darker the higher it is."""
    opacity = f"{FAINTEST + (STRONGEST - FAINTEST) * min(1.0, max(0.0, score)):.2f}"
    field = tag("rect", width="100%", height="100%", fill="currentColor", fill_opacity=opacity)
    text = tag("text", percent(score), x="50%", y="72%", text_anchor="middle", fill="currentColor", font_size="11")
    return tag("svg", field, text, width="46", height="18")
