"""Paired differences between two checkpoints that read the same sequences.

Both checkpoints saw the same text, so most of the spread between sequences is common to both and cancels in the
difference. The bootstrap is the evaluation's own, so that page and measurement quote the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from burnish.evaluate.maths.bootstrap import paired_bootstrap


@dataclass(frozen=True)
class Difference:
    """A difference per token (or byte) with its 95 % interval.

    Attributes:
        value, low, high: after minus before.
        num_sequences: how many pairs it rests on.
    """

    value: float
    low: float
    high: float
    num_sequences: int

    @property
    def within_noise(self) -> bool:
        """Whether the interval includes 0: the sign of the difference is not known."""
        return self.low <= 0 <= self.high

    def scaled(self, factor: float) -> Difference:
        """In another unit; `factor` is positive."""
        return Difference(self.value * factor, self.low * factor, self.high * factor, self.num_sequences)


def paired_difference(before: Sequence[float], after: Sequence[float], weights: Sequence[float]) -> Difference:
    """The weighted mean of `after - before` and its interval.

    Args:
        before, after: one sum per sequence, in the same order; at least two.
        weights: what the sums are divided by, such as tokens per sequence.
    """
    found = paired_bootstrap(*(np.asarray(column, dtype=np.float64) for column in (after, before, weights)))
    return Difference(found.value, found.low, found.high, len(weights))
