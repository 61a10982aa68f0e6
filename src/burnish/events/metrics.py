"""How good and how honest a probabilistic forecast of times, marks and places is.

    coverage at q       share of gaps below the q-quantile
    calibration score   sqrt(mean over levels of (coverage_q - q)^2)
    PIT                 F(gap), uniform for the true law; its Kolmogorov-Smirnov distance is the strictest test
    CRPS                int (F(x) - 1{y <= x})^2 dx, from samples, from quantiles (2 x mean pinball) or from F itself
    ECE                 |confidence - accuracy| averaged over ten bins of the top probability

Definitions follow SMURF-THP (arXiv 2310.16336), except that every level set is named: its calibration score is quoted
there over levels from 0.5 up. Errors are bootstrap standard errors over sequences, since events of one sequence depend
on each other; drawing n sequences from n makes them too small by √(1 − 1/n), which is made good.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from burnish.core.statistics import student_quantile

Array = NDArray[np.float64]

LEVELS_19 = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""0.05, 0.10, ... 0.95."""

LEVELS_UPPER = tuple(level for level in LEVELS_19 if level >= 0.5)
"""0.5, ... 0.95, the levels of the published headline."""


def coverage(pit: Array, levels: tuple[float, ...] = LEVELS_19) -> Array:
    """(levels,) share of gaps below their q-quantile, which is the share of PIT values below q."""
    return np.array([(pit < level).mean() for level in levels])


def calibration_score(pit: Array, levels: tuple[float, ...] = LEVELS_19) -> float:
    """sqrt(mean_q (coverage_q - q)^2)."""
    return float(np.sqrt(np.mean((coverage(pit, levels) - np.array(levels)) ** 2)))


def chance_score(
    num_events: int, levels: tuple[float, ...] = LEVELS_19, *, squared: bool = True, num_draws: int = 4000
) -> tuple[float, float]:
    """Mean and 95 % quantile of the calibration score of the true law, which by chance is not zero on so many events.

    The PIT values of the true law are independent and uniform whatever the events depend on, so counts below the levels
    are multinomial: no model is below the mean but by luck, and what is below the quantile may be the truth.

    Args:
        num_events: that are scored.
        levels: of the score.
        squared: whether it is the root of a mean square, or a mean of absolute errors as for places.
        num_draws: of all counts at once.
    """
    counts = np.random.default_rng(0).multinomial(num_events, np.diff([0.0, *levels, 1.0]), size=num_draws)
    errors = counts[:, :-1].cumsum(1) / num_events - np.array(levels)
    scores = np.sqrt(np.square(errors).mean(1)) if squared else np.abs(errors).mean(1)
    return float(scores.mean()), float(np.quantile(scores, 0.95))


def central_coverage(pit: Array, level: float) -> float:
    """Share of gaps inside [Q_{(1-level)/2}, Q_{(1+level)/2}]."""
    return float(((pit > (1 - level) / 2) & (pit < (1 + level) / 2)).mean())


def share_error(inside: NDArray[np.bool_], groups: NDArray[np.int64], *, num_draws: int = 200, seed: int = 0) -> Array:
    """(m,) standard errors of the shares `inside.mean(0)` under resampling whole sequences.

    Args:
        inside: (n, m), such as `pit[:, None] < levels` for coverages.
        groups: (n,) sequence of every event; with a single sequence the errors are binomial.
    """
    names, member = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        share = inside.mean(0)
        return np.sqrt(share * (1 - share) / max(len(inside), 1))
    hits = np.stack([np.bincount(member, weights=column) for column in inside.T], axis=1)
    weight = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=num_draws)
    shares = (weight @ hits) / (weight @ np.bincount(member))[:, None]
    return shares.std(axis=0, ddof=1) * np.sqrt(len(names) / (len(names) - 1))


def share_reach(inside: NDArray[np.bool_], groups: NDArray[np.int64]) -> Array:
    """(m,) how far 95 % intervals of the shares reach to either side; arguments as for `share_error`."""
    num_sequences = len(np.unique(groups))
    return share_error(inside, groups) * student_quantile(num_sequences if num_sequences > 1 else max(len(inside), 2))


def pit_ks(pit: Array) -> float:
    """Kolmogorov-Smirnov distance of the PIT values to the uniform law."""
    from scipy.stats import kstest  # a second of the start of a server, which asks for other numbers

    return float(kstest(pit, "uniform").statistic)


def crps_from_samples(samples: NDArray[np.float64], observed: Array, *, estimator: str = "nrg") -> Array:
    """mean|X - y| - mean|X - X'|/2 for every row of samples.

    Args:
        samples: (n, m).
        estimator: "nrg" divides the second mean by m^2, "fair" by m (m - 1), which is unbiased.
    """
    ordered = np.sort(samples, axis=1)
    m = samples.shape[1]
    # sum over pairs |x_i - x_j| = 2 sum_i (2 i - m - 1) x_(i) in sorted order, i from 1
    spread = 2 * (ordered * (2 * np.arange(1, m + 1) - m - 1)).sum(1)
    pairs = m * m if estimator == "nrg" else m * (m - 1)
    return np.abs(samples - observed[:, None]).mean(1) - spread / (2 * pairs)


def pinball(quantiles: NDArray[np.float64], observed: Array, levels: Array) -> NDArray[np.float64]:
    """(n, levels) max(q (y - Q), (q - 1)(y - Q))."""
    error = observed[:, None] - quantiles
    return np.maximum(levels * error, (levels - 1) * error)


def crps_from_quantiles(quantiles: NDArray[np.float64], observed: Array) -> Array:
    """2 x mean pinball loss over a uniform grid of levels (j - 1/2)/m, which `quantiles` (n, m) must be taken at."""
    m = quantiles.shape[1]
    return 2 * pinball(quantiles, observed, (np.arange(m) + 0.5) / m).mean(1)


def accuracy(probs: NDArray[np.float64], marks: NDArray[np.int64]) -> Array:
    """(n,) whether the most probable mark came."""
    return (probs.argmax(1) == marks).astype(np.float64)


def expected_calibration_error(probs: NDArray[np.float64], marks: NDArray[np.int64], num_bins: int = 10) -> float:
    """sum over bins of the top probability: (share in bin) |mean top probability - accuracy|."""
    confidence = probs.max(1)
    hit = probs.argmax(1) == marks
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    total = 0.0
    for b in range(num_bins):
        inside = bins == b
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - hit[inside].mean())
    return float(total)


def energy_score(samples: NDArray[np.float64], observed: NDArray[np.float64]) -> Array:
    """E|X - y| - E|X - X'|/2 for places: the two-dimensional CRPS.

    Args:
        samples: (n, m, 2); the second mean is over disjoint halves of them.
        observed: (n, 2).
    """
    half = samples.shape[1] // 2
    distance = np.linalg.norm(samples - observed[:, None], axis=-1).mean(1)
    spread = np.linalg.norm(samples[:, :half] - samples[:, half : 2 * half], axis=-1).mean(1)
    return distance - spread / 2


def bootstrap_error(
    statistic: Callable[[NDArray[np.int64]], float], groups: NDArray[np.int64], *, num_draws: int = 200, seed: int = 0
) -> float:
    """Standard error of a statistic under resampling whole sequences.

    Args:
        statistic: takes the indices of events (with repeats) and gives a number.
        groups: (n,) sequence of every event, of at least two sequences.
    """
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(num_draws):
        drawn = rng.integers(len(members), size=len(members))
        values.append(statistic(np.concatenate([members[i] for i in drawn])))
    return float(np.std(values, ddof=1) * np.sqrt(len(members) / (len(members) - 1)))
