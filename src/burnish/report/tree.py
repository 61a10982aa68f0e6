"""The recipe as a drawn tree: one row per node, children of one parent side by side in one lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.recipe import START
from burnish.report.protocols import show
from burnish.report.run import Node

ROW, LANE = 58, 22
_UNINTERESTING = {"seed", "device", "workers", "progress"}
_MAX_FACTS = 4

STATES = {
    "finished": ("done", "finished"),
    "skipped": ("done", "unchanged, not run again"),
    "dropped": ("done", "finished, checkpoint not kept"),
    "running": ("open", "not finished"),
    "waiting": ("open", "not run yet"),
    "failed": ("failed", "failed"),
}


@dataclass
class Row:
    """A node at its place; `links` are paths from it down to its children."""

    name: str
    stage: str
    facts: str
    state: str
    status: str
    x: float
    y: float
    links: list[str]


@dataclass
class Tree:
    width: int
    height: int
    rows: list[Row]


def tree(nodes: Sequence[Node], start: str) -> Tree:
    """Rows in depth-first order. A single child stays in its parent's lane; several share the next one."""
    children: dict[str, list[Node]] = {}
    for node in nodes:
        children.setdefault(node.parent, []).append(node)
    rows: list[Row] = []
    seen = {START}

    def place(name: str, row: Row) -> None:
        rows.append(row)
        below = [child for child in children.get(name, []) if child.name not in seen]
        seen.update(child.name for child in below)
        lane = row.x if len(below) < 2 else row.x + LANE
        for child in below:
            state, status = STATES.get(child.status, ("open", child.status))
            y = len(rows) * ROW + ROW / 2
            facts = _facts(child, nodes)
            row.links.append(_link(row.x, row.y, lane, y))
            place(child.name, Row(child.name, child.stage, facts, state, status, lane, y, []))

    place(START, Row(START, "", start, "start", "", LANE / 2 + 2, ROW / 2, []))
    for node in nodes:  # a parent that is not in the recipe any more
        if node.name not in seen:
            seen.add(node.name)
            state, status = STATES.get(node.status, ("open", node.status))
            y = len(rows) * ROW + ROW / 2
            place(node.name, Row(node.name, node.stage, _facts(node, nodes), state, status, LANE / 2 + 2, y, []))
    width = int(max(row.x for row in rows) + LANE / 2 + 2)
    return Tree(width, len(rows) * ROW, rows)


def _link(x: float, y: float, child_x: float, child_y: float) -> str:
    if x == child_x:
        return f"M{x:g} {y:g}V{child_y:g}"
    bend = 10
    return f"M{x:g} {y:g}V{child_y - bend:g}Q{x:g} {child_y:g} {x + bend:g} {child_y:g}H{child_x:g}"


def _facts(node: Node, nodes: Sequence[Node]) -> str:
    """The settings that tell this node from others of its stage; for a stage that stands alone, its first ones."""
    peers = [other for other in nodes if other.stage == node.stage]
    plain = {name: value for name, value in node.settings.items() if name not in _UNINTERESTING and _is_plain(value)}
    if len(peers) > 1:
        names = [name for name in plain if any(other.settings.get(name) != plain[name] for other in peers)]
    else:
        names = list(plain)
    return ", ".join(f"{name} {show(plain[name])}" for name in names[:_MAX_FACTS])


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list) and value != ""
