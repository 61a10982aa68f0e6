"""What the commands do: read a table as its fit did, keep parts for validation and test, ask for every sequence."""

from __future__ import annotations

import filecmp
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from burnish.core.errors import CheckpointError, DataError, SettingsError
from burnish.core.settings import first_mistake
from burnish.events.ahead import Ahead, sample_paths
from burnish.events.columns import (
    LARGEST_INTEGER,
    MARK,
    SEQUENCE,
    TIME,
    from_table,
    nanoseconds,
    shown_time,
    with_exogenous,
)
from burnish.events.data import EventDataset
from burnish.events.forecaster import CONFIG_FILE, EventForecaster, read_forecaster_config
from burnish.events.locations import LocationRegion
from burnish.events.maths.sphere import local, wrapped
from burnish.events.reading import read_any
from burnish.events.seen import Seen
from burnish.events.sequence import NANOSECONDS, EventSequence

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

SECONDS = ("s", "sec", "second", "seconds")
"""How a unit is called that is the one of dates."""


@dataclass(frozen=True)
class Reading:
    """How a table is read: fixed at the fit, so that the same file later means the same.

    Attributes:
        sequence, time, mark, location, vertex, covariates, group: columns.
        exogenous: columns of the table of values that change between events.
        sphere: whether places are longitudes and latitudes.
        start, end: of observation, if known.
        sort: sort the events of a sequence.
        unit: of time, for reports.
        dates: whether the times were dates; None where the fit did not keep it.
    """

    sequence: str = SEQUENCE
    time: str = TIME
    mark: str = MARK
    location: tuple[str, str] | None = None
    vertex: str | None = None
    covariates: tuple[str, ...] = ()
    exogenous: tuple[str, ...] = ()
    sphere: bool = False
    group: str | None = None
    start: str | None = None
    end: str | None = None
    sort: bool = False
    unit: str = ""
    dates: bool | None = None

    def read(self, path: Path, mark_names: tuple[str, ...] | None = None) -> EventDataset:
        """The events of a file; types that `mark_names` does not have are refused."""
        table = read_any(path, sequence=self.sequence, time=self.time)
        location = None if self.location is None else (self.location[0], self.location[1])
        columns: dict[str, Any] = asdict(self) | {"location": location, "mark_names": mark_names}
        for name in ("exogenous", "dates"):
            columns.pop(name)
        return EventDataset(**from_table(table, where=str(path), **columns))

    def read_with(
        self, path: Path, exogenous: Path | None, mark_names: tuple[str, ...] | None = None
    ) -> tuple[EventDataset, tuple[str, ...]]:
        """The events of a file with the values of a table of exogenous ones, and the names of these.

        The columns of sequences and times have the same names in both.

        Raises:
            DataError: the table lacks a column that the fit had, there is none and the fit had one, or it is the table
                of the events itself.
        """
        if exogenous is not None and exogenous.is_file() and path.is_file() and filecmp.cmp(path, exogenous, False):
            raise DataError(
                "is the table of the events itself, and values that events bring along are not exogenous",
                where=str(exogenous),
                fix="name their columns with --covariates, or give a table of other times",
            )
        dataset = self.read(path, mark_names)
        if exogenous is not None:
            return self._with_exogenous(dataset, exogenous)
        if self.exogenous:
            what = f"the fit had exogenous values ({', '.join(self.exogenous)})"
            raise DataError(what, fix="give their table with --exogenous")
        return dataset, ()

    def _with_exogenous(self, dataset: EventDataset, path: Path) -> tuple[EventDataset, tuple[str, ...]]:
        table = read_any(path, sequence=self.sequence, time=self.time)
        if missing := [name for name in self.exogenous if name not in table.column_names]:
            raise DataError(f"has no column {missing[0]!r}, which the fit had", where=str(path), fix="add it")
        if self.exogenous:
            both = [name for name in (self.sequence, self.time) if name in table.column_names]
            table = table.select([*both, *self.exogenous])
        sequences, names = with_exogenous(
            dataset.sequences, table, dates=dataset.dates, where=str(path), sequence=self.sequence, time=self.time
        )
        return dataset.with_sequences(sequences), names

    def other_clock(self, dataset: EventDataset, where: Path) -> str | None:
        """What is taken for granted where the fit had dates and a later table has numbers, or the other way round.

        Raises:
            DataError: numbers that are no seconds since 1970, or dates where the fit's unit has another name.
        """
        if self.dates is None or self.dates == dataset.dates:
            return None
        if self.dates:
            furthest = max((abs(s.epoch + float(t)) for s in dataset.sequences for t in s.times[[0, -1]]), default=0.0)
            if furthest > LARGEST_INTEGER / NANOSECONDS:
                raise DataError(
                    f"has the time {furthest:.10g}, which as seconds since 1970 is no date, and the fit had dates",
                    where=str(where),
                    fix="write dates, or seconds",
                )
            return "the fit had dates and this table has numbers: they are taken as seconds"
        if self.unit and self.unit.lower() not in SECONDS:
            raise DataError(f"has dates, and the times of the fit were numbers, in {self.unit}", where=str(where))
        return "the fit had numbers and this table has dates: their seconds are taken as its unit"

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
        extra = read_forecaster_config(directory).extra
        if "reading" not in extra:
            raise CheckpointError(
                "does not say which columns to read, because it was not made by burnish events fit",
                where=str(directory),
                fix="use it from Python",
            )
        where = str(directory / CONFIG_FILE)
        try:
            reading = TypeAdapter(Reading).validate_python(extra["reading"])
            seen = TypeAdapter(list[tuple[str, int, str]]).validate_python(extra.get("seen"))
        except ValidationError as error:
            raise CheckpointError(first_mistake(error), where=where, fix="fit it again") from None
        return cls(EventForecaster.from_pretrained(directory), reading, Seen.from_json(seen))


