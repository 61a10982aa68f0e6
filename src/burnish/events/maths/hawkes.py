"""Exponential-kernel Hawkes processes: likelihood, compensator, exact quantiles and exact simulation.

    lam_k(t) = mu_k + sum_{t_i < t} A[k, m_i] exp(-b (t - t_i))

With one decay b the excitation x (K numbers, right after the last event) is a full summary of the history, and in the
next gap the total intensity is m + R exp(-b s) with m = sum mu, R = sum x. Hence

    Lam(s) = m s + (R/b) (1 - exp(-b s)),

which Lambert's W inverts: a gap is drawn exactly, without thinning (Ozaki 1979 for the likelihood; the inversion is
elementary: with E = Lam(s), c = (E - R/b)/m, s = c + W((R/m) exp(-b c))/b).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

Numbers = float | int | NDArray[Any]
"""A number or an array of them."""


def gap_quantile(q: Numbers, base: Numbers, excitation: Numbers, decay: float) -> NDArray[np.float64]:
    """The q-quantile of the next gap under total intensity base + excitation exp(-decay s). Arrays broadcast."""
    exponent = -np.log1p(-np.asarray(q, np.float64))
    base, excitation = np.asarray(base, np.float64), np.asarray(excitation, np.float64)
    shift = (exponent - excitation / decay) / base
    with np.errstate(divide="ignore"):
        log_argument = np.log(excitation / base) - decay * shift
    # W(exp(y)) overflows in exp for large y; there Newton on w + log w = y from w = y - log y converges fast.
    large = log_argument > 100
    small_w = np.real(lambertw(np.exp(np.where(large, 0.0, log_argument))))
    y = np.where(large, log_argument, 100.0)
    large_w = y - np.log(y)
    for _ in range(4):
        large_w = large_w - (large_w + np.log(large_w) - y) / (1 + 1 / large_w)
    gap = shift + np.where(large, large_w, small_w) / decay
    # A last Newton step on the compensator itself removes the cancellation in `shift + w / decay` for short gaps.
    gap = np.maximum(gap, 0.0)
    for _ in range(2):
        residual = gap_compensator(gap, base, excitation, decay) - exponent
        gap = np.maximum(gap - residual / (base + excitation * np.exp(-decay * gap)), 0.0)
    return np.asarray(gap)


def gap_compensator(gap: Numbers, base: Numbers, excitation: Numbers, decay: float) -> NDArray[np.float64]:
    """base s + (excitation/decay) (1 - exp(-decay s))."""
    gap = np.asarray(gap, np.float64)
    return np.asarray(base * gap - np.asarray(excitation) / decay * np.expm1(-decay * gap))


def simulate_sequence(
    mu: NDArray[np.float64],
    jumps: NDArray[np.float64],
    decay: float,
    rng: np.random.Generator,
    *,
    num_events: int | None = None,
    end: float | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Times and marks of one sequence from time 0, stopped after `num_events` events or at time `end`.

    With a fixed number of events no gap is censored and every probability integral transform is exactly uniform;
    stopping at a time loses the gaps that cross it and biases the transform by about 1/N.
    """
    t, excitation = 0.0, np.zeros(len(mu))
    times: list[float] = []
    marks: list[int] = []
    while num_events is None or len(times) < num_events:
        gap = float(gap_quantile(rng.random(), mu.sum(), excitation.sum(), decay))
        if end is not None and t + gap > end:
            break
        t += gap
        excitation = excitation * np.exp(-decay * gap)
        intensity = mu + excitation
        mark = int(rng.choice(len(mu), p=intensity / intensity.sum()))
        excitation = excitation + jumps[:, mark]
        times.append(t)
        marks.append(mark)
    return np.array(times, np.float64), np.array(marks, np.int64)


def excitation_path(
    times: NDArray[np.float64], marks: NDArray[np.int64], jumps: NDArray[np.float64], decay: float
) -> NDArray[np.float64]:
    """(N + 1, K) excitation right after the start and right after every event."""
    path = np.zeros((len(times) + 1, jumps.shape[0]))
    gaps = np.diff(times, prepend=0.0)
    for i, (gap, mark) in enumerate(zip(gaps, marks, strict=True)):
        path[i + 1] = path[i] * np.exp(-decay * gap) + jumps[:, mark]
    return path


def log_likelihood(
    times: NDArray[np.float64],
    marks: NDArray[np.int64],
    mu: NDArray[np.float64],
    jumps: NDArray[np.float64],
    decay: float,
    *,
    end: float | None = None,
) -> float:
    """sum_i [log lam_{k_i}(t_i) - Lam(gap_i)] - Lam(end - t_N), the last term only if `end` is given."""
    path = excitation_path(times, marks, jumps, decay)
    gaps = np.diff(times, prepend=0.0)
    before = mu + path[:-1] * np.exp(-decay * gaps)[:, None]
    total = np.log(before[np.arange(len(marks)), marks]).sum()
    total -= gap_compensator(gaps, mu.sum(), path[:-1].sum(1), decay).sum()
    if end is not None:
        total -= gap_compensator(end - times[-1], mu.sum(), path[-1].sum(), decay)
    return float(total)
