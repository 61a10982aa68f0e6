"""What a checkpoint is worth: perplexity, divergence from a reference, agreement, speed, memory and size."""

from burnish.evaluate.compare import compare
from burnish.evaluate.stage import Evaluate, Evaluation

__all__ = ["Evaluate", "Evaluation", "compare"]
