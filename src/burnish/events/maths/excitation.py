"""Hawkes processes whose kernels are sums of exponentials with given decays: what excites, and the best likelihood.

    lam_k(t) = mu_k + sum_d sum_m A_d[k, m] x_{d,m}(t),    x_{d,m}(t) = sum over events of type m before t of
                                                                        exp(-b_d (t - t_i))

With the decays given the log-likelihood is concave in mu and A and falls apart into one problem a type,

    l_k = sum over events i of type k of log(mu_k + a_k.x(t_i))  -  mu_k T  -  a_k.X,      X = int x dt,

so that no more than the events of that type count one by one. At its maximum the parts w_p = a_p X_p / n of the n
events that each term explains add up to one. A decay between two of a grid with ratio two is made up of both: the
hazard is then off by two per cent at most, which is about 1e-4 nats an event.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

SMALLEST_BASE = 1e-4
"""Share of the events of a type that come unexcited, at least: a hazard is never zero."""


def excitement(
    gaps: Sequence[Array], marks: Sequence[NDArray[np.int64]], decays: Array, num_marks: int
) -> NDArray[np.float64]:
    """(N, D, K) x right after the event before each event, of all sequences one after the other.

    Args:
        gaps, marks: of every sequence; a mark of -1 excites nothing.
    """
    lengths = np.array([len(gap) for gap in gaps])
    order = np.argsort(-lengths, kind="stable")
    offsets = np.cumsum([0, *lengths])[:-1][order]
    all_gaps, all_marks = np.concatenate(gaps), np.concatenate(marks)
    result = np.zeros((len(all_gaps), len(decays), num_marks))
    x = np.zeros((len(lengths), len(decays), num_marks))
    for i in range(int(lengths.max(initial=0))):
        rows = offsets[: np.searchsorted(-lengths[order], -i)] + i  # of the sequences that are longer
        x = x[: len(rows)]
        result[rows] = x
        x *= np.exp(-np.multiply.outer(all_gaps[rows], decays))[:, :, None]
        mark = all_marks[rows]
        excites = np.flatnonzero(mark >= 0)
        x[excites, :, mark[excites]] += 1
    return result


def maximum_likelihood(features: Array, exposure: Array, length: float) -> tuple[float, Array]:
    """(mu, a) that maximise sum_i log(mu + a.features_i) - mu length - a.exposure over numbers that are not negative.

    Args:
        features: (n, P) x just before each of the n events.
        exposure: (P,) int x dt, positive.
        length: T.
    """
    n, num_terms = len(features), features.shape[1]
    if n == 0:
        return SMALLEST_BASE / length, np.zeros(num_terms)
    density = np.concatenate([np.full((n, 1), 1 / length), features / exposure], axis=1)
    density /= density.mean()

    def objective(share: Array) -> tuple[float, Array]:
        mixture = density @ share
        return float(share.sum() - np.log(mixture).mean()), 1 - (1 / mixture) @ density / n

    start = np.full(num_terms + 1, 0.5 / max(num_terms, 1))
    start[0] = 0.5
    bounds = [(SMALLEST_BASE, None), *[(0.0, None)] * num_terms]
    found = minimize(objective, start, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 300})
    share = found.x / found.x.sum() * n
    return float(share[0] / length), share[1:] / exposure


def decay_grid(fastest: float, slowest: float, at_least: int = 2) -> Array:
    """Decays from the slowest to the fastest, each at most twice the one before, and so many at least."""
    count = max(1 + int(np.ceil(np.log2(fastest / slowest))), at_least, 2)
    return np.geomspace(slowest, fastest, count)
