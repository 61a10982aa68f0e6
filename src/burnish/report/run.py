"""What a run directory says: its nodes, its measurements, what each node cost, and the tables that explain it.

    RUN/ledger.jsonl, RUN/sequences/*.parquet      required: every number comes from here
    RUN/run.json                                   optional: names, tree, settings and states of the nodes

Where `run.json` is missing (a ledger written from Python) the tree is put together from the hashes in the stage rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.core.errors import DataError
from burnish.core.ledger import LEDGER_FILE, Ledger
from burnish.core.recipe import START
from burnish.core.runner import RUN_FILE, RUN_FORMAT

_REQUIRED = {
    "measurement": ("checkpoint", "protocol", "metrics"),
    "stage": ("stage", "checkpoint"),
    "table": ("name", "rows"),
}


@dataclass(frozen=True)
class Value:
    """One measured number. `value` is None where the ledger says that it was not measured; `note` then says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def has_interval(self) -> bool:
        return self.value is not None and self.low is not None and self.high is not None and self.low < self.high


@dataclass(frozen=True)
class Measurement:
    """One checkpoint under one protocol."""

    node: str
    checkpoint: str
    path: str
    time: str
    protocol: dict[str, Any]
    metrics: dict[str, Value]

    @property
    def protocol_hash(self) -> str:
        return self.protocol["hash"]


@dataclass(frozen=True)
class Node:
    """One step of the recipe as it ended."""

    name: str
    stage: str
    parent: str
    status: str
    settings: dict[str, Any]
    key: str
    checkpoint: str


@dataclass(frozen=True)
class Cost:
    """What it took to make a node."""

    seconds: float | None
    peak_memory_bytes: float | None
    time: str


@dataclass(frozen=True)
class Table:
    """Rows that explain a stage."""

    node: str
    name: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """Everything the report knows about one run, as the recipe stands now.

    Attributes:
        directory: where it lies; None for a ledger that is only in memory.
        checkpoints: {node: hash of its checkpoint}, `start` included.
        costs, tables: of the newest time that each node ran.
    """

    directory: Path | None
    name: str
    start: str
    nodes: tuple[Node, ...]
    measurements: tuple[Measurement, ...]
    costs: dict[str, Cost]
    tables: tuple[Table, ...]
    ledger: Ledger
    num_rows: int
    num_unknown_rows: int = 0
    first_time: str = ""
    last_time: str = ""
    checkpoints: dict[str, str] = field(default_factory=dict)


