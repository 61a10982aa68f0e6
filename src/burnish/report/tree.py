"""The recipe as a tree: nested lists, in which an only child follows below its parent and several branch off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.recipe import START
from burnish.report.protocols import show
from burnish.report.run import NodeRecord

_UNINTERESTING = {"seed", "device", "workers", "progress"}
_MAX_FACTS = 4
_STATES = {
    "finished": ("done", "finished"),
    "skipped": ("done", "unchanged, not run again"),
    "dropped": ("done", "finished, checkpoint not kept"),
    "running": ("open", "not finished"),
    "waiting": ("open", "not run yet"),
    "failed": ("failed", "failed"),
}


@dataclass(frozen=True)
class Branch:
    """A node with what was made from it; `state` is the class it is drawn with, `status` what is said."""

    name: str
    facts: str
    state: str
    status: str
    children: list[Branch]


def tree(nodes: Sequence[NodeRecord], start: str) -> list[Branch]:
    """The start with everything that came from it, and nodes whose parent is not in the recipe any more."""
    names = {START} | {node.name for node in nodes}
    lost = [_branch(node, nodes) for node in nodes if node.parent not in names]
    return [Branch(START, start, "start", "", _children(START, nodes)), *lost]


def _children(name: str, nodes: Sequence[NodeRecord]) -> list[Branch]:
    return [_branch(node, nodes) for node in nodes if node.parent == name]


def _branch(node: NodeRecord, nodes: Sequence[NodeRecord]) -> Branch:
    state, status = _STATES.get(node.status, ("open", node.status))
    facts = ": ".join(filter(None, (node.stage, _facts(node, nodes))))
    return Branch(node.name, facts, state, status, _children(node.name, nodes))


def _facts(node: NodeRecord, nodes: Sequence[NodeRecord]) -> str:
    """The settings that tell this node from others of its stage; for a stage that stands alone, its first ones."""
    peers = [other for other in nodes if other.stage == node.stage]
    plain = {name: value for name, value in node.settings.items() if name not in _UNINTERESTING and _is_plain(value)}
    names = [name for name in plain if len(peers) < 2 or any(one.settings.get(name) != plain[name] for one in peers)]
    return ", ".join(f"{name} {show(plain[name])}" for name in names[:_MAX_FACTS])


def _is_plain(value: Any) -> bool:
    return value is not None and not isinstance(value, dict | list) and value != ""
