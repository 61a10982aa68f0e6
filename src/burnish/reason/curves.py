"""What m samples say about n of them: exact expectations over all subsets, so that one run gives whole curves.

    vote     E[score of the most frequent answer of n samples drawn from m], equal frequencies shared equally
    best     E[highest score of n samples drawn from m], for right and wrong answers pass@n

A vote is a multivariate hypergeometric draw. With clusters of c_1 .. c_g equal answers and c_0 samples without one, the
subsets of size n in which cluster j is drawn a times, t others as often and the rest less often are the coefficient of
x^(n - a) y^t in

    C(c_j, a) (1 + x)^c_0 prod_{i != j} ( sum_{b < a} C(c_i, b) x^b + y C(c_i, a) x^a ),

and in 1 / (t + 1) of them, by symmetry of the order, j comes first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float


def votes(clusters: Sequence[int | None], scores: Sequence[float]) -> Float[np.ndarray, " num"]:
    """For n = 1 .. m the expected score of a vote.

    Args:
        clusters: of each sample its cluster, None without an answer, which has no vote and earns nothing.
        scores: of each cluster.
    """
    sizes = [sum(one == place for one in clusters) for place in range(len(scores))]
    pairs = sorted((size, score) for size, score in zip(sizes, scores, strict=True) if size)
    return _votes(tuple(size for size, _ in pairs), tuple(score for _, score in pairs), len(clusters)).copy()


@cache
def _votes(sizes: tuple[int, ...], scores: tuple[float, ...], num: int) -> Float[np.ndarray, " num"]:
    found = np.zeros(num + 1)
    for own, (size, score) in enumerate(zip(sizes, scores, strict=True)):
        if not score:
            continue
        others = sizes[:own] + sizes[own + 1 :]
        for times in range(1, size + 1):
            ways = _ways(others, times, num - sum(sizes), num - times)  # "t others, s samples" -> number of subsets
            shares = ways.T @ (1 / np.arange(1, len(ways) + 1))
            found[times:] += score * math.comb(size, times) * shares
    return found[1:] / [math.comb(num, drawn) for drawn in range(1, num + 1)]


def _ways(others: tuple[int, ...], times: int, silent: int, most: int) -> Float[np.ndarray, "ties samples"]:
    """Numbers of subsets of the other samples, by how many clusters are drawn `times` times and none more often."""
    small = silent + sum(size for size in others if size < times)
    large = [size for size in others if size >= times]
    ways = np.zeros((len(large) + 1, most + 1))
    ways[0, : small + 1] = [math.comb(small, drawn) for drawn in range(min(small, most) + 1)]
    for size in large:
        grown = np.zeros_like(ways)
        for drawn in range(min(times - 1, most) + 1):
            grown[:, drawn:] += math.comb(size, drawn) * ways[:, : most + 1 - drawn]
        if times <= most:
            grown[1:, times:] += math.comb(size, times) * ways[:-1, : most + 1 - times]
        ways = grown
    return ways


def best(scores: Sequence[float]) -> Float[np.ndarray, " num"]:
    """For n = 1 .. m the expected highest score."""
    rising, num = sorted(scores), len(scores)
    found = [
        sum(score * math.comb(place, drawn - 1) for place, score in enumerate(rising)) / math.comb(num, drawn)
        for drawn in range(1, num + 1)
    ]
    return np.array(found)


def between(curve: Float[np.ndarray, "... num"], number: float) -> Float[np.ndarray, ...]:
    """The last axis at a real number of samples: that of both neighbours, each as often as it is near."""
    lower = min(math.floor(number), curve.shape[-1])
    upper = min(lower + 1, curve.shape[-1])
    share = number - lower
    return (1 - share) * curve[..., lower - 1] + share * curve[..., upper - 1]
