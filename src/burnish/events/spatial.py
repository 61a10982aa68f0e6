"""Scores of the place, by sampling: regions that cover, distance and energy score, on a spread of events."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from burnish.core.errors import DataError
from burnish.events import metrics
from burnish.events.conformal import SplitConformal
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


@dataclass(frozen=True)
class LocationEvaluation:
    """Values of the events whose place was scored, one entry an event, and one event to draw.

    Attributes:
        sequence, index: which events.
        values: location_rank, location_error and energy_score, and loglik_location where the place has a density.
        shown: region, places before it and the place itself of an event in the middle; None of a baseline.
    """

    sequence: NDArray[np.int64]
    index: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]
    shown: tuple[LocationRegion, NDArray[np.float64], NDArray[np.float64]] | None = None

    def scores(self) -> dict[str, float]:
        """Means, calibration, and the calibration score that the true law has by chance on as many events."""
        rank = self.values["location_rank"]
        means = {name: float(value.mean()) for name, value in self.values.items() if name != "location_rank"}
        chance, most = metrics.chance_score(len(rank), LOCATION_LEVELS, squared=False)
        return means | {
            "location_cs": float(np.mean([abs((rank <= q).mean() - q) for q in LOCATION_LEVELS])),
            "location_cs_by_chance": chance,
            "location_cs_by_chance_at_most": most,
            "location_ks": metrics.pit_ks(rank),
            "num_location_events": float(len(rank)),
        }

    def errors(self) -> dict[str, float]:
        """Standard errors of the means."""
        return {
            name: float(value.std(ddof=1) / np.sqrt(len(value)))
            for name, value in self.values.items()
            if name != "location_rank"
        }


def spread_events(test: EventDataset, num_events: int, seed: int) -> list[NDArray[np.bool_]]:
    """About `num_events` targets with an event before them, drawn over all sequences: a flag an event."""
    targets = [np.arange(len(s)) >= max(s.context, 1) for s in test.sequences]
    share = num_events / max(sum(int(flags.sum()) for flags in targets), 1)
    rng = np.random.default_rng(seed)
    return [flags & (rng.random(len(flags)) < share) for flags in targets]


def add_location_scores(
    forecaster: EventForecaster,
    test: EventDataset,
    result: ForecastEvaluation,
    *,
    num_events: int = 500,
    num_samples: int = 300,
    seed: int = 0,
) -> LocationEvaluation:
    """Adds scores of the place to a result, over about `num_events` events spread over the test part."""
    found = location_evaluation(forecaster, test, num_events=num_events, num_samples=num_samples, seed=seed)
    result.scores.update(found.scores())
    result.errors.update(found.errors())
    return found


def location_evaluation(
    forecaster: EventForecaster, test: EventDataset, *, num_events: int = 500, num_samples: int = 300, seed: int = 0
) -> LocationEvaluation:
    """How good and how honest the places are on the events of `spread_events`.

    Places are drawn given sampled gaps, as a forecast before the event must be.
    """
    model = forecaster.model
    packed = model.pack(test, score_first=False)
    generator = torch.Generator().manual_seed(seed)
    flags = np.concatenate(spread_events(test, num_events, seed))
    if not flags.any():
        raise DataError("no event is left to score a place of", fix="score more events")
    rows_of, samples, observed, nats = [], [], [], []
    with torch.no_grad():
        for batch in packed.batches(32):
            histories, where = model.histories(batch), batch.scored.nonzero()
            assert histories.location is not None
            sequence = batch.origin[where[:, 0], 0]
            event = torch.stack([sequence, batch.origin[where[:, 0], 1] + where[:, 1]], dim=1).numpy()
            chosen = torch.from_numpy(np.flatnonzero(flags[packed.offsets[event[:, 0]] + event[:, 1]]))
            if not len(chosen):
                continue
            condition, gap = select(histories.condition, chosen), histories.gap[chosen]
            places = model.statistics.in_data_units(histories.location[chosen].numpy())
            rows_of.append(event[chosen.numpy()])
            for rows in row_chunks(condition, 64):
                law = NextEvents(model, select(condition, rows), renormalise=forecaster.renormalise)
                gaps, _ = law.sample(num_samples, generator=generator)
                samples.append(law.location_sample(gaps, generator=generator).numpy())
                observed.append(places[rows])
                density = law.location_log_density(torch.from_numpy(places[rows]), gap[rows] * law.unit)
                nats.append(np.zeros(0) if density is None else density.double().numpy())
    events, drawn, seen = np.concatenate(rows_of), np.concatenate(samples), np.concatenate(observed)
    values = location_scores(drawn, seen, sphere=model.statistics.sphere)
    if len(known := np.concatenate(nats)):
        values["loglik_location"] = known
    middle = len(events) // 2
    before = test.sequences[events[middle, 0]].locations
    assert before is not None
    shown = _region(drawn[middle], before[: events[middle, 1]], seen[middle], model.statistics.sphere)
    return LocationEvaluation(events[:, 0], events[:, 1], values, shown)


def place_levels(
    forecaster: EventForecaster, held_out: EventDataset, *, num_events: int = 2000, seed: int = 0
) -> SplitConformal:
    """Levels of regions moved by the ranks of places that the fit did not learn from, as `SplitConformal` does waits.

    A region that shall hold the next place with a probability q is asked for at `level(q)` of what this returns:
    `law.location_region(place_levels(forecaster, validation).level(0.9))`.
    """
    found = location_evaluation(forecaster, held_out, num_events=num_events, seed=seed)
    return SplitConformal.of(found.values["location_rank"])


def _region(
    drawn: NDArray[np.float64], before: NDArray[np.float64], seen: NDArray[np.float64], sphere: bool
) -> tuple[LocationRegion, NDArray[np.float64], NDArray[np.float64]]:
    """The region of 90 %, the places before and the one that came, around one meridian."""
    places = [drawn, before, seen]
    if sphere:
        meridian = mean_longitude(drawn[:, 0])
        places = [unwrapped(place, meridian) for place in places]
    return highest_density_region(places[0], 0.9), places[1], places[2]


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


def baseline_location_evaluation(
    train: EventDataset,
    validation: EventDataset,
    test: EventDataset,
    *,
    num_events: int = 500,
    num_samples: int = 300,
    seed: int = 0,
) -> tuple[LocationEvaluation, DecayingKernels]:
    """`DecayingKernels`, fitted, on the same test events as a model is scored on."""
    places = np.concatenate([s.locations for s in train.sequences if s.locations is not None])
    mean, scale = places.mean(0), places.std(0)

    def standardised(dataset: EventDataset, count: int) -> list[tuple[int, EventSequence, int]]:
        pairs = []
        for number, flags in enumerate(spread_events(dataset, count, seed)):
            sequence = dataset.sequences[number]
            assert sequence.locations is not None
            scaled = replace(sequence, locations=(sequence.locations - mean) / scale)
            pairs += [(number, scaled, int(i)) for i in np.flatnonzero(flags)]
        return pairs

    unit = float(train.inner_gaps().mean())
    chosen_on = [(sequence, index) for _, sequence, index in standardised(validation, 400)]
    law = DecayingKernels.fit((places - mean) / scale, chosen_on, unit)
    rng = np.random.default_rng(seed)
    samples, observed, events = [], [], []
    for number, sequence, index in standardised(test, num_events):
        assert sequence.locations is not None
        samples.append(law.sample(sequence, index, num_samples, rng) * scale + mean)
        observed.append(sequence.locations[index] * scale + mean)
        events.append((number, index))
    values = location_scores(np.array(samples), np.array(observed), sphere=train.sphere)
    of_sequence, at = np.array(events).T
    return LocationEvaluation(of_sequence, at, values), law
