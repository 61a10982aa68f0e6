"""Tables of events from CSV, parquet, JSON lines and the hub; what their columns mean is in columns.py."""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from burnish.core.errors import DataError, MissingExtraError
from burnish.core.outside import answered_for, parse_json, read_bytes

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
    content = read_bytes(path)
    if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise DataError("is text in UTF-16", where=str(path), fix="save it as UTF-8")
    with answered_for("is not a table of comma-separated values", where=str(path), error=DataError):
        parse = csv.ParseOptions(delimiter=_delimiter(content))
        convert = csv.ConvertOptions(null_values=[""])  # a type may be called NA or null
        table = _named(csv.read_csv(pa.BufferReader(content), parse_options=parse, convert_options=convert))
    if any(_looks_like_a_value(name) for name in table.column_names):
        raise DataError(
            f"has no header: its first line is {', '.join(table.column_names)!r}",
            where=str(path),
            fix="name the columns in the first line",
        )
    return table


def _delimiter(content: bytes) -> str:
    """The separator that the first line has most of."""
    header = content.split(b"\n", 1)[0].decode("utf-8", errors="replace")
    return max(",\t;|", key=header.count)


def _looks_like_a_value(name: str) -> bool:
    """Whether what should be a column's name is a number or a date."""
    for kind in (float, datetime.fromisoformat):
        try:
            kind(name)
        except ValueError:
            continue
        return True
    return False


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
