"""What the commands do: read a table as its fit did, keep parts for validation and test, ask for every sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from burnish.core.errors import CheckpointError, DataError, SettingsError
from burnish.events.columns import MARK, NANOSECONDS, SEQUENCE, TIME, from_table, nanoseconds, shown_time
from burnish.events.data import EventDataset
from burnish.events.distribution import NextEvent
from burnish.events.forecaster import EventForecaster, read_forecaster_config
from burnish.events.reading import read_any
from burnish.events.seen import Seen
from burnish.events.sequence import EventSequence

ROLES = {
    "train": "training",
    "training": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
"""Values of a split column."""


@dataclass(frozen=True)
class Reading:
    """How a table is read: fixed at the fit, so that the same file later means the same.

    Attributes:
        sequence, time, mark, location, vertex, group: columns.
        start, end: of observation, if known.
        sort: sort the events of a sequence.
        unit: of time, for reports.
    """

    sequence: str = SEQUENCE
    time: str = TIME
    mark: str = MARK
    location: tuple[str, str] | None = None
    vertex: str | None = None
    group: str | None = None
    start: str | None = None
    end: str | None = None
    sort: bool = False
    unit: str = ""

    def read(self, path: Path, mark_names: tuple[str, ...] | None = None) -> EventDataset:
        """The events of a file; types that `mark_names` does not have are refused."""
        table = read_any(path, sequence=self.sequence, time=self.time)
        location = None if self.location is None else (self.location[0], self.location[1])
        columns: dict[str, Any] = asdict(self) | {"location": location, "mark_names": mark_names}
        return EventDataset(**from_table(table, where=str(path), **columns))

    def with_columns(self, **names: Any) -> Reading:
        """The same with other column names where they are given."""
        return replace(self, **{role: name for role, name in names.items() if name is not None})


def split(
    dataset: EventDataset, by: str, fractions: Sequence[float], seed: int, column: str | None
) -> tuple[EventDataset, EventDataset, EventDataset]:
    """Training, validation and test part.

    Args:
        by: "sequence" (whole sequences are held out), "time" (the end of each is) or "auto": by sequence where there
            are ten or more.
        fractions: of the three.
        seed: of a split by sequence.
        column: split as this column (which the sequences carry as their group) says instead.
    """
    if column is not None:
        return _split_as_told(dataset, column)
    if by == "time" or (by == "auto" and len(dataset) < 10):
        training, validation, test = dataset.split_by_time(fractions)
    else:
        training, validation, test = dataset.split(fractions, seed=seed)
    return training, validation, test


def _split_as_told(dataset: EventDataset, column: str) -> tuple[EventDataset, EventDataset, EventDataset]:
    roles = {sequence.group: ROLES.get(sequence.group.lower()) for sequence in dataset.sequences}
    unknown = sorted(group for group, role in roles.items() if role is None)
    if unknown:
        raise DataError(
            f"column {column!r} has the value {unknown[0]!r}, which is neither train, val nor test",
            fix="rename it, or split by sequence",
        )
    parts = [dataset.where(lambda s, role=role: roles[s.group] == role) for role in ("training", "validation", "test")]
    if not all(len(part) for part in parts[:2]):
        raise DataError(f"column {column!r} leaves no training or no validation part", fix="mark some of each")
    return parts[0], parts[1], parts[2]


@dataclass(frozen=True)
class Fitted:
    """A forecaster as the command `fit` left it."""

    forecaster: EventForecaster
    reading: Reading
    seen: Seen

    @classmethod
    def load(cls, directory: Path) -> Fitted:
        """Reads it.

        Raises:
            CheckpointError: it is no forecaster, or was made without the command.
        """
        extra = read_forecaster_config(directory)["extra"]
        if "reading" not in extra:
            raise CheckpointError(
                "does not say which columns to read, because it was not made by burnish events fit",
                where=str(directory),
                fix="use it from Python",
            )
        reading = Reading(**extra["reading"])
        if reading.location is not None:
            reading = replace(reading, location=(reading.location[0], reading.location[1]))
        return cls(EventForecaster.from_pretrained(directory), reading, Seen.from_json(extra["seen"]))


def table_of_forecasts(
    forecaster: EventForecaster,
    dataset: EventDataset,
    *,
    quantiles: Sequence[float],
    elapsed: float = 0.0,
    now: str | None = None,
) -> Iterator[list[str]]:
    """A header and one row a sequence: quantiles of the wait, the type, and the place where the model has one.

    Every sequence is asked by itself, so that its row does not depend on what else is in the file.

    Args:
        quantiles: levels of the wait.
        elapsed: already waited since the last event.
        now: the time as of which to forecast instead, as the times of the file are given.
    """
    place = ["x", "y", "place_radius_50"] if forecaster.model.has_location else []
    dates = [f"time_{q:g}" for q in quantiles] if dataset.dates else []
    waits = [f"wait_{q:g}" for q in quantiles]
    yield ["sequence", "last_time", *waits, *dates, "prob_no_event", "type", "type_prob", *place]
    for sequence in dataset.sequences:
        law = forecaster.next_event(sequence)
        waited = elapsed if now is None else _waited(sequence, now, dataset.dates)
        rest = np.atleast_1d(law.quantile(list(quantiles), waited))
        probs = law.mark_probs()
        top = max(probs, key=lambda name: probs[name])
        last = float(sequence.times[-1])
        row = [sequence.name, shown_time(sequence, last, dataset.dates), *(f"{wait:.6g}" for wait in rest)]
        if dates:
            row += [shown_time(sequence, last + waited + wait, True) if np.isfinite(wait) else "never" for wait in rest]
        yield [*row, f"{law.prob_no_event:.4g}", top, f"{probs[top]:.4f}", *(_place(law) if place else [])]


def _waited(sequence: EventSequence, now: str, dates: bool) -> float:
    """Time from the last event of a sequence to now."""
    last = float(sequence.times[-1])
    if dates:
        waited = (nanoseconds(now, "now") - sequence.epoch) / NANOSECONDS - last
    else:
        try:
            waited = float(now) - sequence.epoch - last
        except ValueError:
            raise SettingsError(f"now is {now!r}, but the times are numbers", fix="give a number") from None
    if waited < 0:
        raise SettingsError(
            f"now is {now}, but sequence {sequence.name!r} has an event at {shown_time(sequence, last, dates)}",
            fix="give a later time, or leave out what came after it",
        )
    return waited


def _place(law: NextEvent) -> list[str]:
    """The densest place, and the distance from it within which half of the law lies."""
    region = law.location_region(0.5)
    row, column = np.unravel_index(int(region.density.argmax()), region.density.shape)
    centre = np.array([region.x[column], region.y[row]])
    radius = float(np.median(np.linalg.norm(region.samples - centre, axis=1)))
    return [f"{centre[0]:.6g}", f"{centre[1]:.6g}", f"{radius:.4g}"]
