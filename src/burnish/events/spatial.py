"""Scores of the place, by sampling: regions that cover, distance and energy score, on a spread of events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from burnish.events import metrics
from burnish.events.data import EventDataset
from burnish.events.distribution import NextEvents
from burnish.events.evaluation import ForecastEvaluation
from burnish.events.forecaster import EventForecaster
from burnish.events.locations import LocationRegion, highest_density_region, location_scores
from burnish.events.maths.sphere import mean_longitude, unwrapped
from burnish.events.model import row_chunks, select
from burnish.events.sequence import EventSequence

LOCATION_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""The levels of SMASH (arXiv 2310.16310)."""


def add_location_scores(
    forecaster: EventForecaster,
    test: EventDataset,
    result: ForecastEvaluation,
    *,
    num_events: int = 500,
    num_samples: int = 300,
    seed: int = 0,
) -> tuple[LocationRegion, NDArray[np.float64], NDArray[np.float64]]:
    """Adds location_cs, location_error and energy_score to a result, over `num_events` events spread over the test.

    Places are drawn given sampled gaps, as a forecast before the event must be. Returns what the density map shows.
    """
    model = forecaster.model
    packed = model.pack(test, score_first=False)
    generator = torch.Generator().manual_seed(seed)
    share = min(1.0, num_events / packed.num_scored)
    rng = np.random.default_rng(seed)
    samples, observed, nats, shown = [], [], [], None
    in_data_units, sphere = model.statistics.in_data_units, model.statistics.sphere
    with torch.no_grad():
        for batch in packed.batches(32):
            histories = model.histories(batch)
            assert histories.location is not None
            chosen = torch.from_numpy(np.flatnonzero(rng.random(len(histories.gap)) < share))
            if not len(chosen):
                continue
            condition = select(histories.condition, chosen)
            places = in_data_units(histories.location[chosen].numpy())
            for rows in row_chunks(condition, 64):
                law = NextEvents(model, select(condition, rows), renormalise=forecaster.renormalise)
                gaps, _ = law.sample(num_samples, generator=generator)
                samples.append(law.location_sample(gaps, generator=generator).numpy())
                observed.append(places[rows])
                density = law.location_log_density(
                    torch.from_numpy(places[rows]), histories.gap[chosen][rows] * law.unit
                )
                nats.append(np.zeros(0) if density is None else density.double().numpy())
            if shown is None:
                middle = len(chosen) // 2
                row, column = batch.scored.nonzero()[int(chosen[middle])].tolist()
                assert batch.locations is not None
                shown = middle, in_data_units(batch.locations[row, :column].numpy())
    drawn, seen = np.concatenate(samples), np.concatenate(observed)
    _summarise(location_scores(drawn, seen, sphere=sphere), np.concatenate(nats), result)
    assert shown is not None
    middle, before = shown
    places = [drawn[middle], before, seen[middle]]
    if sphere:
        meridian = mean_longitude(drawn[middle][:, 0])
        places = [unwrapped(place, meridian) for place in places]
    return highest_density_region(places[0], 0.9), places[1], places[2]


def _summarise(values: dict[str, NDArray[np.float64]], nats: NDArray[np.float64], result: ForecastEvaluation) -> None:
    rank = values["location_rank"]
    result.scores["location_cs"] = float(np.mean([abs((rank <= q).mean() - q) for q in LOCATION_LEVELS]))
    result.scores["location_ks"] = metrics.pit_ks(rank)
    result.scores["location_error"] = float(values["location_error"].mean())
    result.scores["energy_score"] = float(values["energy_score"].mean())
    result.scores["num_location_events"] = len(rank)
    if len(nats):
        result.scores["loglik_location"] = float(nats.mean())
        result.errors["loglik_location"] = float(nats.std(ddof=1) / np.sqrt(len(nats)))
    for name in ("location_error", "energy_score"):
        result.errors[name] = float(values[name].std(ddof=1) / np.sqrt(len(rank)))


