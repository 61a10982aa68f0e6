"""What the benchmarks of rankings share: area under the ROC curve, and an estimate with its bootstrap interval."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata


def auc(score: Any, wanted: Any) -> float:
    """Probability that a wanted item scores above an unwanted one, ties counting half."""
    wanted = np.asarray(wanted, dtype=bool)
    count = wanted.sum()
    above = rankdata(score)[wanted].sum() - count * (count + 1) / 2
    return float(above / (count * (len(wanted) - count)))


def spread(estimate: float, draws: Any) -> dict[str, float]:
    """The estimate and quantiles of its bootstrap draws: an AUC is no ratio of sums, and pairs are hundreds."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": float(estimate), "low": float(low), "high": float(high), "rule": "percentile bootstrap"}
