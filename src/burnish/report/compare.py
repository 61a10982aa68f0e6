"""Which checkpoints stand beside each other, and which may not.

Numbers are comparable when they come from one protocol (the same hash). Where two checkpoints share none for a metric,
the report says so and names the fields in which their protocols differ. Counted facts (bytes, parameters) have no
protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.core.ledger import Ledger
from burnish.core.recipe import START
from burnish.report.metrics import in_order, metric
from burnish.report.protocols import describe_differences, listing
from burnish.report.run import Measurement, RunRecord, Value

_MAX_SIBLING_PAIRS = 4


@dataclass
class Checkpoint:
    """A node's checkpoint with everything that was measured on it.

    Attributes:
        run: its index among the runs of the page.
        node, stage: as in the recipe; the input is `start` and has no stage.
        label: unique on the page.
        measured: the newest measurement under each protocol, and the ledger that holds its sequences.
        speeds: likewise of the speed in an engine, which has tables of its own.
    """

    run: int
    node: str
    stage: str
    label: str
    digest: str
    parent: str = ""
    is_leaf: bool = False
    measured: dict[str, tuple[Measurement, Ledger]] = field(default_factory=dict)
    speeds: dict[str, tuple[Measurement, Ledger]] = field(default_factory=dict)

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


def checkpoints(runs: Sequence[RunRecord]) -> list[Checkpoint]:
    """What the page compares: each start, then nodes in the order of their recipe; only those that were measured.

    Runs that begin with the same checkpoint share one entry for it.
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
            for row in run.speeds:
                if row.checkpoint == digest:
                    column.speeds.pop(row.protocol_hash, None)
                    column.speeds[row.protocol_hash] = (row, run.ledger)
            twin = next((c for c in found if c.is_start and column.is_start and c.digest == digest), None)
            if twin is not None:
                twin.measured |= column.measured
                twin.speeds |= column.speeds
                twin.label = START
            elif column.measured or column.speeds:
                found.append(column)
    return found


def start_of(column: Checkpoint, columns: Sequence[Checkpoint], runs: Sequence[RunRecord]) -> Checkpoint | None:
    """The start that a checkpoint came from."""
    digest = runs[column.run].checkpoints.get(START)
    return next((c for c in columns if c.is_start and c.digest == digest), None)


# -- protocols -------------------------------------------------------------------------------------------------------


def protocols(columns: Iterable[Checkpoint]) -> dict[str, dict[str, Any]]:
    """{hash: protocol} in the order of first appearance."""
    return {digest: row.protocol for column in columns for digest, (row, _) in column.measured.items()}


def apart(first: Checkpoint, second: Checkpoint, name: str) -> str:
    """In what the protocols differ under which two checkpoints have a metric; "" where they share one, or lack it."""
    ours, theirs = first.protocols_of(name), second.protocols_of(name)
    if not ours or not theirs or set(ours) & set(theirs):
        return ""
    return describe_differences(first.measured[ours[0]][0].protocol, second.measured[theirs[0]][0].protocol)


def refusals(columns: Sequence[Checkpoint]) -> list[str]:
    """Every comparison that a reader could be tempted to make and that the protocols do not allow, and why."""
    found: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for name in in_order({name for column in columns for row, _ in column.measured.values() for name in row.metrics}):
        having = [column for column in columns if column.protocols_of(name)]
        for column in having[1:] if not metric(name).exact else ():
            if differences := apart(having[0], column, name):
                names, labels = found.setdefault((having[0].label, differences), ({}, {}))
                names[metric(name).phrase] = labels[column.label] = None
    return [
        f"{listing(list(names))} of {listing(list(labels))} against {base}: their protocols differ in {differences}"
        for (base, differences), (names, labels) in found.items()
    ]


def comparisons(columns: Sequence[Checkpoint], runs: Sequence[RunRecord]) -> list[tuple[Checkpoint, Checkpoint]]:
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
