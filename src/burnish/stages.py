"""The table of stages: the verb of a recipe and of the command line, and the class behind it, imported when needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from burnish.core.errors import RecipeError, nearest

if TYPE_CHECKING:
    from burnish.core.stage import Stage

STAGES: dict[str, str] = {
    "quantize": "burnish.quantize.stage:Quantize",
}


def stage_class(name: str, *, where: str = "recipe") -> type[Stage]:
    """The class of a stage; an unknown name suggests the nearest one."""
    if name not in STAGES:
        guess = nearest(name, list(STAGES))
        advice = f"did you mean {guess!r}?" if guess else f"stages are {', '.join(STAGES)}"
        raise RecipeError(f"there is no stage {name!r}", where=where, fix=advice)
    module, _, attribute = STAGES[name].partition(":")
    return getattr(import_module(module), attribute)
