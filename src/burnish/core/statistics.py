"""How far a figure measured on n sequences may be from that of all text like them: intervals, paired ones included.

A figure is a ratio of sums over sequences, R = Σ v / Σ w: nats over tokens, a difference of nats over tokens, or one
divergence over another. Tokens of one sequence depend on each other, so a sequence is one observation. Its deviation
r = v − R w gives the standard error of the ratio,

    e = √(n / (n − 1) · Σ r²) / Σ w,

and Student's t with n − 1 degrees of freedom the interval R ± t e. It holds from two sequences on. Quantiles of a
bootstrap do not: all n drawn sequences lie on one side of the mean with probability 2^(1−n), so that no such interval
covers more than 50, 75 or 88 % for n = 2, 3 or 4. `docs/methods/evaluation.md` has the simulated coverage.

It holds for sequences that are drawn independently. Windows that follow each other in one text are not: what they share
(an article, its topic) stays out of the error, and the interval speaks of that stretch of text.

A divergence is positive and skewed to the right, and its interval is symmetric in the logarithm: R exp(± t e / R). A
share is symmetric in its logit and stays between 0 and 1. Both are the delta method: the standard error of f(R) is
|f'(R)| e (Cochran, Sampling Techniques, 3rd edition 1977, chapters 2 and 6).

A share that is nearly 0 or 1 has too few of the rarer outcome for an error to be estimated: of 99.9 % of 128 tokens
such an interval holds the truth 12 times in 100, and of 100 % it is a point. With fewer than ten of the rarer outcome
it reaches at least as far as the interval of Clopper and Pearson (The use of confidence or fiducial limits, Biometrika
26, 1934), which is that of as many independent tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

FEW = 10
"""Of the rarer outcome: below, the interval of a share is at least that of as many independent items."""

Scale = Literal["linear", "log", "logit"]
"""On which an interval is symmetric: of a signed figure, of a positive one, of a share."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; NaN bounds where one sequence gives none."""

    value: float
    low: float
    high: float

    def map(self, rising: Callable[[float], float]) -> Interval:
        """Of a rising function of the figure, such as exp for the perplexity of a mean loss."""
        return Interval(rising(self.value), rising(self.low), rising(self.high))


def interval(
    values: Float[np.ndarray, " num"],
    weights: Float[np.ndarray, " num"] | None = None,
    *,
    scale: Scale = "linear",
    confidence: float = 0.95,
) -> Interval:
    """Σ values / Σ weights over sequences, with its interval.

    Args:
        values: one sum per sequence (nats, agreeing tokens).
        weights: what it is a sum over (tokens, bytes), one per sequence; without them the figure is a mean.
        scale: `log` for what is positive, `logit` for what lies between 0 and 1, where values and weights, if there are
            any, are counts. A figure on the edge of its scale or beyond, as rounding can make a divergence, has the
            linear interval.
        confidence: of the interval.
    """
    values = np.asarray(values, dtype=np.float64)
    counts = weights is not None
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    ratio, num = float(values.sum() / weights.sum()), len(values)
    if num < 2:
        return Interval(ratio, math.nan, math.nan)
    deviations = values - ratio * weights
    error = math.sqrt(num / (num - 1) * float(deviations @ deviations)) / float(weights.sum())
    half = student_quantile(num, confidence) * error
    low, high = ratio - half, ratio + half
    if scale == "log" and ratio > 0:
        factor = math.exp(min(half / ratio, 700.0))  # a larger one is no double
        low, high = ratio / factor, ratio * factor
    elif scale == "logit" and 0 < ratio < 1:
        odds, factor = ratio / (1 - ratio), math.exp(min(half / (ratio * (1 - ratio)), 300.0))
        low, high = odds / (odds + factor), odds * factor / (1 + odds * factor)
    if scale == "logit" and counts and min(values.sum(), (weights - values).sum()) < FEW:
        exact = exact_share(float(values.sum()), float(weights.sum()), confidence)
        low, high = min(low, exact.low), max(high, exact.high)
    return Interval(ratio, min(low, ratio), max(high, ratio))  # rounding, where the interval is a point


def exact_share(hits: float, num: float, confidence: float = 0.95) -> Interval:
    """hits / num of independent items, with the interval of Clopper and Pearson, which holds at least as often as said.

    Its ends are the shares p at which as many hits, or more (fewer), have a probability of (1 − confidence) / 2.
    """
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = 0.0 if hits <= 0 else float(betaincinv(hits, num - hits + 1, tail))
    high = 1.0 if hits >= num else float(betaincinv(hits + 1, num - hits, 1 - tail))
    return Interval(hits / num, low, high)


def paired_interval(
    first: Float[np.ndarray, " num"],
    second: Float[np.ndarray, " num"],
    weights: Float[np.ndarray, " num"] | None = None,
    *,
    confidence: float = 0.95,
) -> Interval:
    """Σ (first − second) / Σ weights, both measured on the same sequences.

    The differences are the observations, so what is common to both, as a hard text is, leaves the interval.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return interval(difference, weights, confidence=confidence)


def mcnemar(only_first: int, only_second: int) -> float:
    """The probability of so uneven a split, or one more uneven, where neither side is better: McNemar's test, exact.

        p = min(1, 2 Σ_{i <= min(b, c)} C(b + c, i) / 2^(b + c))

    Args:
        only_first, only_second: items, b and c, that one side alone gets right; others say nothing of a difference.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions, 1947.
    """
    from scipy.special import bdtr

    num, fewer = only_first + only_second, min(only_first, only_second)
    return 1.0 if num == 0 else min(1.0, 2 * float(bdtr(fewer, num, 0.5)))


def student_quantile(num: int, confidence: float = 0.95) -> float:
    """How many standard errors an interval of `num` observations reaches to either side: 12.7 for 2, 1.96 for many."""
    from scipy.special import stdtrit  # here, so that commands which compute nothing start without scipy

    return float(stdtrit(num - 1, (1 + confidence) / 2))
