"""Bootstrap intervals over sequences.

Tokens of one sequence depend on each other, so whole sequences are drawn. A statistic is a ratio of sums, such as nats
over tokens: Σ values / Σ weights of the drawn sequences.

With few sequences the plain percentile interval is too narrow: it misses the factor √(n/(n−1)) and uses normal in place
of Student quantiles. The levels are therefore widened to Φ(±√(n/(n−1)) t), t the Student quantile with n−1 degrees of
freedom (Hesterberg: What Teachers Should Know about the Bootstrap, 2014, arXiv:1411.5279, "expanded percentile").
For a large n it is the percentile interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import special

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; NaN bounds where one sequence gives none."""

    value: float
    low: float
    high: float


def bootstrap(
    values: Float[np.ndarray, " num"],
    weights: Float[np.ndarray, " num"],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Σ values / Σ weights over sequences, with a bootstrap interval.

    Args:
        values: one sum per sequence (nats, agreeing tokens).
        weights: what it is a sum over (tokens, bytes), one per sequence.
        confidence: of the interval.
        resamples: how many times sequences are drawn.
        seed: of the draws; equal seeds draw the same sequences, whatever the values.
    """
    values, weights = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    estimate = float(values.sum() / weights.sum())
    num = len(values)
    if num < 2:
        return Interval(estimate, math.nan, math.nan)
    counts = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=resamples)
    drawn = (counts @ values) / (counts @ weights)
    level = expanded_level(num, confidence)
    low, high = np.quantile(drawn, [level, 1 - level])
    return Interval(estimate, float(low), float(high))


def paired_bootstrap(
    first: Float[np.ndarray, " num"],
    second: Float[np.ndarray, " num"],
    weights: Float[np.ndarray, " num"],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Σ (first − second) / Σ weights, both measured on the same sequences.

    Drawing the differences keeps what is common to both (a hard text is hard for either) out of the interval.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap(difference, weights, confidence=confidence, resamples=resamples, seed=seed)


def expanded_level(num: int, confidence: float) -> float:
    """The lower percentile level that makes the bootstrap interval of `num` sequences as wide as Student's."""
    tail = (1 - confidence) / 2
    return float(special.ndtr(math.sqrt(num / (num - 1)) * special.stdtrit(num - 1, tail)))
