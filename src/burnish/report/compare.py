"""Which checkpoints stand beside each other, and which may not.

Numbers are comparable when they come from one protocol (the same hash). Where two checkpoints share none for a metric,
the report says so and names the fields in which their protocols differ. Counted facts (bytes, parameters) have no
protocol. A change of quality is quoted with a paired interval from the per-sequence values when both have them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePath
from typing import Any

from burnish.core.ledger import Ledger
from burnish.report.metrics import in_order, metric
from burnish.report.paired import Difference, paired_difference
from burnish.report.run import START, Measurement, Run, Value

_MAX_SIBLING_PAIRS = 4


@dataclass
class Checkpoint:
    """A column of the table: a node's checkpoint with everything that was measured on it.

    Attributes:
        run: its index among the runs of the page.
        node, stage: as in the recipe; the input is `start` and has no stage.
        label: unique on the page.
        measured: the newest measurement under each protocol, and the ledger that holds its sequences.
    """

    run: int
    node: str
    stage: str
    label: str
    digest: str
    parent: str = ""
    is_leaf: bool = False
    measured: dict[str, tuple[Measurement, Ledger]] = field(default_factory=dict)

    @property
    def is_start(self) -> bool:
        return self.node == START

    def protocols_of(self, name: str) -> list[str]:
        """Hashes of the protocols under which a metric was measured, newest first."""
        return [digest for digest, (row, _) in reversed(self.measured.items()) if name in row.metrics]

    def value(self, name: str, protocol: str) -> Value | None:
        found = self.measured.get(protocol)
        return found[0].metrics.get(name) if found else None

    def exact_value(self, name: str) -> Value | None:
        """A counted fact, from whichever protocol holds it."""
        protocols = self.protocols_of(name)
        return self.value(name, protocols[0]) if protocols else None


def checkpoints(runs: Sequence[Run]) -> list[Checkpoint]:
    """The columns of the page: each start, then nodes in the order of their recipe; only those that were measured.

    Runs that begin with the same checkpoint share one column for it.
    """
    found: list[Checkpoint] = []
    for index, run in enumerate(runs):
        parents = {node.parent for node in run.nodes}
        by_name = {node.name: node for node in run.nodes}
        for name, digest in run.checkpoints.items():
            node = by_name.get(name)
            column = Checkpoint(
                run=index,
                node=name,
                stage=node.stage if node else "",
                label=name if len(runs) == 1 else f"{run.name} / {name}",
                digest=digest,
                parent=node.parent if node else "",
                is_leaf=name != START and name not in parents,
            )
            for row in run.measurements:
                if row.checkpoint == digest:
                    column.measured.pop(row.protocol_hash, None)
                    column.measured[row.protocol_hash] = (row, run.ledger)
            twin = next((c for c in found if c.is_start and column.is_start and c.digest == digest), None)
            if twin is not None:
                twin.measured |= column.measured
                twin.label = START
            elif column.measured:
                found.append(column)
    return found


def start_of(column: Checkpoint, columns: Sequence[Checkpoint], runs: Sequence[Run]) -> Checkpoint | None:
    """The start that a checkpoint came from."""
    digest = runs[column.run].checkpoints.get(START)
    return next((c for c in columns if c.is_start and c.digest == digest), None)


# -- protocols -------------------------------------------------------------------------------------------------------


def protocols(columns: Iterable[Checkpoint]) -> dict[str, dict[str, Any]]:
    """{hash: protocol} in the order of first appearance."""
    return {digest: row.protocol for column in columns for digest, (row, _) in column.measured.items()}


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def protocol_differences(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(field, value in the first, value in the second) wherever two protocols differ; None stands for absent."""
    left, right = flatten(first), flatten(second)
    return [
        (name, left.get(name), right.get(name))
        for name in dict.fromkeys([*left, *right])
        if name != "hash" and left.get(name) != right.get(name)
    ]


def describe_protocol(protocol: dict[str, Any]) -> str:
    """One line: the fields that decide what a number means."""
    parts = []
    for name, form in _DESCRIBED:
        value = protocol.get(name)
        if value not in (None, "", 0, [], {}) and not isinstance(value, dict | list):
            parts.append(form.format(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value))
    return ", ".join(parts)


_DESCRIBED = (
    ("text", "{}"),
    ("tokens", "{} tokens"),
    ("num_tokens", "{} tokens"),
    ("context", "context {}"),
    ("dtype", "{}"),
    ("engine", "{}"),
    ("device", "{}"),
    ("threads", "threads: {}"),
    ("repeats", "repeats: {}"),
)


@dataclass(frozen=True)
class Refusal:
    """Metrics of some checkpoints that may not be set against those of another, and why."""

    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    against: str
    differences: tuple[tuple[str, Any, Any], ...]

    @property
    def sentence(self) -> str:
        names = listing([metric(name).phrase for name in self.metrics])
        fields = listing([f"{name} ({show(theirs)} against {show(ours)})" for name, ours, theirs in self.differences])
        return f"{names} of {listing(self.columns)} against {self.against}: their protocols differ in {fields}"


