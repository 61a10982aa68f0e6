"""Columns of a table to sequences of events: ids, times, types, places, each checked on the way in.

Times of dates and of whole numbers too large for float64 are counted from the sequence's own first event before any
rounding, so that a sequence reads the same alone and in a larger file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from burnish.core.errors import DataError, SettingsError, nearest
from burnish.events.exogenous import Exogenous
from burnish.events.sequence import NANOSECONDS, EventSequence

SEQUENCE, TIME, MARK = "sequence_id", "time", "mark"
"""Columns that are looked for when none is named; without the first all rows are one sequence, without the last one
type."""

EXACT = 2**53
"""Whole numbers up to this are exact in float64."""

LARGEST_INTEGER = 2**63 - 1
"""Of a date's nanoseconds, which is in the year 2262, or seconds, which is in the year 3e11."""

MANY_TYPES = 1000


class Parts(TypedDict):
    """What a data set of events is made of."""

    sequences: tuple[EventSequence, ...]
    mark_names: tuple[str, ...]
    unit: str
    num_vertices: int
    notes: tuple[str, ...]
    dates: bool
    sphere: bool


def from_table(
    table: pa.Table,
    *,
    where: str = "table",
    sequence: str | None = SEQUENCE,
    time: str = TIME,
    mark: str | None = MARK,
    location: tuple[str, str] | None = None,
    sphere: bool = False,
    vertex: str | None = None,
    covariates: Sequence[str] = (),
    group: str | None = None,
    start: float | str | None = None,
    end: float | str | None = None,
    sort: bool = False,
    mark_names: tuple[str, ...] | None = None,
    num_vertices: int = 0,
    unit: str = "",
) -> Parts:
    """See `EventDataset.from_table`."""
    if table.num_rows == 0:
        raise DataError("has no events", where=where)
    sequence, mark, notes = _without_absent(table, sequence, mark)
    ticks = _ticks(_column(table, time, "time", where), time, where)
    marks, names = _marks(table, mark, mark_names, where)
    ids, labels = _sequences(table, sequence, where)
    places = _places(table, location, sphere, where)
    others = _rows_of_numbers(table, covariates, "covariate", where)
    vertices = None if vertex is None else _vertices(_column(table, vertex, "vertex", where), vertex, where)
    groups = None if group is None else [str(v) for v in _column(table, group, "split", where).to_pylist()]
    sequences = []
    for rows in _rows_of_sequences(ids, ticks.values if sort else None):
        name = labels[ids[rows[0]]]
        times, epoch = ticks.of(rows)
        _in_order(times, ticks, epoch, f"{where}, sequence {name!r}")
        sequences.append(
            EventSequence(
                times,
                marks[rows],
                locations=None if places is None else places[rows],
                vertices=None if vertices is None else vertices[rows],
                covariates=None if others is None else others[rows],
                start=None if start is None else ticks.since(epoch, start, "start"),
                end=None if end is None else ticks.since(epoch, end, "end"),
                epoch=epoch,
                name=name,
                group="" if groups is None else _one_group(groups, rows, name, where),
            )
        )
    if start is None:
        notes.append("the start of observation is unknown: the wait for the first event of a sequence is not used")
    return Parts(
        sequences=tuple(sequences),
        mark_names=names,
        unit=unit or ("seconds" if ticks.dates else ""),
        num_vertices=num_vertices if vertices is None else max(num_vertices, int(vertices.max()) + 1),
        notes=tuple(notes),
        dates=ticks.dates,
        sphere=sphere,
    )


# -- times -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ticks:
    """A column of times as it stands in the file: float64, whole numbers, or nanoseconds since 1970 for dates."""

    values: NDArray[np.float64] | NDArray[np.int64]
    dates: bool

    def of(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], int]:
        """float64 times of some rows, and the whole number that they count from."""
        values = self.values[rows]
        if values.dtype == np.float64:
            return values.astype(np.float64), 0
        if not self.dates and int(np.abs(self.values).max()) <= EXACT:
            return values.astype(np.float64), 0
        epoch = int(values.min())
        times = (values - epoch).astype(np.float64)
        return (times / NANOSECONDS if self.dates else times), epoch

    def counted_from(self, rows: NDArray[np.int64], epoch: int) -> NDArray[np.float64]:
        """float64 times of some rows on the clock of a sequence."""
        times = (self.values[rows] - epoch).astype(np.float64)
        return times / NANOSECONDS if self.dates else times

    def since(self, epoch: int, given: float | str, name: str) -> float:
        """A number or date that the user gave, on the clock of a sequence."""
        if self.dates:
            return (nanoseconds(given, name) - epoch) / NANOSECONDS
        try:
            return float(given) - epoch
        except ValueError:
            raise SettingsError(f"{name} is {given!r}, but the times are numbers", fix="give a number") from None


