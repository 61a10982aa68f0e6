"""The first table, of the page and of the terminal: checkpoints down; size, quality, speed and time across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.core.page import Cell, Column, Footnotes, Row, Section, Small, Table, numbers
from burnish.core.recipe import START
from burnish.report.compare import Checkpoint, start_of
from burnish.report.metrics import AGREEMENT, DECODE, KL, PERPLEXITY, SIZE, Form, metric
from burnish.report.paired import Pairing
from burnish.report.protocols import listing, protocol_differences, show
from burnish.report.run import Run, Value
from burnish.report.table import MAX_COLUMNS, TONES, not_measured, paired_change, write_change

_SHOWN = (SIZE, PERPLEXITY, KL, AGREEMENT, DECODE)


def summary(columns: Sequence[Checkpoint], runs: Sequence[Run], pairing: Pairing) -> Table:
    """One line per checkpoint, measured or at least made; a footnote says why a value is missing or not comparable."""
    return _Builder(columns, runs, pairing).table()


@dataclass
class _Builder:
    columns: Sequence[Checkpoint]
    runs: Sequence[Run]
    pairing: Pairing
    notes: Footnotes = field(default_factory=Footnotes)

    def table(self) -> Table:
        shown = [name for name in _SHOWN if any(column.protocols_of(name) for column in self.columns)]
        rows = [self.row(*line, shown) for line in self.lines()[:MAX_COLUMNS]]
        return Table(
            caption="Every checkpoint: below each value half the width of its 95 % interval, and its change against "
            "the start.",
            head="Checkpoint",
            columns=[*(Column(metric(name).label, metric(name).separate_unit) for name in shown), Column("Made in")],
            sections=[Section(rows)],
            notes=self.notes.texts,
        )

    def lines(self) -> list[tuple[str, Checkpoint | None, str]]:
        """(label, what was measured of it, time that its stage took) of every checkpoint, in the recipes' order."""
        measured = {(column.run, column.node): column for column in self.columns}
        found = []
        for index, run in enumerate(self.runs):
            for name in dict.fromkeys([*run.checkpoints, *run.costs]):
                column, cost = measured.get((index, name)), run.costs.get(name)
                time = numbers.number_seconds(cost.seconds) if cost and cost.seconds is not None else ""
                if column or time:
                    label = name if len(self.runs) == 1 or name == START else f"{run.name} / {name}"
                    found.append((label, column, time))
        return found

    def row(self, label: str, column: Checkpoint | None, time: str, shown: Sequence[str]) -> Row:
        cells = [self.cell(name, column) if column else Cell() for name in shown]
        return Row(label, [*cells, Cell(time)])

    def cell(self, name: str, column: Checkpoint) -> Cell:
        """A value under the protocol of the first checkpoint that has the metric, or marked as of another one."""
        what = metric(name)
        first = next(one for one in self.columns if one.protocols_of(name))
        common, own = first.protocols_of(name), column.protocols_of(name)
        if not own:
            return Cell()
        digest = common[0] if common[0] in own else own[0]
        value = column.value(name, digest)
        assert value is not None
        if value.value is None:
            return not_measured(value, self.notes)
        note = ""
        if not what.exact and digest != common[0]:
            ours, theirs = first.measured[common[0]][0].protocol, column.measured[digest][0].protocol
            note = _another_protocol(first.label, protocol_differences(ours, theirs))
        start = start_of(column, self.columns, self.runs)
        below = [Small(_half_width(what.form, value))]
        if start is not None and start is not column:
            before = start.exact_value(name) if what.exact else start.value(name, digest)
            change, _, judged = write_change(
                what, value, before, paired_change(what, self.pairing, start, column, digest)
            )
            below.append(Small(change, TONES[judged]))
        return Cell(what.write_bare(value), [line for line in below if line.text], mark=self.notes.mark(note))


def _another_protocol(first: str, differences: Sequence[tuple[str, Any, Any]]) -> str:
    told = listing([f"{name} ({show(theirs)} against {show(ours)})" for name, ours, theirs in differences])
    return f"another protocol than {first}, not comparable: {told}"


def _half_width(form: Form, value: Value) -> str:
    if form is Form.BYTES or not value.has_interval or value.low is None or value.high is None:
        return ""
    scale = 100 if form is Form.FRACTION else 1
    low, high = value.low * scale, value.high * scale
    return f"±{numbers.decimal((high - low) / 2, numbers.interval_digits(low, high))}"
