"""Forecasts that need no model, always shown beside one.

* Poisson: a constant rate, and the marks' overall shares.
* Empirical: the gaps (and next marks) seen after each type of event, pooled where there are few.
* Majority: the most frequent mark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from burnish.events import metrics
from burnish.events.data import EventDataset

ENOUGH = 30
"""A previous type seen fewer times than this uses the pooled gaps."""

GRID = (np.arange(99) + 0.5) / 99


@dataclass(frozen=True)
class Baselines:
    """Fitted on training data.

    Attributes:
        rate: events a unit of time, from the gaps.
        mark_shares: (K,).
        gaps: sorted training gaps after each type; index K holds all.
        transitions: (K, K) counts of the next type after each, plus one.
    """

    rate: float
    mark_shares: NDArray[np.float64]
    gaps: tuple[NDArray[np.float64], ...]
    transitions: NDArray[np.float64]

    @classmethod
    def fit(cls, train: EventDataset) -> Baselines:
        k = train.num_marks
        after: list[list[NDArray[np.float64]]] = [[] for _ in range(k + 1)]
        transitions = np.ones((k, k))
        counts = np.full(k, 1e-9)
        for sequence in train.sequences:
            gap, previous, mark = np.diff(sequence.times), sequence.marks[:-1], sequence.marks[1:]
            np.add.at(transitions, (previous, mark), 1)
            counts += np.bincount(mark, minlength=k)
            after[k].append(gap)
            for kind in np.unique(previous):
                after[kind].append(gap[previous == kind])
        pooled = np.sort(np.concatenate(after[k]))
        gaps = []
        for parts in after[:k]:
            own = np.sort(np.concatenate(parts)) if parts else np.zeros(0)
            gaps.append(own if len(own) >= ENOUGH else pooled)
        return cls(1 / float(pooled.mean()), counts / counts.sum(), (*gaps, pooled), transitions)

    def quantiles(self, previous: NDArray[np.int64], levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, levels) empirical quantiles of the gap after each previous type."""
        table = np.stack([np.quantile(gap, levels) for gap in self.gaps])
        return table[previous]

    def score(
        self, gap: NDArray[np.float64], mark: NDArray[np.int64], previous: NDArray[np.int64]
    ) -> dict[str, dict[str, float]]:
        """The metrics of every baseline on the scored events.

        Args:
            gap, mark: what came.
            previous: type of the event before; K where there was none.
        """
        k = len(self.mark_shares)
        known = np.minimum(previous, k - 1)
        conditional = self.transitions[known] / self.transitions[known].sum(1, keepdims=True)
        conditional = np.where((previous < k)[:, None], conditional, self.mark_shares)
        shares = np.broadcast_to(self.mark_shares, conditional.shape)
        pit = np.empty(len(gap))
        for kind in np.unique(previous):
            rows = previous == kind
            below, up_to = (np.searchsorted(self.gaps[kind], gap[rows], side=side) for side in ("left", "right"))
            share = np.random.default_rng(0).random(len(below))  # an atom's PIT is anywhere in its range
            pit[rows] = (below + share * (up_to - below)) / len(self.gaps[kind])
        poisson_pit = -np.expm1(-self.rate * gap)
        poisson_quantiles = np.broadcast_to(-np.log1p(-GRID) / self.rate, (len(gap), len(GRID)))
        quantiles = self.quantiles(previous, GRID)
        means = np.array([own.mean() for own in self.gaps])[previous]
        picked = np.arange(len(mark)), mark
        empirical = {
            "loglik_mark": float(np.log(conditional[picked]).mean()),
            "crps": float(metrics.crps_from_quantiles(quantiles, gap).mean()),
            "calibration_score_19": metrics.calibration_score(pit),
            "calibration_score_upper": metrics.calibration_score(pit, metrics.LEVELS_UPPER),
            "pit_ks": metrics.pit_ks(pit),
            "coverage_50": float((pit < 0.5).mean()),
            "coverage_90": float((pit < 0.9).mean()),
            "mae": float(np.abs(gap - quantiles[:, 49]).mean()),
            "rmse": float(np.sqrt(np.square(gap - means).mean())),
            "accuracy": float(metrics.accuracy(conditional, mark).mean()),
        }
        log_marks = float(np.log(shares[picked]).mean())
        log_time = float((np.log(self.rate) - self.rate * gap).mean())
        poisson = {
            "loglik": log_time + log_marks,
            "loglik_time": log_time,
            "loglik_mark": log_marks,
            "crps": float(metrics.crps_from_quantiles(poisson_quantiles, gap).mean()),
            "calibration_score_19": metrics.calibration_score(poisson_pit),
            "calibration_score_upper": metrics.calibration_score(poisson_pit, metrics.LEVELS_UPPER),
            "pit_ks": metrics.pit_ks(poisson_pit),
            "coverage_50": float((poisson_pit < 0.5).mean()),
            "coverage_90": float((poisson_pit < 0.9).mean()),
            "mae": float(np.abs(gap - np.log(2) / self.rate).mean()),
            "rmse": float(np.sqrt(np.square(gap - 1 / self.rate).mean())),
            "accuracy": float(metrics.accuracy(shares, mark).mean()),
        }
        return {"empirical by previous type": empirical, "Poisson and majority type": poisson}
