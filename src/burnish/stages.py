"""The table of stages: the verb of a recipe and of the command line, and the class behind it, imported when needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from burnish.core.errors import RecipeError, nearest
from burnish.core.runner import Rooms

if TYPE_CHECKING:
    from burnish.core.settings import Settings
    from burnish.core.stage import Stage

STAGES: dict[str, str] = {
    "align": "burnish.align.stage:Align",
    "distill": "burnish.distill.stage:Distill",
    "quantize": "burnish.quantize.stage:Quantize",
    "slim": "burnish.slim.stage:Slim",
    "train": "burnish.train.stage:Train",
    "upcycle": "burnish.convert.stage:Upcycle",
}


def stage_class(name: str, *, where: str = "recipe") -> type[Stage]:
    """The class of a stage; an unknown name suggests the nearest one."""
    if name not in STAGES:
        guess = nearest(name, list(STAGES))
        advice = f"did you mean {guess!r}?" if guess else f"stages are {', '.join(STAGES)}"
        raise RecipeError(f"there is no stage {name!r}", where=where, fix=advice)
    module, _, attribute = STAGES[name].partition(":")
    return getattr(import_module(module), attribute)


def _evaluate_class() -> type[Settings]:
    from burnish.evaluate.stage import Evaluate

    return Evaluate


def _data_hash(reference: str) -> str:
    from burnish.align.pairs import holds_pairs, pairs_hash
    from burnish.data import data_hash

    return pairs_hash(reference) if holds_pairs(reference) else data_hash(reference)


ROOMS = Rooms(stage_class, _evaluate_class, _data_hash)
"""What the runner needs from the rooms above core."""
