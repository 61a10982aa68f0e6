"""What a checkpoint is worth: perplexity, divergence from a reference, agreement, speed, memory and size.

Names are resolved when first used: settings are read by commands that never measure anything.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from burnish.evaluate.evaluation import Evaluation
    from burnish.evaluate.paired import compare
    from burnish.evaluate.stage import Evaluate

_PUBLIC = {
    "Evaluate": "burnish.evaluate.stage",
    "Evaluation": "burnish.evaluate.evaluation",
    "compare": "burnish.evaluate.paired",
}

__all__ = ["Evaluate", "Evaluation", "compare"]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'burnish.evaluate' has no attribute {name!r}")