@dataclass(frozen=True)
class DecayingKernels:
    """The next place as a mixture: the overall density of the training places, and fading copies of recent events.

        p(x | H) = (1 - w) KDE_train(x) + w sum_j c_j N(x; x_j, h^2),   c_j ~ exp(-(t - t_j)/tau), last 50 events

    No network, and hard to beat where events cluster (earthquakes). Places are standardised; w, h and tau are chosen
    by log density on validation data.
    """

    background: gaussian_kde
    weight: float
    bandwidth: float
    decay: float

    RECENT: ClassVar[int] = 50

    @classmethod
    def fit(cls, train: NDArray[np.float64], validation: list[tuple[EventSequence, int]], unit: float) -> Self:
        rng = np.random.default_rng(0)
        background = gaussian_kde(train[rng.permutation(len(train))[:4000]].T, bw_method=0.08)
        best, chosen = -np.inf, (0.5, 0.1, unit)
        for bandwidth in (0.02, 0.05, 0.1, 0.2, 0.4):
            for decay in (3 * unit, 10 * unit, 30 * unit):
                pairs = [cls._densities(background, s, i, bandwidth, decay) for s, i in validation]
                base, recent = np.array(pairs).T
                for weight in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
                    value = float(np.log((1 - weight) * base + weight * recent + 1e-12).mean())
                    if value > best:
                        best, chosen = value, (weight, bandwidth, decay)
        return cls(background, *chosen)

    @classmethod
    def _recent(cls, sequence: EventSequence, index: int, decay: float) -> tuple[NDArray[Any], NDArray[Any]]:
        assert sequence.locations is not None
        rows = slice(max(0, index - cls.RECENT), index)
        age = sequence.times[index - 1] - sequence.times[rows]  # as of the last event; the next time is unknown
        share = np.exp(-age / decay)
        return sequence.locations[rows], share / share.sum()

    @classmethod
    def _densities(
        cls, background: gaussian_kde, sequence: EventSequence, index: int, bandwidth: float, decay: float
    ) -> tuple[float, float]:
        assert sequence.locations is not None
        place = sequence.locations[index]
        centres, share = cls._recent(sequence, index, decay)
        square = np.square(centres - place).sum(1) / (2 * bandwidth**2)
        return float(background(place)[0]), float((share * np.exp(-square)).sum() / (2 * np.pi * bandwidth**2))

    def sample(self, sequence: EventSequence, index: int, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """(count, 2) places of event `index` given the events before it."""
        centres, share = self._recent(sequence, index, self.decay)
        drawn = centres[rng.choice(len(centres), size=count, p=share)] + self.bandwidth * rng.normal(size=(count, 2))
        overall = self.background.resample(count, seed=rng).T
        return np.where(rng.random((count, 1)) < self.weight, drawn, overall)


def baseline_location_scores(
    train: EventDataset,
    validation: EventDataset,
    test: EventDataset,
    *,
    num_events: int = 500,
    num_samples: int = 300,
    seed: int = 0,
) -> dict[str, float]:
    """The scores of `DecayingKernels` on a spread of test events, as `add_location_scores` gives for a model."""
    places = np.concatenate([s.locations for s in train.sequences if s.locations is not None])
    mean, scale = places.mean(0), places.std(0)

    def standardised(dataset: EventDataset, count: int) -> list[tuple[EventSequence, int]]:
        rng = np.random.default_rng(seed)
        share = min(1.0, count / max(dataset.num_events - len(dataset), 1))
        pairs = []
        for sequence in dataset.sequences:
            assert sequence.locations is not None
            scaled = replace(sequence, locations=(sequence.locations - mean) / scale)
            pairs += [(scaled, i) for i in range(1, len(scaled)) if rng.random() < share]
        return pairs

    unit = float(train.inner_gaps().mean())
    law = DecayingKernels.fit((places - mean) / scale, standardised(validation, 400), unit)
    rng = np.random.default_rng(seed)
    samples, observed = [], []
    for sequence, index in standardised(test, num_events):
        assert sequence.locations is not None
        samples.append(law.sample(sequence, index, num_samples, rng) * scale + mean)
        observed.append(sequence.locations[index] * scale + mean)
    values = location_scores(np.array(samples), np.array(observed))
    rank = values["location_rank"]
    return {
        "location_cs": float(np.mean([abs((rank <= q).mean() - q) for q in LOCATION_LEVELS])),
        "location_ks": metrics.pit_ks(rank),
        "location_error": float(values["location_error"].mean()),
        "energy_score": float(values["energy_score"].mean()),
        "num_location_events": float(len(rank)),
        "weight_of_recent": law.weight,
        "bandwidth": law.bandwidth,
        "decay_in_mean_gaps": law.decay / unit,
    }