def refusals(columns: Sequence[Checkpoint]) -> list[Refusal]:
    """Every comparison that a reader could be tempted to make and that the protocols do not allow."""
    found: dict[tuple[str, tuple[tuple[str, str, str], ...]], dict[str, Any]] = {}
    for name in in_order({name for column in columns for row, _ in column.measured.values() for name in row.metrics}):
        having = [column for column in columns if column.protocols_of(name)]
        if metric(name).exact or len(having) < 2:
            continue
        base = having[0]
        for column in having[1:]:
            if set(base.protocols_of(name)) & set(column.protocols_of(name)):
                continue
            ours = base.measured[base.protocols_of(name)[0]][0].protocol
            theirs = column.measured[column.protocols_of(name)[0]][0].protocol
            differences = tuple(protocol_differences(ours, theirs))
            key = (base.label, tuple((field, show(a), show(b)) for field, a, b in differences))
            entry = found.setdefault(key, {"metrics": {}, "columns": {}, "differences": differences})
            entry["metrics"][name] = entry["columns"][column.label] = None
    return [
        Refusal(tuple(entry["metrics"]), tuple(entry["columns"]), base, entry["differences"])
        for (base, _), entry in found.items()
    ]


def show(value: Any) -> str:
    """A protocol's or setting's value as a person reads it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(show(entry) for entry in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {show(entry)}" for key, entry in value.items())
    text = str(value)
    if len(text) == 64 and all(letter in "0123456789abcdef" for letter in text):
        return text[:12]
    return text


def listing(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def base_name(path: str) -> str:
    """The name a person knows a checkpoint by: the last part of a path or hub id."""
    return PurePath(path.rstrip("/")).name or path


# -- paired differences ----------------------------------------------------------------------------------------------


class Quantity(StrEnum):
    """What is compared sequence by sequence, in the unit of the table."""

    LOSS = "loss"
    BITS = "bits"
    KL = "kl"


_SUMS = {
    Quantity.LOSS: ("nats", "tokens", 1.0),
    Quantity.BITS: ("nats", "bytes", 1 / math.log(2)),
    Quantity.KL: ("kl", "tokens", 1.0),
}
"""{quantity: (column of sums, column they are divided by, factor)}, in the columns that the evaluation writes."""


class Pairing:
    """Paired differences, each computed once per page, and only those that the page shows."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], dict[str, list[float]]] = {}
        self._known: dict[tuple[str, str, str, Quantity], Difference | None] = {}

    def difference(
        self, before: Checkpoint, after: Checkpoint, protocol: str, quantity: Quantity = Quantity.LOSS
    ) -> Difference | None:
        """`after` minus `before`, or None where one has no per-sequence values, or too few, or of other sequences."""
        key = (before.digest, after.digest, protocol, quantity)
        if key not in self._known:
            self._known[key] = self._compute(before, after, protocol, quantity)
        return self._known[key]

    def shared_protocol(self, before: Checkpoint, after: Checkpoint) -> str | None:
        """The first protocol under which both were measured on the same sequences."""
        shared = [digest for digest in before.measured if digest in after.measured]
        return next((digest for digest in shared if self.difference(before, after, digest)), None)

    def _compute(self, before: Checkpoint, after: Checkpoint, protocol: str, quantity: Quantity) -> Difference | None:
        sums, weights, factor = _SUMS[quantity]
        first, second = self._read(before, protocol), self._read(after, protocol)
        if not all(name in columns for name in (sums, weights) for columns in (first, second)):
            return None
        if first[weights] != second[weights] or len(first[weights]) < 2:  # one sequence gives no interval
            return None
        return paired_difference(first[sums], second[sums], first[weights]).scaled(factor)

    def _read(self, column: Checkpoint, protocol: str) -> dict[str, list[float]]:
        key = (column.digest, protocol)
        if key not in self._columns:
            found = column.measured.get(protocol)
            read = found[1].read_sequences(column.digest, found[0].protocol) if found else None
            self._columns[key] = read or {}
        return self._columns[key]


def comparisons(columns: Sequence[Checkpoint], runs: Sequence[Run]) -> list[tuple[Checkpoint, Checkpoint]]:
    """Who is set against whom: every node against its start, siblings against each other, leaves across runs.

    Siblings are paired all with all up to four of them, beyond that all with the first; the choice does not look at
    the results, so that it cannot favour one.
    """
    found: list[tuple[Checkpoint, Checkpoint]] = []
    for column in columns:
        start = start_of(column, columns, runs)
        if start is not None and not column.is_start:
            found.append((start, column))
    groups: dict[tuple[int, str], list[Checkpoint]] = {}
    for column in columns:
        if not column.is_start and column.parent:
            groups.setdefault((column.run, column.parent), []).append(column)
    for group in groups.values():
        firsts = group if len(group) <= _MAX_SIBLING_PAIRS else group[:1]
        found += [(first, second) for i, first in enumerate(firsts) for second in group[i + 1 :]]
    leaves = [column for column in columns if column.is_leaf]
    found += [(a, b) for i, a in enumerate(leaves) for b in leaves[i + 1 :] if a.run != b.run]
    return list({(a.run, a.node, b.run, b.node): (a, b) for a, b in found}.values())
