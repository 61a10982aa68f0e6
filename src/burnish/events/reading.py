"""Tables of events from CSV, parquet, JSON lines, pandas and the hub, checked on the way in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from burnish.core.errors import DataError, MissingExtraError, SettingsError, nearest
from burnish.core.outside import answered_for, parse_json, read_bytes
from burnish.events.sequence import EventSequence

CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".txt")


def read_any(path: Path, **columns: Any) -> pa.Table:
    """A table by the file's ending: .csv, .tsv, .parquet, .jsonl."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return read_parquet(path)
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return read_jsonl(path, **columns)
    if name.endswith(CSV_SUFFIXES):
        return read_csv(path)
    raise DataError("is neither .csv, .tsv, .parquet nor .jsonl", where=str(path))


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    if path.stat().st_size == 0:
        raise DataError("the file is empty", where=str(path))


def read_csv(path: Path) -> pa.Table:
    from pyarrow import csv

    _must_exist(path)
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    content = pa.BufferReader(read_bytes(path))
    with answered_for("is not a table of comma-separated values", where=str(path), error=DataError):
        return _named(csv.read_csv(content, parse_options=csv.ParseOptions(delimiter=delimiter)))


def read_parquet(path: Path) -> pa.Table:
    from pyarrow import parquet

    _must_exist(path)
    with answered_for("is not a parquet file, or is damaged", where=str(path), error=DataError):
        return _named(parquet.read_table(path))


def _named(table: pa.Table) -> pa.Table:
    """The table, whose column names can be read; raises UnicodeDecodeError where they are no UTF-8."""
    assert len(table.column_names) == table.num_columns
    return table


def read_jsonl(path: Path, *, sequence: str = "sequence_id", time: str = "time", **_: Any) -> pa.Table:
    _must_exist(path)
    rows = []
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        row = parse_json(line, where=where, error=DataError)
        if not isinstance(row, dict):
            raise DataError("is not an object", where=where, fix='write {"time": ..., "mark": ...}')
        if isinstance(row.get(time), list):
            rows.extend(_events_of(row, time, sequence, number, where))
        else:
            rows.append(row)
    with answered_for("its rows do not make a table", where=str(path), error=DataError):
        return pa.Table.from_pylist(rows)


def _events_of(row: dict[str, Any], time: str, sequence: str, number: int, where: str) -> list[dict[str, Any]]:
    """A line that holds a whole sequence, as one row an event."""
    length = len(row[time])
    lists = {key: value for key, value in row.items() if isinstance(value, list)}
    for key, value in lists.items():
        if len(value) != length:
            raise DataError(f"{key} has {len(value)} entries, but {time} has {length}", where=where)
    scalars = {key: value for key, value in row.items() if key not in lists}
    scalars.setdefault(sequence, number)
    return [scalars | {key: value[i] for key, value in lists.items()} for i in range(length)]


def read_hub(name: str, split: str) -> pa.Table:
    try:
        from datasets import load_dataset
    except ModuleNotFoundError:
        raise MissingExtraError("datasets", "train", "reading from the hub") from None
    return load_dataset(name, split=split).data.table


