"""The events after the next one: futures drawn from a forecaster, event by event, each seeing those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.events.batches import Window, window_begin
from burnish.events.data import EventDataset
from burnish.events.distribution import NextEvents
from burnish.events.locations import LocationRegion, highest_density_region
from burnish.events.maths.sphere import mean_longitude, unwrapped
from burnish.events.sequence import EventSequence

if TYPE_CHECKING:
    from burnish.events.forecaster import EventForecaster

ROWS = 64
"""Futures encoded at once."""


@dataclass(frozen=True)
class Ahead:
    """What is said of one event to come; without a region where there are no places, or no such event."""

    waits: NDArray[np.float64]
    prob_no_event: float
    mark_probs: NDArray[np.float64]
    region: LocationRegion | None


@dataclass(frozen=True)
class Paths:
    """Futures of one history (P of n events).

    Attributes:
        waits: (P, n) time from now to each event; inf from where a process stops.
        marks: (P, n), -1 where there is no event.
        locations: (P, n, 2), or None.
        num_marks: types of events.
        sphere: whether places are longitudes and latitudes.
    """

    waits: NDArray[np.float64]
    marks: NDArray[np.int64]
    locations: NDArray[np.float64] | None
    num_marks: int
    sphere: bool = False

    def ahead(self, step: int, levels: Sequence[float]) -> Ahead:
        """Quantiles, shares of the types, and the region of half of the places of event `step` (from 0)."""
        came = np.isfinite(self.waits[:, step])
        shares = np.bincount(self.marks[came, step], minlength=self.num_marks) / max(came.sum(), 1)
        region = None
        if self.locations is not None and came.sum() > 2:
            places = self.locations[came, step]
            if self.sphere:
                places = unwrapped(places, mean_longitude(places[:, 0]))
            region = highest_density_region(places, 0.5)
        waits = np.quantile(self.waits[:, step], levels, method="higher")
        return Ahead(waits, float(1 - came.mean()), shares, region)


@torch.no_grad()
def sample_paths(
    forecaster: EventForecaster,
    history: EventSequence,
    num_events: int,
    *,
    num_paths: int = 500,
    elapsed: float = 0.0,
    seed: int = 0,
) -> Paths:
    """Draws the next events of a history, again and again.

    Args:
        num_events: of each future.
        num_paths: futures.
        elapsed: already waited since the last event.
        seed: of the draws.

    Raises:
        SettingsError: the model's events have vertices, or numbers below one.
    """
    model = forecaster.exact
    if model.has_graph:
        raise SettingsError(f"{model.kind} draws no vertices, so that only its next event can be forecast")
    if num_events < 1 or num_paths < 1:
        raise SettingsError(f"{num_paths} futures of {num_events} events are none", fix="ask for one or more")
    generator = torch.Generator().manual_seed(seed)
    last = float(history.times[-1]) + elapsed if len(history) else 0.0
    waits, marks = np.full((num_paths, num_events), np.inf), np.full((num_paths, num_events), -1)
    places = np.full((num_paths, num_events, 2), np.nan) if model.has_location else None
    futures = [replace(history, end=None)]
    alive = np.arange(num_paths)
    for step in range(num_events):
        condition = conditions(forecaster, futures)
        law = NextEvents(model, condition, renormalise=forecaster.renormalise)
        each = num_paths if step == 0 else 1
        waited = elapsed if step == 0 else 0.0
        gap, mark = law.sample(each, generator=generator, elapsed=waited)
        where = law.location_sample(gap + waited, generator=generator) if places is not None else None
        comes = np.isfinite(gap.flatten().numpy())
        begin = np.array([float(future.times[-1]) for future in futures]) if step else last
        times = (begin + gap.flatten().double().numpy())[comes]
        alive = alive[comes]
        waits[alive, step], marks[alive, step] = times - last, mark.flatten().numpy()[comes]
        if places is not None and where is not None:
            places[alive, step] = where.flatten(0, 1).numpy()[comes]
        futures = futures * num_paths if step == 0 else futures
        futures = [future for future, one in zip(futures, comes, strict=True) if one]
        futures = [
            _longer(future, time, int(marks[row, step]), None if places is None else places[row, step])
            for future, time, row in zip(futures, times, alive, strict=True)
        ]
        if not futures:
            break
    return Paths(waits, marks, places, model.num_marks, model.statistics.sphere)


def conditions(forecaster: EventForecaster, futures: list[EventSequence]) -> dict[str, Tensor]:
    """Conditions after the last events of histories of one length."""
    model, n = forecaster.exact, len(futures[0])
    begin = window_begin(n, model.window, model.context)
    packed = model.pack(EventDataset(tuple(futures), forecaster.mark_names))
    parts = []
    for first in range(0, len(futures), ROWS):
        rows = range(first, min(first + ROWS, len(futures)))
        batch = packed.gather([Window(row, begin, n, n) for row in rows])
        parts.append(model.condition_after(batch, model.states(batch), slice(None), n - begin))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _longer(history: EventSequence, time: float, mark: int, place: NDArray[np.float64] | None) -> EventSequence:
    """A history with one more event; covariates stay what they were."""
    known = history.covariates
    return replace(
        history,
        times=np.append(history.times, time),
        marks=np.append(history.marks, mark),
        locations=None if history.locations is None or place is None else np.vstack([history.locations, place]),
        covariates=None if known is None else np.vstack([known, known[-1:]]),
    )
