"""Optimizers by name: the class behind a word of a recipe, a command or a parameter group, imported when needed.

The names are those of the rows of `burnish.methods`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from burnish.core.errors import SettingsError, nearest
from burnish.methods import OPTIMIZER_CLASSES

if TYPE_CHECKING:
    from burnish.optim.optimizer import MatrixOptimizer


def optimizer_class(name: str, *, where: str = "optimizer") -> type[MatrixOptimizer]:
    """The class of an optimizer.

    Raises:
        SettingsError: there is none of that name; suggests the nearest.
    """
    if name not in OPTIMIZER_CLASSES:
        guess = nearest(str(name), list(OPTIMIZER_CLASSES))
        advice = f"did you mean {guess!r}?" if guess else f"algorithms are {', '.join(OPTIMIZER_CLASSES)}"
        raise SettingsError(f"there is no algorithm {name!r}", where=where, fix=advice)
    module, _, attribute = OPTIMIZER_CLASSES[name].partition(":")
    return getattr(import_module(module), attribute)
