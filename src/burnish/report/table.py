"""The before-and-after table: metrics down, checkpoints across, one section per protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from burnish.report import numbers
from burnish.report.compare import Checkpoint, protocols, start_of
from burnish.report.metrics import BITS, PERPLEXITY, Change, Form, Metric, in_order, metric
from burnish.report.paired import Difference, Pairing, Quantity
from burnish.report.protocols import describe_protocol
from burnish.report.run import Run, Value

COLUMNS_PER_TABLE = 4
NOISE, OVERLAP = "within noise", "intervals overlap"
MAX_COLUMNS = 60


@dataclass(frozen=True)
class Cell:
    """One measured value as written, its interval, and its change against the start.

    Attributes:
        verdict: "better", "worse", `NOISE`, `OVERLAP` or "".
        note: number of a footnote, 0 for none.
        missing: why there is no value, where there is none.
    """

    label: str
    text: str = ""
    interval: str = ""
    change: str = ""
    change_interval: str = ""
    verdict: str = ""
    note: int = 0
    missing: str = ""


@dataclass(frozen=True)
class Line:
    """One metric; `note` is the footnote that all its cells share, `same` the value that all columns have."""

    label: str
    unit: str
    cells: list[Cell]
    note: int = 0
    same: str = ""


@dataclass(frozen=True)
class Section:
    """Rows of one protocol. `anchor` leads to its full text."""

    title: str
    detail: str
    anchor: str
    lines: list[Line]


@dataclass(frozen=True)
class ComparisonTable:
    columns: list[Checkpoint]
    sections: list[Section]
    notes: list[str]


def tables(columns: Sequence[Checkpoint], runs: Sequence[Run], pairing: Pairing) -> list[ComparisonTable]:
    """The table, cut into several where there are many checkpoints; each repeats the first start."""
    columns = columns[:MAX_COLUMNS]
    first = [columns[0]] if columns[0].is_start else []
    rest = columns[len(first) :]
    num_tables = max(1, math.ceil(len(rest) / COLUMNS_PER_TABLE))
    size = max(1, math.ceil(len(rest) / num_tables))
    parts = [rest[begin : begin + size] for begin in range(0, len(rest), size)] or [[]]
    return [_Builder([*first, *part], columns, runs, pairing).table() for part in parts]


@dataclass
class _Builder:
    """Fills one table; footnotes are numbered as they are first met."""

    shown: Sequence[Checkpoint]
    columns: Sequence[Checkpoint]
    runs: Sequence[Run]
    pairing: Pairing
    notes: list[str] = field(default_factory=list)

    def table(self) -> ComparisonTable:
        known = protocols(self.columns)
        sections = [self.counted()]
        for number, (digest, protocol) in enumerate(known.items(), start=1):
            measured = [column.measured[digest][0] for column in self.shown if digest in column.measured]
            names = in_order({name for row in measured for name in row.metrics if not metric(name).exact})
            title = "Measured" if len(known) == 1 else f"Protocol {number}"
            lines = [self.line(metric(name), digest) for name in names]
            sections.append(Section(title, describe_protocol(protocol), f"protocol-{number}", lines))
        return ComparisonTable(list(self.shown), [one for one in sections if one.lines], self.notes)

    def counted(self) -> Section:
        """Sizes, which no protocol changes."""
        names = {name for c in self.shown for row, _ in c.measured.values() for name in row.metrics}
        lines = []
        for name in in_order({name for name in names if metric(name).exact}):
            values = [column.exact_value(name) for column in self.shown]
            before = [start.exact_value(name) if (start := self.start(column)) else None for column in self.shown]
            paired = [None] * len(values)
            lines.append(self.cells(metric(name), values, before, paired, [numbers.DASH] * len(values)))
        return Section("Size", "counted", "", lines)

    def line(self, what: Metric, digest: str) -> Line:
        known = list(protocols(self.columns))
        values, befores, paired, absent = [], [], [], []
        for column in self.shown:
            start = self.start(column)
            values.append(column.value(what.name, digest))
            befores.append(start.value(what.name, digest) if start else None)
            paired.append(_paired_change(what, self.pairing, start, column, digest) if start else None)
            elsewhere = [known.index(other) + 1 for other in column.protocols_of(what.name)]
            absent.append(f"protocol {elsewhere[0]}" if elsewhere else numbers.DASH)
        return self.cells(what, values, befores, paired, absent)

    def start(self, column: Checkpoint) -> Checkpoint | None:
        """What a column's change is counted from; a start has none."""
        found = start_of(column, self.columns, self.runs)
        return found if found is not column else None

    def cells(
        self,
        what: Metric,
        values: Sequence[Value | None],
        befores: Sequence[Value | None],
        paired: Sequence[Difference | None],
        absent: Sequence[str],
    ) -> Line:
        present = [value for value in values if value is not None and value.value is not None]
        shared = {value.note for value in present} if len(present) > 1 else set()
        common = shared.pop() if len(shared) == 1 else ""
        cells = []
        for column, value, before, change, why in zip(self.shown, values, befores, paired, absent, strict=True):
            if value is None:
                cells.append(Cell(column.label, missing=why))
            elif value.value is None:
                cells.append(Cell(column.label, missing="not measured", note=self.note(value.note)))
            else:
                text, interval = what.write_bare(value), what.write_interval(value)
                note = self.note(value.note) if value.note != common else 0
                cells.append(Cell(column.label, text, interval, *write_change(what, value, before, change), note))
        unit = what.separate_unit or next((value.unit for value in present if what.form is Form.PLAIN), "")
        same = ""
        if what.exact and len(values) > 1 and len(present) == len(values) and len({one.value for one in present}) == 1:
            same = f"{what.write_bare(present[0])} in all"
        return Line(what.label, unit, cells, self.note(common), same)

    def note(self, text: str) -> int:
        """The number of a footnote, 0 for an empty one."""
        if not text:
            return 0
        text = text.removeprefix("not measured: ")
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text) + 1


