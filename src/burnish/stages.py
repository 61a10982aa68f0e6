"""Stages by name: the class behind the verb of a recipe, imported when needed. The rows are in `burnish.methods`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from burnish.core.errors import RecipeError, nearest
from burnish.core.runner import Rooms
from burnish.methods import VERBS

if TYPE_CHECKING:
    from burnish.core.settings import Settings
    from burnish.core.stage import Stage


def stage_class(name: str, *, where: str = "recipe") -> type[Stage]:
    """The class of a stage; an unknown name suggests the nearest one."""
    if name not in VERBS:
        guess = nearest(name, list(VERBS))
        advice = f"did you mean {guess!r}?" if guess else f"stages are {', '.join(sorted(VERBS))}"
        raise RecipeError(f"there is no stage {name!r}", where=where, fix=advice)
    verb = VERBS[name]
    return getattr(import_module(verb.module), verb.class_name)


def _evaluate_class() -> type[Settings]:
    from burnish.evaluate.stage import Evaluate

    return Evaluate


def _data_hash(reference: str) -> str:
    from burnish.data import data_hash, files_digest
    from burnish.data.preferences import holds_pairs, pairs_hash
    from burnish.data.trajectories.read import holds_episodes
    from burnish.verify.problems import holds_problems

    if holds_episodes(reference) or holds_problems(reference):
        return files_digest(reference)
    return pairs_hash(reference) if holds_pairs(reference) else data_hash(reference)


ROOMS = Rooms(stage_class, _evaluate_class, _data_hash)
"""What the runner needs from the rooms above core."""
