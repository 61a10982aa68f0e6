"""The recipe as a drawn tree: one row per node, children of one parent side by side in one lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from burnish.core.page.svg import path, tag
from burnish.core.recipe import START
from burnish.report.protocols import show
from burnish.report.run import Node

_ROW, _LANE, _BEND = 58, 22, 10
_UNINTERESTING = {"seed", "device", "workers", "progress"}
_MAX_FACTS = 4
_STATES = {
    "start": ("start", ""),
    "finished": ("done", "finished"),
    "skipped": ("done", "unchanged, not run again"),
    "dropped": ("done", "finished, checkpoint not kept"),
    "running": ("open", "not finished"),
    "waiting": ("open", "not run yet"),
    "failed": ("failed", "failed"),
}
_SIGNS = {"done": "m-3.2 0l2.3 2.5 4-4.6", "failed": "m-2.6 -2.6l5.2 5.2m0-5.2l-5.2 5.2"}


@dataclass(frozen=True)
class Place:
    """Where a node is drawn, and its parent, if it has one on the page."""

    node: Node
    x: float
    y: float
    parent: Place | None


def places(nodes: Sequence[Node], start: str) -> list[Place]:
    """Rows in depth-first order. A single child stays in its parent's lane; several share the next one."""
    children: dict[str, list[Node]] = {}
    for node in nodes:
        children.setdefault(node.parent, []).append(node)
    found: dict[str, Place] = {}

    def place(node: Node, x: float, parent: Place | None) -> None:
        here = found[node.name] = Place(node, x, len(found) * _ROW + _ROW / 2, parent)
        below = children.get(node.name, [])
        for child in below:
            if child.name not in found:
                place(child, x if len(below) == 1 else x + _LANE, here)

    left = _LANE / 2 + 2
    place(Node(START, "", "", "start", {"": start}, "", ""), left, None)
    for node in nodes:  # a parent that is not in the recipe any more
        if node.name not in found:
            place(node, left, None)
    return list(found.values())


def draw(nodes: Sequence[Node], start: str) -> Markup:
    """The tree as HTML: a drawing, and beside it a list that reads well without it."""
    placed = places(nodes, start)
    width, height = max(one.x for one in placed) + _LANE / 2 + 2, len(placed) * _ROW
    drawing = [_link(one.parent, one) for one in placed if one.parent] + [_knot(one) for one in placed]
    items = [_item(one, nodes) for one in placed]
    return tag(
        "div",
        tag("svg", *drawing, width=width, height=height, aria_hidden="true"),
        tag("ol", *items),
        class_="tree",
    )


def _link(parent: Place, child: Place) -> Markup:
    if parent.x == child.x:
        return path(f"M{parent.x:g} {parent.y:g}V{child.y:g}", "link")
    bend = f"Q{parent.x:g} {child.y:g} {parent.x + _BEND:g} {child.y:g}H{child.x:g}"
    return path(f"M{parent.x:g} {parent.y:g}V{child.y - _BEND:g}{bend}", "link")


def _knot(one: Place) -> Markup:
    state, _ = _state(one.node)
    circle = tag("circle", class_=f"node {state}", cx=one.x, cy=one.y, r=7)
    return circle + (path(f"M{one.x} {one.y}{_SIGNS[state]}", "tick") if state in _SIGNS else Markup())


def _item(one: Place, nodes: Sequence[Node]) -> Markup:
    _, status = _state(one.node)
    named = [tag("b", one.node.name, title=one.node.name), " ", tag("span", status, class_="status") if status else ""]
    facts = tag("span", ": ".join(filter(None, (one.node.stage, _facts(one.node, nodes)))), class_="facts")
    return tag("li", tag("span", *named, class_="named"), " ", facts, style=f"padding-left: {one.x + 20:g}px")


def _state(node: Node) -> tuple[str, str]:
    return _STATES.get(node.status, ("open", node.status))


def _facts(node: Node, nodes: Sequence[Node]) -> str:
    """The settings that tell this node from others of its stage; for a stage that stands alone, its first ones."""
    peers = [other for other in nodes if other.stage == node.stage]
    plain = {name: value for name, value in node.settings.items() if name not in _UNINTERESTING and _is_plain(value)}
    names = [name for name in plain if len(peers) < 2 or any(one.settings.get(name) != plain[name] for one in peers)]
    return ", ".join(f"{name} {show(plain[name])}".strip() for name in names[:_MAX_FACTS])


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list) and value != ""