def nanoseconds(given: float | str, name: str) -> int:
    """Nanoseconds since 1970 of a date; without a zone it is taken as UTC."""
    try:
        moment = datetime.fromisoformat(str(given))
    except ValueError:
        raise SettingsError(
            f"{name} is {given!r}, but the times are dates", fix="give one such as 2024-05-01T12:00:00"
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * NANOSECONDS + delta.microseconds * 1000


def shown_time(sequence: EventSequence, time: float, dates: bool) -> str:
    """A time of a sequence as its file would have it."""
    if dates:
        total = sequence.epoch + round(time * NANOSECONDS)
        if abs(total) > LARGEST_INTEGER:
            seconds = total // NANOSECONDS
            return str(np.datetime64(seconds, "s")) if abs(seconds) <= LARGEST_INTEGER else "beyond all dates"
        text = str(np.datetime64(total, "ns"))
        return text.rstrip("0").rstrip(".") if "." in text else text
    if sequence.epoch:
        return str(sequence.epoch + round(time))
    return f"{time:.10g}"


def _ticks(column: pa.ChunkedArray, name: str, where: str) -> Ticks:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        column = _parsed(column, name, where)
        kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        try:
            return Ticks(column.cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy(), True)
        except pa.ArrowInvalid:
            what = f"column {name!r} holds dates that are not between 1678 and 2261"
            raise DataError(what, where=where, fix="use numbers, such as days, for times so far away") from None
    if pa.types.is_time(kind):  # of the day
        return Ticks(column.cast(pa.time64("ns")).cast(pa.int64()).to_numpy() / NANOSECONDS, False)
    if pa.types.is_integer(kind):
        return Ticks(column.cast(pa.int64()).to_numpy(), False)
    if not (pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise DataError(f"column {name!r} holds {kind}, not times", where=where, fix="use numbers or ISO timestamps")
    times = column.cast(pa.float64()).to_numpy()
    if not np.isfinite(times).all():
        row = int(np.argmin(np.isfinite(times))) + 1
        raise DataError(f"column {name!r} is not a number in row {row}", where=where, fix="drop the incomplete rows")
    if len(times) and np.abs(times).max() > EXACT:
        _told_apart(times, name, where)
    return Ticks(times, False)


def _told_apart(times: NDArray[np.float64], name: str, where: str) -> None:
    """Refuses times so large that neighbours of them may have been rounded together."""
    ordered = np.sort(times)
    near = np.diff(ordered) < 4 * np.spacing(np.abs(ordered[1:]))
    near &= np.abs(ordered[1:]) > EXACT
    if near.any():
        shown = float(ordered[1:][near][0])
        what = f"column {name!r} holds {shown:.17g}, and float64 does not tell such times from their neighbours"
        raise DataError(what, where=where, fix="count from a later moment, or give whole numbers below 2**63")


def _parsed(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Text as dates, with or without a zone, or as numbers."""
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "UTC"), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    values = column.to_pylist()
    try:
        found = [nanoseconds(value, name) for value in values]
    except SettingsError:
        wrong = next(row for row, value in enumerate(values) if not _is_date(value))
        raise DataError(
            f"column {name!r} holds {values[wrong]!r} in row {wrong + 1}, which is not a time",
            where=where,
            fix="use numbers or ISO timestamps",
        ) from None
    return pa.chunked_array([pa.array(found, pa.timestamp("ns"))])


def _is_date(value: str) -> bool:
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _in_order(times: NDArray[np.float64], ticks: Ticks, epoch: int, where: str) -> None:
    if len(times) < 2 or np.diff(times).min() >= 0:
        return
    i = int(np.argmax(np.diff(times) < 0))
    here = EventSequence(times[:1], np.zeros(1, np.int64), epoch=epoch)
    before, after = (shown_time(here, float(t), ticks.dates) for t in times[i : i + 2])
    raise DataError(
        f"times go back at event {i + 1} ({before} then {after})",
        where=where,
        fix="pass --sort (sort=True) to sort them, or name the column of the sequences with --sequence",
    )


# -- values that change between events ---------------------------------------------------------------------------------


def with_exogenous(
    sequences: Sequence[EventSequence],
    table: pa.Table,
    *,
    dates: bool,
    where: str = "table",
    sequence: str = SEQUENCE,
    time: str = TIME,
) -> tuple[tuple[EventSequence, ...], tuple[str, ...]]:
    """Sequences with the values of a table of their own, and the names of its columns.

    Args:
        sequences: the events.
        table: a row a time; every column beside those of the sequences and the times is a value. Without a column of
            sequences its rows hold for all of them.
        dates: whether the times of the events are dates.
        where: for messages.
        sequence, time: names of the two columns.

    Raises:
        DataError: times or values that are none, a sequence that has no row, or none as early as its events.
    """
    names = tuple(name for name in table.column_names if name not in (sequence, time))
    if table.num_rows == 0 or not names:
        raise DataError("has no exogenous values", where=where, fix="give a column of times and one of numbers")
    ticks = _ticks(_column(table, time, "time", where), time, where)
    if ticks.dates != dates:
        held = "dates" if ticks.dates else "numbers"
        raise DataError(f"column {time!r} holds {held}, unlike the times of the events", where=where)
    values = _rows_of_numbers(table, names, "exogenous value", where)
    assert values is not None
    own = sequence in table.column_names
    ids, labels = _sequences(table, sequence if own else None, where)
    rows = {labels[ids[part[0]]]: part for part in _rows_of_sequences(ids, ticks.values)}
    result = []
    for one in sequences:
        if own and one.name not in rows:
            raise DataError(f"has no row for sequence {one.name!r}", where=where, fix="add its values")
        part = rows[one.name] if own else rows[labels[0]]
        at = ticks.counted_from(part, one.epoch)
        if (again := np.flatnonzero(np.diff(at) == 0)).size:
            what = f"gives two rows of one time, {shown_time(one, float(at[again[0]]), dates)}"
            raise DataError(what, where=where, fix="keep one of them")
        if len(one) and at[0] > one.origin:
            first, begin = (shown_time(one, float(t), dates) for t in (at[0], one.origin))
            what = f"begins at {first}, but sequence {one.name!r} at {begin}"
            raise DataError(what, where=where, fix="add a row with the values at that time or before")
        result.append(replace(one, exogenous=Exogenous(at, values[part])))
    return tuple(result), names


# -- ids, types, places ----------------------------------------------------------------------------------------------


def _without_absent(
    table: pa.Table, sequence: str | None, mark: str | None
) -> tuple[str | None, str | None, list[str]]:
    """The two columns, None for a default one that the table does not have, and notes of what that means."""
    notes: list[str] = []
    if sequence == SEQUENCE and _absent(table, SEQUENCE):
        notes.append(f"no column {sequence!r}: all rows are one sequence")
        sequence = None
    if mark == MARK and _absent(table, MARK):
        notes.append(f"no column {mark!r}: all events are of one type")
        mark = None
    return sequence, mark, notes


def _absent(table: pa.Table, default: str) -> bool:
    """Whether a table has neither a default column nor one whose name is so near that it may be meant."""
    return default not in table.column_names and nearest(default, table.column_names) is None


def _column(table: pa.Table, name: str, role: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        guess = nearest(name, table.column_names)
        advice = f"did you mean {guess!r}?" if guess else f"columns are {', '.join(table.column_names)}"
        raise DataError(f"has no column {name!r} for the {role}", where=where, fix=advice)
    if table.column_names.count(name) > 1:
        raise DataError(f"has more than one column {name!r}", where=where, fix="rename one of them")
    column = table[name]
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        raise DataError(f"column {name!r} is not text in UTF-8", where=where, fix="save the file as UTF-8")
    missing = column.is_null().to_numpy()
    if pa.types.is_string(column.type):
        missing = missing | np.array([not (value or "").strip() for value in column.to_pylist()])
    if missing.any():
        row = int(np.argmax(missing))
        raise DataError(f"column {name!r} is empty in row {row + 1}", where=where, fix="drop the incomplete rows")
    return column


def _numbers(column: pa.ChunkedArray, name: str, where: str) -> NDArray[np.float64]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"column {name!r} holds {column.type}, not numbers", where=where)
    values = column.cast(pa.float64()).to_numpy()
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values))) + 1
        raise DataError(f"column {name!r} is not a number in row {row}", where=where, fix="drop the incomplete rows")
    return values


def _places(table: pa.Table, names: tuple[str, str] | None, sphere: bool, where: str) -> NDArray[np.float64] | None:
    places = _rows_of_numbers(table, names or (), "location", where)
    if not sphere:
        return places
    if places is None:
        raise SettingsError("a sphere is asked for, but no places", fix="name the columns of both")
    wrong = (np.abs(places[:, 1]) > 90) | (np.abs(places[:, 0]) > 360)
    if wrong.any():
        row = int(np.argmax(wrong))
        longitude, latitude = places[row]
        raise DataError(
            f"row {row + 1} has longitude {longitude:g} and latitude {latitude:g}",
            where=where,
            fix="give degrees, the longitude as the first column",
        )
    return places


def _rows_of_numbers(table: pa.Table, names: Sequence[str], role: str, where: str) -> NDArray[np.float64] | None:
    """(rows, columns), or None without columns."""
    columns = [_numbers(_column(table, name, role, where), name, where) for name in names]
    return np.stack(columns, axis=1) if columns else None


def _vertices(column: pa.ChunkedArray, name: str, where: str) -> NDArray[np.int64]:
    values = _numbers(column, name, where)
    if (values != np.floor(values)).any() or values.min() < 0:
        raise DataError(f"column {name!r} does not number vertices from 0", where=where, fix="number them 0, 1, ...")
    return values.astype(np.int64)


def _marks(
    table: pa.Table, name: str | None, vocabulary: tuple[str, ...] | None, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The type of every row as a code, and the types' names."""
    if name is None:
        return _one_type(table.num_rows, vocabulary, where)
    return _codes(_column(table, name, "type", where), vocabulary, name, where)


def _one_type(count: int, vocabulary: tuple[str, ...] | None, where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if vocabulary is not None and len(vocabulary) > 1:
        raise DataError("has no column of types, and the model has several", where=where, fix="name it with --type")
    return np.zeros(count, np.int64), vocabulary or ("event",)


def _codes(
    column: pa.ChunkedArray, vocabulary: tuple[str, ...] | None, name: str, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Types as codes 0..K-1 in sorted order, of numbers by size; only those that occur have one."""
    column = _whole(column, name, where)
    values = column.to_pylist()
    if vocabulary is None:
        found = sorted(set(values))
        if len(found) > min(MANY_TYPES, max(len(values) // 2, 20)):
            raise DataError(
                f"column {name!r} has {len(found):,} different types among {len(values):,} events",
                where=where,
                fix="name the column of the types with --type, or merge rare ones",
            )
        vocabulary = tuple(str(value) for value in found)
    index = {text: code for code, text in enumerate(vocabulary)}
    unknown = sorted({str(value) for value in values} - index.keys())
    if unknown:
        guess = nearest(unknown[0], list(vocabulary))
        advice = f"did you mean {guess!r}? " if guess else ""
        raise DataError(
            f"column {name!r} has the type {unknown[0]!r}, which the model was not fitted on",
            where=where,
            fix=f"{advice}drop those events, or fit again with them",
        )
    return np.array([index[str(value)] for value in values], np.int64), vocabulary


def _whole(column: pa.ChunkedArray, name: str, where: str) -> pa.ChunkedArray:
    """Types that a reader took for floating numbers, as the whole numbers that they are."""
    if not pa.types.is_floating(column.type):
        return column
    values = column.to_numpy()
    if not (np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < EXACT)).all():
        raise DataError(
            f"column {name!r} holds numbers with fractions, not types", where=where, fix="name another with --type"
        )
    return column.cast(pa.int64())


def _sequences(table: pa.Table, name: str | None, where: str) -> tuple[NDArray[np.int64], list[str]]:
    """The sequence of every row, numbered in the order of their first rows, and the sequences' names."""
    if name is None:
        return np.zeros(table.num_rows, np.int64), ["all"]
    encoded = _column(table, name, "sequence", where).dictionary_encode().combine_chunks()
    return encoded.indices.to_numpy().astype(np.int64), [str(value) for value in encoded.dictionary.to_pylist()]


def _rows_of_sequences(
    ids: NDArray[np.int64], times: NDArray[np.float64] | NDArray[np.int64] | None
) -> list[NDArray[np.int64]]:
    """The rows of every sequence, in the order of the table or of the times."""
    order = np.lexsort((ids,) if times is None else (times, ids))  # stable: rows of a sequence keep their order
    bounds = np.flatnonzero(np.diff(ids[order], prepend=-1))
    return np.split(order, bounds[1:])


def _one_group(groups: list[str], rows: NDArray[np.int64], name: str, where: str) -> str:
    found = {groups[row] for row in rows}
    if len(found) > 1:
        raise DataError(
            f"sequence {name!r} is in more than one split ({', '.join(sorted(found))})",
            where=where,
            fix="give each sequence one value, or split by time",
        )
    return found.pop()
