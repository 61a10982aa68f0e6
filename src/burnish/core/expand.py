"""A node that is made of several: a stage may put a chain of other stages in its own place.

    - {name: narrow, stage: slim, target: 20%, rounds: 2, data: texts.jsonl}

becomes `narrow.cut1 -> narrow.distill1 -> narrow.cut2 -> narrow`. The last node keeps the name, so that whatever
followed `narrow`, or names it, still does. Every part is a node like any other: planned before anything runs, run in
a process of its own, measured, and skipped once it is finished.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from burnish.core.errors import BurnishError, RecipeError, located
from burnish.core.kinds import Plan
from burnish.core.recipe import START, Node, Recipe
from burnish.core.stage import Stage


def expanded(
    recipe: Recipe,
    stages: dict[str, Stage],
    *,
    read: Callable[[Node], Stage],
    plan_start: Callable[[], Plan],
) -> tuple[Recipe, dict[str, Stage]]:
    """The recipe with every node in its parts, and the settings of every node.

    Args:
        recipe: as written.
        stages: the settings of its nodes.
        read: settings of a node that a stage made.
        plan_start: the plan of the start checkpoint; asked for only where a stage needs to know what it is given.

    Raises:
        RecipeError: a part has the name of another node.
        SettingsError: whatever a stage, or the plan of what comes before it, refuses.
    """
    nodes: dict[str, Node] = {}
    found = dict(stages)
    plans: dict[str, Plan] = {}

    def planned(name: str) -> Plan:
        if name not in plans:
            plans[name] = plan_start() if name == START else plan_node(nodes[name], found[name], planned)
        return plans[name]

    for node in recipe.nodes:
        try:
            parts = stages[node.name].expand(node, lambda node=node: planned(node.parent))
        except BurnishError as error:
            raise located(error, place_of(node)) from None
        for part in parts:
            if part.name in nodes or (part is not parts[-1] and part.name in stages):
                raise RecipeError(
                    f"{node.name!r} is made of several nodes, one of them called {part.name!r}, as another node is",
                    where=node.where,
                    fix="give the other one another name",
                )
            nodes[part.name] = part
            if part is not node:
                found[part.name] = read(part)
    return replace(recipe, nodes=tuple(nodes.values())), found


def plan_node(node: Node, stage: Stage, planned: Callable[[str], Plan]) -> Plan:
    """What a node would make; errors say which node."""
    # What the parent costs and has to say is the parent's own.
    before = planned(node.parent).with_(peak_memory_bytes=0, seconds=None, notes=())
    stage.check_accepts(before, where=place_of(node))
    try:
        return stage.plan(before)
    except BurnishError as error:
        raise located(error, place_of(node)) from None


def place_of(node: Node) -> str:
    """Where the recipe names a node, for errors."""
    return f"{node.where}, node {node.name!r}"