def read_run(directory: Path) -> Run:
    """Reads a run directory.

    Raises:
        DataError: no such directory, no ledger in it, an empty or damaged ledger, a `run.json` that is damaged or was
            written by a newer burnish.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError("no such run directory", where=str(directory))
    if not (directory / LEDGER_FILE).is_file():
        raise DataError(
            f"has no {LEDGER_FILE}, so it is not a run directory",
            where=str(directory),
            fix="give the directory that was passed to -o",
        )
    return run_of(Ledger(directory), _read_state(directory / RUN_FILE))


def run_of(ledger: Ledger, state: dict[str, Any] | None = None) -> Run:
    """The run that a ledger tells of; `state` is the content of its `run.json`.

    Raises:
        DataError: as `check_rows`.
    """
    state, rows, directory = state or {}, ledger.rows, ledger.directory
    check_rows(rows, where=str(directory / LEDGER_FILE) if directory else "ledger")
    measurements = read_measurements(rows)
    nodes = _nodes(state, rows)
    checkpoints = _checkpoints(nodes, measurements, rows)
    start = next((m.path for m in reversed(measurements) if m.node == START), "")
    times = sorted(row["time"] for row in rows if row.get("time"))
    shown = {node.name for node in nodes} | set(checkpoints)
    return Run(
        directory=directory,
        name=str(state.get("name") or (directory.resolve().name if directory else "")),
        start=str(state.get("start") or start or START),
        nodes=tuple(nodes),
        measurements=tuple(measurements),
        costs={row["node"]: _cost(row) for row in rows if row["row"] == "stage" and row["node"] in shown},
        tables=tuple(_tables(rows, shown)),
        ledger=ledger,
        num_rows=len(rows),
        num_unknown_rows=sum(row["row"] not in _REQUIRED for row in rows),
        first_time=times[0] if times else "",
        last_time=times[-1] if times else "",
        checkpoints=checkpoints,
    )


def check_rows(rows: Sequence[Any], *, where: str) -> None:
    """Refuses rows that are not the ledger's; kinds that this version does not know are passed over later.

    Raises:
        DataError: no rows; a row that is not an object with a `row` field, or lacks a field of its kind.
    """
    if not rows:
        raise DataError("the ledger is empty", where=where, fix="run the recipe first; there is nothing to report yet")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("row"), str):
            raise DataError(f"row {number} does not say what kind of row it is", where=where, fix="remove that line")
        missing = [name for name in ("node", *_REQUIRED.get(row["row"], ())) if name not in row]
        if missing:
            raise DataError(f"row {number}, a {row['row']}, has no {missing[0]!r}", where=where, fix="remove that line")


def read_measurements(rows: Sequence[dict[str, Any]]) -> list[Measurement]:
    """Measurement rows in the order of the ledger."""
    return [
        Measurement(
            node=row["node"],
            checkpoint=row["checkpoint"],
            path=row.get("path", ""),
            time=row.get("time", ""),
            protocol=row["protocol"],
            metrics={name: _value(content) for name, content in row["metrics"].items()},
        )
        for row in rows
        if row["row"] == "measurement"
    ]


def _value(content: dict[str, Any]) -> Value:
    return Value(
        value=content.get("value"),
        low=content.get("low"),
        high=content.get("high"),
        unit=content.get("unit") or "",
        note=content.get("note") or "",
    )


def _cost(row: dict[str, Any]) -> Cost:
    return Cost(row.get("seconds"), row.get("peak_memory_bytes"), row.get("time", ""))


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        newer = state["format"] > RUN_FORMAT
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise DataError("is damaged", where=str(path), fix="run the recipe again; finished nodes are kept") from None
    if newer:
        raise DataError(
            f"was written by a newer burnish (run format {state['format']}, this one reads up to {RUN_FORMAT})",
            where=str(path),
            fix="upgrade burnish",
        )
    return state


def _nodes(state: dict[str, Any], rows: list[dict[str, Any]]) -> list[Node]:
    if "tree" in state:
        return [
            Node(
                name=entry["name"],
                stage=entry["stage"],
                parent=entry.get("from") or START,
                status=entry.get("status", "waiting"),
                settings=entry.get("settings", {}),
                key=entry.get("key", ""),
                checkpoint=entry.get("hash", ""),
            )
            for entry in state["tree"]
        ]
    made = {row["node"]: row for row in rows if row["row"] == "stage"}  # the newest row of each node
    owner = {row["checkpoint"]: name for name, row in made.items()}
    return [
        Node(
            name=name,
            stage=row["stage"],
            parent=owner.get(row.get("parents", {}).get("model", ""), START),
            status="finished",
            settings=row.get("settings", {}),
            key=row.get("key", ""),
            checkpoint=row["checkpoint"],
        )
        for name, row in made.items()
    ]


def _checkpoints(nodes: list[Node], measurements: list[Measurement], rows: list[dict[str, Any]]) -> dict[str, str]:
    """Which checkpoint a node holds now.

    Older ones of the same name, and nodes that the recipe no longer has, are history and are not shown. What was
    measured without being a node, such as a checkpoint from elsewhere, is.
    """
    measured = {measurement.node: measurement.checkpoint for measurement in measurements}
    found = {START: measured[START]} if START in measured else {}
    found |= {node.name: node.checkpoint for node in nodes if node.checkpoint}
    once_nodes = {row["node"] for row in rows if row["row"] == "stage"} | {node.name for node in nodes}
    return found | {name: digest for name, digest in measured.items() if name not in once_nodes and name != START}


def _tables(rows: list[dict[str, Any]], shown: set[str]) -> list[Table]:
    """Tables of the newest time that each node ran, which ends with its `stage` row."""
    found: dict[str, list[Table]] = {}
    ended = set()
    for row in rows:
        name = row["node"]
        if row["row"] == "stage":
            ended.add(name)
        elif row["row"] == "table" and name in shown:
            if name in ended:  # it ran again
                found[name] = []
                ended.remove(name)
            found.setdefault(name, []).append(Table(name, row["name"], row["rows"]))
    return [table for tables in found.values() for table in tables]
