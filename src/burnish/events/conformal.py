"""Quantile forecasts whose coverage holds under drift: adaptive conformal levels on the PIT.

A forecast at level q is asked at an adapted level a_t instead, and after every event

    a_{t+1} = a_t + gamma (q - 1{PIT_t <= a_t})

so that the long-run coverage is q within (max(a_1, 1 - a_1) + gamma) / (gamma T) whatever the stream does
(Adaptive Conformal Inference Under Distribution Shift, Gibbs, Candes 2021, arXiv 2106.00170). One addition an event.
Levels may leave [0, 1] by up to gamma; at or below 0 the interval is empty, at or above 1 it is everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from burnish.core.errors import SettingsError
from burnish.events import metrics

KEPT = 1001
FEW = 20


@dataclass
class AdaptiveConformal:
    """Adapted levels for some target levels.

    Args:
        targets: coverages wanted, such as (0.5, 0.9).
        gamma: step; larger follows drift faster and is noisier.

    Example:
        conformal = AdaptiveConformal((0.5, 0.9))
        bound = forecast.quantile(conformal.level(0.9))    # clipped to what a quantile can be asked at
        conformal.update(forecast.cdf(gap_that_came))
    """

    targets: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    gamma: float = 0.02
    levels: dict[float, float] = field(default_factory=dict)
    num_events: int = 0
    num_covered: dict[float, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for target in self.targets:
            self.levels.setdefault(target, target)
            self.num_covered.setdefault(target, 0)

    def level(self, target: float) -> float:
        """The level to ask a forecast at, for this coverage; clipped to [0, 0.9999]."""
        return min(max(self.levels[target], 0.0), 0.9999)

    def update(self, pit: float) -> None:
        """Tells what came: its probability integral transform F(gap)."""
        self.num_events += 1
        for target in self.targets:
            here = self.levels[target]
            covered = here >= 1 or (here > 0 and pit <= here)
            self.num_covered[target] += covered
            self.levels[target] = here + self.gamma * (target - covered)

    def coverage(self, target: float) -> float:
        """Share of the events so far that the adapted quantile covered."""
        return self.num_covered[target] / max(self.num_events, 1)

    def bound(self, target: float) -> float:
        """The guarantee: |coverage - target| is at most this after the events so far."""
        return (max(target, 1 - target) + self.gamma) / (self.gamma * max(self.num_events, 1))


@dataclass(frozen=True)
class SplitConformal:
    """Levels moved by the PIT of events that fitting did not learn from: any model's quantiles then cover as they say.

    With n such values u the forecast at level q is asked at the ceil((n + 1) q)-th smallest of them, which covers with
    probability q to q + 1/n where events are exchangeable with those (Vovk et al., 2005; Papadopoulos et al., 2002).
    Under drift `AdaptiveConformal` follows.

    Attributes:
        pit: sorted; of many events 1,001 quantiles.
        num_events: that they were taken from.
    """

    pit: NDArray[np.float64]
    num_events: int

    @classmethod
    def of(cls, pit: NDArray[np.float64]) -> Self:
        ordered = np.sort(pit)
        if len(ordered) > KEPT:
            ordered = np.quantile(ordered, np.linspace(0, 1, KEPT), method="higher")
        return cls(ordered, len(pit))

    def cdf(self, pit: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """Share of the events that were below this level of the forecast."""
        return np.asarray(np.searchsorted(self.pit, pit, side="right") / (len(self.pit) + 1))

    def level(self, q: float, passed: float = 0.0) -> float:
        """The level to ask a forecast at, given that it was `passed` before and no event has come since; below 1.

        Where fewer than twenty values lie beyond that they say too little, and the level stays as it is.
        """
        if not 0 <= q < 1:
            raise SettingsError(f"quantile level is {q}, but must be at least 0 and below 1")
        if passed and (self.pit > passed).sum() < FEW:
            return q
        before = float(self.cdf(passed)) if passed else 0.0
        wanted = before + q * (1 - before)
        rank = int(np.ceil((len(self.pit) + 1) * wanted - 1e-9))
        found = 1.0 if rank > len(self.pit) else float(self.pit[max(rank - 1, 0)])
        return float(np.clip((found - passed) / (1 - passed), 0.0, 0.9999)) if passed < 1 else 0.0


@dataclass(frozen=True)
class HeldOutCalibration:
    """What a validation part says of a forecaster's levels, and of moving them (`SplitConformal`).

    Attributes:
        asked: calibration score over 19 levels of the forecaster as it is.
        moved: of one half of the part with levels moved by the other half, both ways.
        by_chance: what the true law's score would exceed in one case of twenty.
    """

    asked: float
    moved: float
    by_chance: float

    @classmethod
    def of(cls, pit: NDArray[np.float64], sequence: NDArray[Any], index: NDArray[Any]) -> Self:
        """Of events in sequences; halves are of whole sequences, or of one sequence its beginning and end."""
        names = np.unique(sequence)
        first = np.isin(sequence, names[::2]) if len(names) > 1 else index <= np.median(index)
        moved = np.empty_like(pit)
        for half in (first, ~first):
            moved[half] = SplitConformal.of(pit[~half]).cdf(pit[half]) if (~half).any() else pit[half]
        scores = metrics.calibration_score(pit), metrics.calibration_score(moved)
        return cls(*scores, metrics.chance_score(len(pit))[1])

    def __str__(self) -> str:
        return (
            f"on the validation part levels are off by {self.asked:.3f}, with --conformal by {self.moved:.3f} (a true "
            f"law's by up to {self.by_chance:.3f} by chance)"
        )