@dataclass(frozen=True)
class Waits:
    """How long each sequence has waited since its last event.

    Attributes:
        elapsed: the same for all.
        now: the time as of which to forecast instead, as the times of the file are given.
        own: "now" or "elapsed" of single sequences, by name, before those for all.
    """

    elapsed: float = 0.0
    now: str | None = None
    own: dict[str, tuple[str, str]] | None = None

    @classmethod
    def given(cls, elapsed: float, now: str | None, as_of: Path | None, sequence: str) -> Waits:
        """From options; the table has a column of sequences and a column now or elapsed."""
        if sum((elapsed != 0, now is not None, as_of is not None)) > 1:
            raise SettingsError(
                "more than one of --elapsed, --now and --as-of says how long was waited", fix="give one"
            )
        return cls(elapsed, now, None if as_of is None else _own_waits(as_of, sequence))

    def of(self, sequence: EventSequence, dates: bool) -> float:
        """Time from the last event of a sequence to now."""
        if self.own is None:
            return _checked_wait(self.elapsed) if self.now is None else _until(sequence, self.now, dates)
        if sequence.name not in self.own:
            raise DataError(f"--as-of has no row for sequence {sequence.name!r}", fix="add one, with 0 elapsed")
        column, value = self.own[sequence.name]
        if column == "now":
            return _until(sequence, value, dates)
        try:
            return _checked_wait(float(value), f" of sequence {sequence.name!r}")
        except ValueError:
            raise DataError(f"elapsed of sequence {sequence.name!r} is {value!r}, not a number") from None


def _checked_wait(elapsed: float, whose: str = "") -> float:
    if not 0 <= elapsed < math.inf:
        raise SettingsError(f"elapsed{whose} is {elapsed:g}, but must be finite and at least 0")
    return elapsed


def _own_waits(path: Path, sequence: str) -> dict[str, tuple[str, str]]:
    table = read_any(path, sequence=sequence)
    columns = [name for name in ("now", "elapsed") if name in table.column_names]
    if sequence not in table.column_names or len(columns) != 1:
        raise DataError(
            f"has the columns {', '.join(table.column_names)}",
            where=str(path),
            fix=f"give it {sequence!r} and one of now and elapsed",
        )
    names, values = (table[name].to_pylist() for name in (sequence, columns[0]))
    own = {str(name): (columns[0], str(value)) for name, value in zip(names, values, strict=True)}
    if len(own) < len(names):
        raise DataError("names a sequence twice", where=str(path), fix="write one row a sequence")
    return own


@dataclass(frozen=True)
class Asked:
    """What is asked of every sequence.

    Attributes:
        quantiles: levels of the wait.
        waits: how long was waited already.
        num_events: events ahead.
        conformal: move the levels by what the validation part of the fit says of them.
        seed: of drawn futures.
    """

    quantiles: Sequence[float]
    waits: Waits
    num_events: int = 1
    conformal: bool = False
    seed: int = 0


NUM_PATHS = 500
"""Futures drawn for events after the next one."""