def _paired_change(
    what: Metric, pairing: Pairing, start: Checkpoint, column: Checkpoint, digest: str
) -> Difference | None:
    """The paired change of a metric that follows from the loss; perplexity's is left as a change of the loss."""
    if what.name not in (PERPLEXITY, BITS):
        return None
    return pairing.difference(start, column, digest, Quantity.BITS if what.name == BITS else Quantity.LOSS)


def write_change(what: Metric, value: Value, before: Value | None, paired: Difference | None) -> tuple[str, str, str]:
    """(the change against `before`, its interval, its verdict) as written; empty where there is nothing to say."""
    if before is None or before.value is None or value.value is None or what.change is Change.NONE:
        return "", "", ""
    if paired is not None:
        return *write_paired(what, paired), verdict(what, paired)
    judged = _unpaired_verdict(what, value, before)
    if what.change is Change.DIFFERENCE:
        change = value.value - before.value
        return numbers.signed(numbers.significant(change, 3), change), "", judged
    if not before.value:
        return "", "", ""
    ratio = value.value / before.value
    if what.form is Form.RATE:
        return f"{numbers.TIMES}{numbers.SPACE}{numbers.significant(ratio, 3)}", "", judged
    return ("unchanged" if ratio == 1 else numbers.signed(numbers.percent(ratio - 1), ratio - 1)), "", judged


def write_paired(what: Metric, paired: Difference) -> tuple[str, str]:
    """("+0.121", "+0.105 to +0.138"); for perplexity the same in per cent, since it is exp of the loss."""
    ends, suffix = (paired.value, paired.low, paired.high), ""
    if what.name == PERPLEXITY:
        ends, suffix = tuple(100 * numbers.relative(end) for end in ends), f"{numbers.SPACE}%"
    digits = numbers.interval_digits(ends[1], ends[2])
    value, low, high = (numbers.signed(numbers.decimal(end, digits), end) for end in ends)
    return f"{value}{suffix}", f"{low} to {high}"


def verdict(what: Metric, paired: Difference) -> str:
    if paired.within_noise:
        return NOISE
    return "better" if (paired.value < 0) == (what.better == "low") else "worse"


def _unpaired_verdict(what: Metric, value: Value, before: Value) -> str:
    """Without pairs, all that can be said is whether the intervals overlap; without intervals, nothing.

    The bounds of a speed are the slowest and fastest of a few repeats in one process. Another process on a busy
    machine may lie wholly outside them with the very same weights, so that speeds are never called better or worse.
    """
    if not value.has_interval or not before.has_interval or not what.better:
        return ""
    assert value.low is not None and value.high is not None and before.low is not None and before.high is not None
    if value.low <= before.high and before.low <= value.high:
        return OVERLAP
    if what.form is Form.RATE:
        return ""
    assert value.value is not None and before.value is not None
    return "better" if (value.value < before.value) == (what.better == "low") else "worse"


def protocol_list(columns: Sequence[Checkpoint]) -> list[tuple[int, dict[str, Any]]]:
    """(number, protocol) in the order in which the sections of the table are numbered."""
    return list(enumerate(protocols(columns).values(), start=1))
