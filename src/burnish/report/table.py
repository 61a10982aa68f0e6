"""The whole before-and-after table: metrics down, checkpoints across, one section per protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from burnish.core.page import BAD, GOOD, SOFT, Cell, Column, Footnotes, Row, Section, Small, Table, numbers
from burnish.report.compare import Checkpoint, protocols, start_of
from burnish.report.metrics import BITS, PERPLEXITY, Change, Form, Metric, in_order, metric
from burnish.report.paired import Difference, Pairing, Quantity
from burnish.report.protocols import describe_protocol
from burnish.report.run import Run, Value

COLUMNS_PER_TABLE = 4
MAX_COLUMNS = 60
NOISE, OVERLAP, BETTER, WORSE = "within noise", "intervals overlap", "better", "worse"
TONES = {BETTER: GOOD, WORSE: BAD, NOISE: SOFT, OVERLAP: SOFT, "": "ink"}


def tables(columns: Sequence[Checkpoint], runs: Sequence[Run], pairing: Pairing) -> list[Table]:
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
    notes: Footnotes = field(default_factory=Footnotes)

    def table(self) -> Table:
        known = protocols(self.columns)
        sections = [self.counted()]
        for number, (digest, protocol) in enumerate(known.items(), start=1):
            measured = [column.measured[digest][0] for column in self.shown if digest in column.measured]
            names = in_order({name for row in measured for name in row.metrics if not metric(name).exact})
            title = "Measured" if len(known) == 1 else f"Protocol {number}"
            rows = [self.estimated(metric(name), digest) for name in names]
            sections.append(Section(rows, title, describe_protocol(protocol), f"protocol-{number}"))
        return Table(
            caption="Measurements of every checkpoint. Below each value its 95 % interval, then its change against "
            "the start.",
            head="Metric",
            columns=[Column(c.node, ", ".join(filter(None, (c.run_name, c.stage))), label=c.label) for c in self.shown],
            sections=[section for section in sections if section.rows],
            notes=self.notes.texts,
        )

    def counted(self) -> Section:
        """Sizes, which no protocol changes."""
        names = {name for c in self.shown for row, _ in c.measured.values() for name in row.metrics}
        rows = []
        for what in (metric(name) for name in in_order(names) if metric(name).exact):
            values = [column.exact_value(what.name) for column in self.shown]
            before = [start.exact_value(what.name) if (start := self.start(column)) else None for column in self.shown]
            cells = [self.cell(what, *pair, None, numbers.DASH, "") for pair in zip(values, before, strict=True)]
            known = {value.value for value in values if value is not None}
            first = next(value for value in values if value is not None)
            same = f"{what.write_bare(first)} in all" if len(known) == 1 and all(values) and len(values) > 1 else ""
            rows.append(Row(what.label, cells, what.separate_unit, same=same))
        return Section(rows, "Size", "counted")

    def estimated(self, what: Metric, digest: str) -> Row:
        """A metric under one protocol."""
        values = [column.value(what.name, digest) for column in self.shown]
        present = [value for value in values if value is not None and value.value is not None]
        shared = {value.note for value in present} if len(present) > 1 else set()
        common = shared.pop() if len(shared) == 1 else ""
        cells = []
        for column, value in zip(self.shown, values, strict=True):
            start = self.start(column)
            before = start.value(what.name, digest) if start else None
            paired = paired_change(what, self.pairing, start, column, digest) if start else None
            cells.append(self.cell(what, value, before, paired, self.elsewhere(column, what), common))
        unit = what.separate_unit or next((value.unit for value in present if what.form is Form.PLAIN), "")
        return Row(what.label, cells, unit, self.notes.mark(common))

    def elsewhere(self, column: Checkpoint, what: Metric) -> str:
        """What stands in a cell without a value: the protocol that has one."""
        known = list(protocols(self.columns))
        found = [known.index(other) + 1 for other in column.protocols_of(what.name)]
        return f"protocol {found[0]}" if found else numbers.DASH

    def start(self, column: Checkpoint) -> Checkpoint | None:
        """What a column's change is counted from; a start has none."""
        found = start_of(column, self.columns, self.runs)
        return found if found is not column else None

    def cell(
        self,
        what: Metric,
        value: Value | None,
        before: Value | None,
        paired: Difference | None,
        absent: str,
        common_note: str,
    ) -> Cell:
        if value is None:
            return Cell(absent, tone=SOFT)
        if value.value is None:
            return not_measured(value, self.notes)
        change, ends, judged = write_change(what, value, before, paired)
        below = [
            Small(what.write_interval(value)),
            Small(", ".join(filter(None, (change, judged))), TONES[judged]),
            Small(f"({ends})" if ends else ""),
        ]
        note = value.note if value.note != common_note else ""
        return Cell(what.write_bare(value), [line for line in below if line.text], mark=self.notes.mark(note))


def not_measured(value: Value, notes: Footnotes) -> Cell:
    """What stands for a missing value; the footnote says why it is missing."""
    return Cell("not measured", tone=SOFT, mark=notes.mark(value.note.removeprefix("not measured: ")))


def paired_change(
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
    return BETTER if (paired.value < 0) == (what.better == "low") else WORSE


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
    return BETTER if (value.value < before.value) == (what.better == "low") else WORSE