def table_of_forecasts(forecaster: EventForecaster, dataset: EventDataset, asked: Asked) -> Iterator[list[str]]:
    """A header and one row a sequence and event ahead: quantiles of the wait, the type, and the place where it has one.

    Every sequence is asked by itself, so that its row does not depend on what else is in the file.
    """
    if asked.conformal and forecaster.conformal is None:
        raise SettingsError("this forecaster has no conformal levels", fix="fit it again")
    place = ["x", "y", "place_radius_50"] if forecaster.model.has_location else []
    dates = [f"time_{q:g}" for q in asked.quantiles] if dataset.dates else []
    waits = [f"wait_{q:g}" for q in asked.quantiles]
    ahead = ["event"] if asked.num_events > 1 else []
    yield ["sequence", *ahead, "last_time", *waits, *dates, "prob_no_event", "type", "type_prob", *place]
    for sequence in dataset.sequences:
        waited = asked.waits.of(sequence, dataset.dates)
        last = float(sequence.times[-1])
        for number, found in enumerate(_ahead(forecaster, sequence, waited, asked), 1):
            times = []
            if dates:
                times = [
                    shown_time(sequence, last + waited + w, True) if np.isfinite(w) else "never" for w in found.waits
                ]
            row = [sequence.name, *([str(number)] if ahead else []), shown_time(sequence, last, dataset.dates)]
            row += [*(f"{wait:.6g}" for wait in found.waits), *times, f"{found.prob_no_event:.4g}"]
            if row[-1] == "1":  # of no event there is no type and no place
                yield [*row, "", "", *("" for _ in place)]
                continue
            top = int(found.mark_probs.argmax())
            row += [forecaster.mark_names[top], f"{found.mark_probs[top]:.4f}"]
            where = [] if found.region is None else _place(found.region, forecaster.model.statistics.sphere)
            yield [*row, *(where or ["" for _ in place])]


def _ahead(forecaster: EventForecaster, sequence: EventSequence, waited: float, asked: Asked) -> Iterator[Ahead]:
    """The next event by its law, those after it by drawn futures."""
    if len(sequence):  # what the table says of later times is not known yet
        sequence = sequence.known_until(float(sequence.times[-1]) + waited)
    law = forecaster.next_event(sequence)
    levels = np.array(asked.quantiles, np.float64)
    if asked.conformal:
        assert forecaster.conformal is not None
        passed = law.cdf(waited) if waited else 0.0
        levels = np.array([forecaster.conformal.level(q, passed) for q in levels])
    probs, none = np.array(list(law.mark_probs(elapsed=waited).values())), law.prob_none_after(waited)
    region = law.location_region(0.5, elapsed=waited) if forecaster.model.has_location and none < 1 else None
    yield Ahead(np.atleast_1d(law.quantile(levels, waited)), none, probs, region)
    if asked.num_events == 1:
        return
    if asked.conformal:
        raise SettingsError("conformal levels are those of the next event alone", fix="leave out --next or --conformal")
    paths = sample_paths(forecaster, sequence, asked.num_events, num_paths=NUM_PATHS, elapsed=waited, seed=asked.seed)
    yield from (paths.ahead(step, asked.quantiles) for step in range(1, asked.num_events))


def _until(sequence: EventSequence, now: str, dates: bool) -> float:
    last = float(sequence.times[-1])
    if dates:
        waited = (nanoseconds(now, "now") - sequence.epoch) / NANOSECONDS - last
    else:
        try:
            waited = float(now) - sequence.epoch - last
        except ValueError:
            raise SettingsError(f"now is {now!r}, but the times are numbers", fix="give a number") from None
    if not math.isfinite(waited):
        raise SettingsError(f"now is {now}, which is no time", fix="give a finite number")
    if waited < 0:
        raise SettingsError(
            f"now is {now}, but sequence {sequence.name!r} has an event at {shown_time(sequence, last, dates)}",
            fix="give a later time, or leave out what came after it",
        )
    return waited


def _place(region: LocationRegion, sphere: bool) -> list[str]:
    """The densest place, and the distance from it within which half of the law lies."""
    row, column = np.unravel_index(int(region.density.argmax()), region.density.shape)
    centre = np.array([region.x[column], region.y[row]])
    away = local(region.samples, centre) if sphere else region.samples - centre
    radius = float(np.median(np.linalg.norm(away, axis=1)))
    centre = wrapped(centre) if sphere else centre
    return [f"{centre[0]:.6g}", f"{centre[1]:.6g}", f"{radius:.4g}"]


PERIODS = {"day": 86_400.0, "week": 604_800.0, "year": 31_556_952.0}
"""Cycles of dates, in seconds; the year is the mean one of the calendar."""


def periods(names: Sequence[str], *, dates: bool) -> tuple[float, ...]:
    """Lengths of cycles in the data's unit, from names (of dates) or numbers."""
    found = []
    for name in names:
        try:
            found.append(PERIODS[name] if dates and name in PERIODS else float(name))
        except ValueError:
            known = "day, week, year or a number of seconds" if dates else "one such as 24, in the unit of the times"
            raise SettingsError(f"a cycle of the calendar is {name!r}", fix=f"give {known}") from None
    return tuple(found)