def _column(table: pa.Table, name: str, role: str, where: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        guess = nearest(name, table.column_names)
        advice = f"did you mean {guess!r}?" if guess else f"columns are {', '.join(table.column_names)}"
        raise DataError(f"has no column {name!r} for the {role}", where=where, fix=advice)
    if table.column_names.count(name) > 1:
        raise DataError(f"has more than one column {name!r}", where=where, fix="rename one of them")
    column = table[name]
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise DataError(f"column {name!r} is empty in row {row + 1}", where=where, fix="drop the incomplete rows")
    return column


def _times(column: pa.ChunkedArray, name: str, where: str) -> tuple[NDArray[np.float64], str]:
    """float64 times and their unit; timestamps become seconds since the earliest one, before any rounding."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        ticks = column.cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy()
        return (ticks - ticks.min()).astype(np.float64) / 1e9, "seconds"
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(
            f"column {name!r} holds {column.type}, not times", where=where, fix="use numbers or ISO timestamps"
        )
    times = column.cast(pa.float64()).to_numpy()
    if not np.isfinite(times).all():
        row = int(np.argmin(np.isfinite(times))) + 1
        raise DataError(f"column {name!r} is not a number in row {row}", where=where, fix="drop the incomplete rows")
    return times, ""


def _numbers(column: pa.ChunkedArray, name: str, where: str) -> NDArray[np.float64]:
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"column {name!r} holds {column.type}, not numbers", where=where)
    return column.cast(pa.float64()).to_numpy()


def _codes(
    column: pa.ChunkedArray, vocabulary: tuple[str, ...] | None, name: str, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Marks as codes 0..K-1. Small whole numbers from 0 stay as they are; anything else is numbered in sorted order."""
    values = np.asarray(column.to_pylist())
    whole = pa.types.is_integer(column.type) and len(values) and values.min() >= 0 and values.max() < 10_000
    if vocabulary is None:
        if whole:
            vocabulary = tuple(str(k) for k in range(int(values.max()) + 1))
        else:
            vocabulary = tuple(sorted({str(value) for value in values}))
    index = {text: code for code, text in enumerate(vocabulary)}
    unknown = sorted({str(value) for value in values} - index.keys())
    if unknown:
        guess = nearest(unknown[0], list(vocabulary))
        advice = f"did you mean {guess!r}? " if guess else ""
        raise DataError(
            f"column {name!r} has the mark {unknown[0]!r}, which the model was not fitted on",
            where=where,
            fix=f"{advice}drop those events, or fit again with them",
        )
    return np.array([index[str(value)] for value in values], np.int64), vocabulary


class Parts(TypedDict):
    """What a data set of events is made of."""

    sequences: tuple[EventSequence, ...]
    mark_names: tuple[str, ...]
    unit: str
    num_vertices: int
    notes: tuple[str, ...]


def from_table(
    table: pa.Table,
    *,
    where: str = "table",
    sequence: str | None = "sequence_id",
    time: str = "time",
    mark: str | None = "mark",
    location: tuple[str, str] | None = None,
    vertex: str | None = None,
    group: str | None = None,
    origin: str = "auto",
    sort: bool = False,
    mark_names: tuple[str, ...] | None = None,
    num_vertices: int = 0,
    unit: str = "",
) -> Parts:
    """See `EventDataset.from_table`."""
    if origin not in ("auto", "zero", "first"):
        raise SettingsError(f"origin is {origin!r}, but must be auto, zero or first")
    if table.num_rows == 0:
        raise DataError("has no events", where=where)
    times, found_unit = _times(_column(table, time, "time", where), time, where)
    if mark is None:
        marks, names = np.zeros(len(times), np.int64), mark_names or ("event",)
    else:
        marks, names = _codes(_column(table, mark, "mark", where), mark_names, mark, where)
    ids, labels = _sequences(table, sequence, where)
    places = None
    if location is not None:
        places = np.stack([_numbers(_column(table, c, "location", where), c, where) for c in location], axis=1)
    vertices = None
    if vertex is not None:
        vertices = _numbers(_column(table, vertex, "vertex", where), vertex, where).astype(np.int64)
        num_vertices = max(num_vertices, int(vertices.max()) + 1)
    groups = None if group is None else [str(v) for v in _column(table, group, "group", where).to_pylist()]
    parts = _rows_of_sequences(ids, times if sort else None)
    start, notes = _start(times, parts, origin)
    sequences = tuple(
        EventSequence(
            times[part],
            marks[part],
            locations=None if places is None else places[part],
            vertices=None if vertices is None else vertices[part],
            start=start,
            name=labels[ids[part[0]]],
            group="" if groups is None else groups[part[0]],
        )
        for part in parts
    )
    return Parts(sequences=sequences, mark_names=names, unit=unit or found_unit, num_vertices=num_vertices, notes=notes)


def _sequences(table: pa.Table, name: str | None, where: str) -> tuple[NDArray[np.int64], list[str]]:
    """The number of every row's sequence, and the sequences' names."""
    if name is None:
        return np.zeros(table.num_rows, np.int64), ["all"]
    encoded = _column(table, name, "sequence", where).dictionary_encode().combine_chunks()
    return encoded.indices.to_numpy().astype(np.int64), [str(value) for value in encoded.dictionary.to_pylist()]


def _rows_of_sequences(ids: NDArray[np.int64], times: NDArray[np.float64] | None) -> list[NDArray[np.int64]]:
    """The rows of every sequence, in the order of the table or of the times."""
    order = np.lexsort((ids,) if times is None else (times, ids))  # stable: rows of a sequence keep their order
    bounds = np.flatnonzero(np.diff(ids[order], prepend=-1))
    return np.split(order, bounds[1:])


def _start(
    times: NDArray[np.float64], parts: list[NDArray[np.int64]], origin: str
) -> tuple[float | None, tuple[str, ...]]:
    """Whether time 0 is the start of observation: plausible if first events come soon after it, as gaps go."""
    if origin == "zero":
        return 0.0, ()
    firsts = np.array([times[part[0]] for part in parts])
    spans = np.array([times[part[-1]] - times[part[0]] for part in parts])
    counts = np.array([len(part) - 1 for part in parts])
    mean_gap = spans.sum() / max(counts.sum(), 1)
    zero = origin == "auto" and firsts.min() >= 0 and 0 < np.median(firsts) <= 10 * max(mean_gap, 0.0)
    if zero:
        return 0.0, ()
    return None, ("the start of observation is unknown: times count from the first event of each sequence",)
