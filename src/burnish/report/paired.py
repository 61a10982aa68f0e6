"""Paired differences between two checkpoints that read the same sequences.

Both checkpoints saw the same text, so most of the spread between sequences is common to both and cancels in the
difference. With per-sequence sums a_i and b_i over w_i tokens the difference per token is

    d = sum_i (b_i - a_i) / sum_i w_i

and its interval comes from drawing sequences with replacement (the bootstrap). Sequences are the unit because tokens
within one are not independent. With few of them a percentile interval is too narrow, so its levels are widened to
those of Student's distribution (Hesterberg, "What Teachers Should Know about the Bootstrap", 2014, arXiv:1411.5279).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 4_000
LEVEL = 0.95
_CHUNK_BYTES = 32_000_000


@dataclass(frozen=True)
class Difference:
    """A difference with its percentile interval.

    Attributes:
        value, low, high: in the unit of the sums per weight.
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
        low, high = sorted((self.low * factor, self.high * factor))
        return Difference(self.value * factor, low, high, self.num_sequences)


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[float],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """The weighted mean of `after - before` and its bootstrap interval.

    Args:
        before, after: one sum per sequence, in the same order.
        weights: what the sums are divided by, such as tokens per sequence.
        resamples, level, seed: of the bootstrap; the seed is fixed so that a report is the same each time.

    Raises:
        ValueError: lengths differ, or there are fewer than two sequences.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    weight = np.asarray(weights, dtype=np.float64)
    if not len(first) == len(second) == len(weight) or len(first) < 2:
        raise ValueError(f"need equal lengths of at least 2, got {len(first)}, {len(second)} and {len(weight)}")
    change = second - first
    count = len(change)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_BYTES // (8 * count))
    draws = []
    for begin in range(0, resamples, rows):
        chosen = rng.integers(0, count, size=(min(rows, resamples - begin), count))
        draws.append(change[chosen].sum(axis=1) / weight[chosen].sum(axis=1))
    tail = float(stats.norm.cdf(math.sqrt(count / (count - 1)) * stats.t.ppf((1 - level) / 2, count - 1)))
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    return Difference(float(change.sum() / weight.sum()), float(low), float(high), count)
