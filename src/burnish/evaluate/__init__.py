"""What a checkpoint is worth: perplexity, divergence from a reference, agreement, speed, memory and size.

Names are resolved when first used: settings are read by commands that never measure anything.
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.evaluate.evaluation import Evaluation
    from burnish.evaluate.pair_settings import PairMeasurement
    from burnish.evaluate.paired import compare
    from burnish.evaluate.pairs import measure_pairs
    from burnish.evaluate.stage import Evaluate

_PUBLIC = {
    "Evaluate": ".stage",
    "Evaluation": ".evaluation",
    "PairMeasurement": ".pair_settings",
    "compare": ".paired",
    "measure_pairs": ".pairs",
}

__all__ = ["Evaluate", "Evaluation", "PairMeasurement", "compare", "measure_pairs"]

__getattr__, __dir__ = lazy(__name__, _PUBLIC)
