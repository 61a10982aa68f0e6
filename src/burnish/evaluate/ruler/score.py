"""What RULER's metric says by depth.

A needle is asked for at every depth in the same haystack, so that depths are compared on the same samples: a
difference of two depths has a paired interval over samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from burnish.core.statistics import interval, paired_interval

PERMUTATIONS = 2000


def summary(scores: Float[np.ndarray, "samples places"]) -> dict[str, float | None]:
    """The mean score, with its 95 % interval over samples; five samples without a fault are no certainty."""
    means = scores.mean(axis=1)
    return _bounded("score", interval(means, np.ones(len(means)), scale="logit"))


def by_depth(scores: Float[np.ndarray, "samples depths"], depths: Sequence[float]) -> list[dict[str, Any]]:
    """A row for each depth: the mean with its interval, and the difference from the best depth, paired by sample."""
    best = int(scores.mean(axis=0).argmax())
    rows = []
    for place, depth in enumerate(depths):
        hits = scores[:, place]
        exact = set(hits.tolist()) <= {0.0, 1.0}
        found = interval(hits, np.ones(len(hits)), scale="logit") if exact else interval(hits)
        row = {"depth": depth} | _bounded("score", found)
        rows.append(row | _bounded("below_best", paired_interval(scores[:, best], hits)))
    return rows


def spread(scores: Float[np.ndarray, "samples depths"], depths: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Best minus worst depth, with the paired interval of these two, and what chance alone would give.

    The two are chosen by their scores, so that the difference is above 0 without any reason. How much so is said by
    permuting the depths of every sample: `spread_by_chance` is the mean, `p_value` how often it is at least as large.
    """
    means = scores.mean(axis=0)
    best, worst = int(means.argmax()), int(means.argmin())
    observed = float(means[best] - means[worst])
    rng = np.random.default_rng(seed)
    drawn = np.array([np.ptp(rng.permuted(scores, axis=1).mean(axis=0)) for _ in range(PERMUTATIONS)])
    return {
        "worst_depth": depths[worst],
        "worst_score": float(means[worst]),
        "best_depth": depths[best],
        **_bounded("spread", paired_interval(scores[:, best], scores[:, worst])),
        "spread_by_chance": float(drawn.mean()),
        "p_value": float((1 + (drawn >= observed - 1e-12).sum()) / (1 + PERMUTATIONS)),
    }


def _bounded(name: str, found: Any) -> dict[str, float | None]:
    low, high = (None if math.isnan(bound) else bound for bound in (found.low, found.high))
    return {name: found.value, f"{name}_low": low, f"{name}_high": high}
