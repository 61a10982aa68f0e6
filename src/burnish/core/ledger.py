"""The ledger of a run: append-only JSON lines, with per-sequence values in parquet files beside it.

Rows are dictionaries with a `row` field:

* `measurement`: one checkpoint under one protocol. Keys: time, node, checkpoint (its hash), path, protocol (with its
  hash), request, metrics ({name: {value, low, high, unit, note}}).
* `speed`: one checkpoint in an inference engine. Keys: those of a measurement, and facts of this checkpoint alone, such
  as the kernels that the engine has chosen; names of metrics carry the shape of a batch (`decode_speed@4x128`).
* `stage`: what a node cost. Keys: time, node, stage, settings, key, parents, checkpoint, seconds, peak_memory_bytes.
* `table`: rows that explain a stage, such as one per layer. Keys: time, node, name, rows.

A checkpoint is measured once per protocol: `Ledger.measured(checkpoint, protocol)` finds an earlier row.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.core.checkpoint.durable import replacing
from burnish.core.errors import DataError
from burnish.core.outside import answered_for, kind_of_json, parse_json

LEDGER_FILE = "ledger.jsonl"
SEQUENCES_DIRECTORY = "sequences"


def protocol_hash(protocol: dict[str, Any]) -> str:
    """Names a protocol by its content; rows with different hashes must not be compared."""
    content = {key: value for key, value in protocol.items() if key != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


FIELDS: dict[str, dict[str, type]] = {
    "measurement": {"checkpoint": str, "protocol": dict, "metrics": dict},
    "speed": {"checkpoint": str, "protocol": dict, "metrics": dict, "facts": dict},
    "stage": {"stage": str, "checkpoint": str},
    "table": {"name": str, "rows": list},
}
"""What a row must have; rows of other kinds, of a newer version, are passed over by those who read."""


class Ledger:
    """Rows of one run. `Ledger(None)` keeps them in memory, for stages called from Python."""

    def __init__(self, directory: Path | None, *, node: str = "") -> None:
        self.directory, self.node = directory, node
        self.rows: list[dict[str, Any]] = read_rows(directory / LEDGER_FILE) if directory else []

    def append(self, row: str, **content: Any) -> dict[str, Any]:
        """Adds one row, durably: written in a single call and fsynced."""
        entry = {"row": row, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "node": self.node} | content
        self.rows.append(entry)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            line = (json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode()
            path = self.directory / LEDGER_FILE
            if path.is_file() and not _ends_with_newline(path):
                line = b"\n" + line  # an earlier process died in the middle of its line; keep ours apart from it
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                while line:  # a disk that is nearly full takes a part, and the next time says so
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return entry

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Rows that explain a stage; the report draws the tables it knows by name (`layers`, `loss`, ...)."""
        self.append("table", name=name, rows=list(rows))

    def measurement(
        self,
        *,
        checkpoint: str,
        path: str,
        protocol: dict[str, Any],
        metrics: dict[str, dict[str, Any]],
        request: str = "",
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Adds one checkpoint under one protocol; with facts it is a `speed`.

        Args:
            checkpoint, path, protocol, metrics, facts: as above.
            request: names what was asked for, so that it is asked once.
        """
        self.append(
            "measurement" if facts is None else "speed",
            checkpoint=checkpoint,
            path=path,
            protocol=protocol | {"hash": protocol_hash(protocol)},
            metrics=metrics,
            request=request,
            **({} if facts is None else {"facts": facts}),
        )

    def measured(self, checkpoint: str, protocol: dict[str, Any]) -> dict[str, Any] | None:
        """The newest measurement of this checkpoint under exactly this protocol."""
        wanted = protocol_hash(protocol)
        for row in reversed(self.rows):
            if row["row"] == "measurement" and row["checkpoint"] == checkpoint and row["protocol"]["hash"] == wanted:
                return row
        return None

    def write_sequences(self, checkpoint: str, protocol: dict[str, Any], columns: dict[str, Sequence[float]]) -> None:
        """Per-sequence values, so that paired tests can be made later."""
        if self.directory is None:
            return
        import pyarrow
        import pyarrow.parquet

        path = sequences_file(self.directory, checkpoint, protocol_hash(protocol))
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            pyarrow.parquet.write_table(pyarrow.table(columns), temporary)

    def read_sequences(self, checkpoint: str, protocol: dict[str, Any]) -> dict[str, list[float]] | None:
        """The columns of `write_sequences`, or None where there are none."""
        if self.directory is None:
            return None
        path = sequences_file(self.directory, checkpoint, protocol_hash(protocol))
        if not path.is_file():
            return None
        import pyarrow.parquet

        with answered_for("cannot be read", where=str(path), fix="delete it", error=DataError):
            return pyarrow.parquet.ParquetFile(path).read().to_pydict()  # read_table would import pandas for this


def sequences_file(directory: Path, checkpoint: str, protocol: str) -> Path:
    return directory / SEQUENCES_DIRECTORY / f"{checkpoint[:16]}-{protocol[:16]}.parquet"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every whole row. A last line cut by a crash is passed over; damage elsewhere is an error."""
    if not path.is_file():
        return []
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = parse_json(line, where=where, error=DataError, fix="remove that line")
        except DataError:
            if number >= len(lines) - 1 or _is_cut(line):
                continue
            raise DataError("is not a ledger row", where=where, fix="remove that line") from None
        if said := mistake_in(row):
            raise DataError(said, where=where, fix="remove that line")
        rows.append(row)
    return rows


def mistake_in(row: Any) -> str:
    """What is wrong with a row, or nothing; the file may have been edited by hand."""
    if not isinstance(row, dict) or not isinstance(row.get("row"), str):
        return "does not say what kind of row it is"
    for name, kind in ({"node": str} | FIELDS.get(row["row"], {})).items():
        if name not in row:
            return f"a {row['row']} has no {name!r}"
        if not isinstance(row[name], kind):
            return f"a {row['row']} has {name} that is {kind_of_json(row[name])}"
    if row["row"] in ("measurement", "speed"):
        if not isinstance(row["protocol"].get("hash"), str):
            return f"a {row['row']} has a protocol without 'hash'"
        for name, metric in row["metrics"].items():
            if not isinstance(metric, dict) or not all(_is_number(metric.get(key)) for key in ("value", "low", "high")):
                return f"a {row['row']} has {name} without a value that is a number"
    if row["row"] == "stage" and not all(_is_number(row.get(key)) for key in ("seconds", "peak_memory_bytes")):
        return "a stage has a cost that is no number"
    if row["row"] == "table" and not all(isinstance(entry, dict) for entry in row["rows"]):
        return "a table has a row that is no object"
    return ""


def _is_number(value: Any) -> bool:
    """Finite, or not given."""
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _is_cut(line: bytes) -> bool:
    """A row whose writer was killed: it starts like one of ours and never ends."""
    return line.startswith(b'{"row":') and not line.rstrip().endswith(b"}")


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
