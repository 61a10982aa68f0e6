"""What a run directory says: its nodes, its measurements, what each node cost, and the tables that explain it.

    RUN/ledger.jsonl, RUN/sequences/*.parquet      required: every number comes from here
    RUN/run.json                                   optional: names, tree, settings and states of the nodes

Where `run.json` is missing (a ledger written from Python) the tree is put together from the hashes in the stage rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from burnish.core.errors import DataError
from burnish.core.ledger import FIELDS, LEDGER_FILE, Ledger
from burnish.core.recipe import START
from burnish.core.runner import RUN_FILE
from burnish.core.runner.directory import read_run_file


@dataclass(frozen=True)
class Value:
    """One measured number. `value` is None where the ledger says that it was not measured; `note` then says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    note: str = ""

    @property
    def interval(self) -> tuple[float, float] | None:
        """(low, high), where the value has bounds and they differ."""
        if self.value is None or self.low is None or self.high is None or self.low >= self.high:
            return None
        return self.low, self.high


@dataclass(frozen=True)
class Measurement:
    """One checkpoint under one protocol; `facts` are true of this checkpoint alone."""

    node: str
    checkpoint: str
    path: str
    protocol: dict[str, Any]
    metrics: dict[str, Value]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def protocol_hash(self) -> str:
        return self.protocol["hash"]


@dataclass(frozen=True)
class NodeRecord:
    """One step of the recipe as it ended; `checkpoint` is the hash of what it holds now, empty where it holds none."""

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


@dataclass(frozen=True)
class LedgerTable:
    """Rows that explain a stage."""

    node: str
    name: str
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class RunRecord:
    """Everything the report knows about one run, as the recipe stands now.

    Attributes:
        measurements, speeds: the ledger's rows of these kinds.
        checkpoints: {node: hash of its checkpoint}, `start` included.
        costs, tables: of the newest time that each node ran.
    """

    ledger: Ledger
    name: str
    start: str
    nodes: list[NodeRecord]
    measurements: list[Measurement]
    speeds: list[Measurement]
    checkpoints: dict[str, str]
    costs: dict[str, Cost]
    tables: list[LedgerTable]

    @property
    def directory(self) -> Path:
        """Where it lies; the working directory for a ledger that is only in memory."""
        return self.ledger.directory or Path()

    @property
    def times(self) -> list[str]:
        """When rows were written, from first to last."""
        return sorted(row["time"] for row in self.ledger.rows if row.get("time"))

    @property
    def num_unknown_rows(self) -> int:
        """Rows of kinds that this version does not know; they are passed over."""
        return sum(row["row"] not in FIELDS for row in self.ledger.rows)


def read_run(directory: Path) -> RunRecord:
    """Reads a run directory.

    Raises:
        DataError: no such directory, no ledger in it, an empty or damaged ledger.
        OutputError: a `run.json` that is damaged or was written by a newer burnish.
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
    return run_of(Ledger(directory), read_run_file(directory) if (directory / RUN_FILE).is_file() else None)


def run_of(ledger: Ledger, state: dict[str, Any] | None = None) -> RunRecord:
    """The run that a ledger tells of; `state` is the content of its `run.json`.

    Raises:
        DataError: no rows.
    """
    state, rows, directory = state or {}, ledger.rows, ledger.directory
    if not rows:
        where = str(directory / LEDGER_FILE) if directory else "ledger"
        raise DataError("the ledger is empty", where=where, fix="run the recipe first; there is nothing to report yet")
    measurements, speeds = (
        [_measurement(row) for row in rows if row["row"] == kind] for kind in ("measurement", "speed")
    )
    made = {row["node"]: row for row in rows if row["row"] == "stage"}  # the newest row of each node
    nodes = [_node(entry) for entry in state["tree"]] if "tree" in state else _nodes_of_rows(made)
    checkpoints = _checkpoints(nodes, [*speeds, *measurements], set(made))
    shown = {node.name for node in nodes} | set(checkpoints)
    if "tree" not in state:  # nothing was a stage: an audit, or a measurement of pairs
        shown |= {row["node"] for row in rows if row["row"] == "table"}
    start = next((m.path for m in reversed(measurements) if m.node == START), "")
    return RunRecord(
        ledger=ledger,
        name=str(state.get("name") or (directory.resolve().name if directory else "")),
        start=str(state.get("start") or start or START),
        nodes=nodes,
        measurements=measurements,
        speeds=speeds,
        checkpoints=checkpoints,
        costs={
            name: Cost(row.get("seconds"), row.get("peak_memory_bytes")) for name, row in made.items() if name in shown
        },
        tables=_tables(rows, shown),
    )


def _measurement(row: dict[str, Any]) -> Measurement:
    path, facts = row.get("path", ""), row.get("facts") or {}
    return Measurement(row["node"], row["checkpoint"], path, row["protocol"], values_of(row["metrics"]), facts)


def values_of(metrics: dict[str, dict[str, Any]]) -> dict[str, Value]:
    """Metrics as an evaluation and the ledger have them."""
    return {
        name: Value(one.get("value"), one.get("low"), one.get("high"), one.get("unit") or "", one.get("note") or "")
        for name, one in metrics.items()
    }


def _node(entry: dict[str, Any]) -> NodeRecord:
    """Of the tree in `run.json`."""
    return NodeRecord(
        name=entry["name"],
        stage=entry["stage"],
        parent=entry.get("from") or START,
        status=entry.get("status", "waiting"),
        settings=entry.get("settings", {}),
        key=entry.get("key", ""),
        checkpoint=entry.get("hash", ""),
    )


def _nodes_of_rows(made: dict[str, dict[str, Any]]) -> list[NodeRecord]:
    """The tree as the hashes of parents tell it."""
    owner = {row["checkpoint"]: name for name, row in made.items()}
    return [
        _node(
            {"from": owner.get(row.get("parents", {}).get("model", ""), START), "status": "finished"}
            | {key: row[key] for key in ("stage", "settings", "key") if key in row}
            | {"name": name, "hash": row["checkpoint"]}
        )
        for name, row in made.items()
    ]


def _checkpoints(nodes: list[NodeRecord], measurements: list[Measurement], once_nodes: set[str]) -> dict[str, str]:
    """Which checkpoint a node holds now.

    Older ones of the same name, and nodes that the recipe no longer has, are history and are not shown. What was
    measured without ever being a node, such as a checkpoint from elsewhere, is.
    """
    measured = {measurement.node: measurement.checkpoint for measurement in measurements}
    found = {START: measured[START]} if START in measured else {}
    found |= {node.name: node.checkpoint for node in nodes if node.checkpoint}
    once_nodes = once_nodes | {node.name for node in nodes} | {START}
    return found | {name: digest for name, digest in measured.items() if name not in once_nodes}


def _tables(rows: list[dict[str, Any]], shown: set[str]) -> list[LedgerTable]:
    """Tables of the newest time that each node ran, which ends with its `stage` row."""
    found: dict[str, list[LedgerTable]] = {}
    ended = set()
    for row in rows:
        name = row["node"]
        if row["row"] == "stage":
            ended.add(name)
        elif row["row"] == "table" and name in shown:
            if name in ended:  # it ran again
                found[name] = []
                ended.remove(name)
            found.setdefault(name, []).append(LedgerTable(name, row["name"], row["rows"]))
    return [table for tables in found.values() for table in tables]
