"""The before-and-after tables: checkpoints down, metrics across, one section per protocol.

The first has what decides: size, quality, speed and the time it took; the terminal shows it in brief. All other metrics
follow in further ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from burnish.core.page import Cell, Column, Footnotes, Row, Section, Small, Table, numbers
from burnish.core.page.tables import BAD, GOOD, INK, SOFT
from burnish.core.recipe import START
from burnish.core.statistics import Interval
from burnish.report import engine_speed
from burnish.report.compare import Checkpoint, protocols, start_of
from burnish.report.metrics import (
    AGREEMENT,
    BITS,
    DECODE,
    KL,
    PAIRS,
    PERPLEXITY,
    SIZE,
    Change,
    Form,
    Metric,
    in_order,
    metric,
)
from burnish.report.paired import Pairing, Quantity, within_noise
from burnish.report.protocols import describe_protocol
from burnish.report.run import RunRecord, Value

FIRST = (SIZE, PERPLEXITY, KL, AGREEMENT, DECODE, PAIRS)
MAX_ROWS = 60
_MAX_COLUMNS = 6
NOISE, OVERLAP, BETTER, WORSE = "within noise", "intervals overlap", "better", "worse"
TONES = {BETTER: GOOD, WORSE: BAD, NOISE: SOFT, OVERLAP: SOFT, "": INK}


def first_table(
    columns: Sequence[Checkpoint], runs: Sequence[RunRecord], pairing: Pairing, *, brief: bool = False
) -> Table:
    """Size, quality, speed and time of every checkpoint, measured or at least made.

    Args:
        brief: half the width of each interval instead of its ends, and no footnotes but why a value is missing.
    """
    measured = [column for column in columns if column.measured]
    engine = engine_speed.shared(measured) if measured else None
    return _Builder(FIRST, measured, runs, pairing, brief=brief, timed=True, engine=engine).table()


def further_tables(columns: Sequence[Checkpoint], runs: Sequence[RunRecord], pairing: Pairing) -> list[Table]:
    """Every other metric, a few at a time."""
    names = in_order({name for c in columns for row, _ in c.measured.values() for name in row.metrics} - set(FIRST))
    parts = [names[begin : begin + _MAX_COLUMNS] for begin in range(0, len(names), _MAX_COLUMNS)]
    return [_Builder(part, columns, runs, pairing).table() for part in parts]


@dataclass
class _Builder:
    """Fills one table; footnotes are numbered as they are first met."""

    names: Sequence[str]
    columns: Sequence[Checkpoint]
    runs: Sequence[RunRecord]
    pairing: Pairing
    brief: bool = False
    timed: bool = False
    notes: Footnotes = field(default_factory=Footnotes)
    engine: engine_speed.SpeedComparison | None = None

    def table(self) -> Table:
        shown = [metric(name) for name in self.names if any(column.protocols_of(name) for column in self.columns)]
        known = protocols(self.columns)
        sections = []
        for number, (digest, protocol) in enumerate(known.items(), start=1):
            measured = [column for column in self.columns if digest in column.measured][:MAX_ROWS]
            rows = [self.row(column, digest, shown) for column in measured]
            title = "Measured" if len(known) == 1 else f"Protocol {number}"
            sections.append(Section(rows, title, describe_protocol(protocol), f"protocol-{number}"))
        if self.timed and (unmeasured := self.unmeasured(len(shown))):
            sections.append(Section(unmeasured, "Not measured"))
        units = [what.separate_unit or self.unit(what) for what in shown]
        return Table(
            caption="Every checkpoint: below each value its 95 % interval, then its change against the start.",
            head="Checkpoint",
            columns=[
                *(Column(what.label, unit) for what, unit in zip(shown, units, strict=True)),
                *([Column("Made in")] if self.timed else []),
            ],
            sections=sections,
            notes=self.notes.texts,
        )

    def unit(self, what: Metric) -> str:
        """Of a metric that the report does not know, as the ledger has it."""
        values = [column.exact_value(what.name) for column in self.columns if what.form is Form.PLAIN]
        return next((value.unit for value in values if value is not None), "")

    def row(self, column: Checkpoint, digest: str, shown: Sequence[Metric]) -> Row:
        cells = [self.cell(what, column, digest) for what in shown]
        time = self.time(self.runs[column.run], column.node)
        return Row(column.label, [*cells, *([Cell(time)] if self.timed else [])], "" if self.brief else column.stage)

    def unmeasured(self, num_metrics: int) -> list[Row]:
        """Checkpoints that were made and of which nothing was measured."""
        measured = {(column.run, column.node) for column in self.columns}
        return [
            Row(name if len(self.runs) == 1 else f"{run.name} / {name}", [*([Cell()] * num_metrics), Cell(time)])
            for index, run in enumerate(self.runs)
            for name in run.costs
            if (index, name) not in measured and name != START and (time := self.time(run, name))
        ]

    @staticmethod
    def time(run: RunRecord, node: str) -> str:
        cost = run.costs.get(node)
        return numbers.number_seconds(cost.seconds) if cost and cost.seconds is not None else ""

    def cell(self, what: Metric, column: Checkpoint, digest: str) -> Cell:
        if self.engine is not None and what.name == DECODE:
            return engine_speed.decode_cell(self.engine, column.label, self.notes, brief=self.brief)
        value = _value(what, column, digest)
        if value is None:
            return Cell()
        if value.value is None:
            return Cell("not measured", tone=SOFT, mark=self.notes.mark(value.note.removeprefix("not measured: ")))
        start = start_of(column, self.columns, self.runs)
        change, ends, judged = "", "", ""
        if start is not None and start is not column:
            paired = _paired_change(what, self.pairing, start, column, digest)
            change, ends, judged = write_change(what, value, _value(what, start, digest), paired)
        if self.brief:
            below = [Small(what.write_half_width(value)), Small(change, TONES[judged])]
        else:
            told = Small(", ".join(filter(None, (change, judged))), TONES[judged])
            below = [Small(what.write_interval(value)), told, Small(f"({ends})" if ends else "")]
        mark = 0 if self.brief else self.notes.mark(value.note)
        return Cell(what.write_bare(value), [line for line in below if line.text], mark=mark)


def _value(what: Metric, column: Checkpoint, digest: str) -> Value | None:
    return column.exact_value(what.name) if what.exact else column.value(what.name, digest)


def _paired_change(
    what: Metric, pairing: Pairing, start: Checkpoint, column: Checkpoint, digest: str
) -> Interval | None:
    """The paired change of a metric that follows from the loss; perplexity's is left as a change of the loss."""
    if what.name not in (PERPLEXITY, BITS):
        return None
    return pairing.difference(start, column, digest, Quantity.BITS if what.name == BITS else Quantity.LOSS)


def write_change(what: Metric, value: Value, before: Value | None, paired: Interval | None) -> tuple[str, str, str]:
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


def write_paired(what: Metric, paired: Interval) -> tuple[str, str]:
    """("+0.121", "+0.105 to +0.138"); for perplexity the same in per cent, since it is exp of the loss."""
    ends, suffix = (paired.value, paired.low, paired.high), ""
    if what.name == PERPLEXITY:
        ends, suffix = tuple(100 * numbers.relative(end) for end in ends), f"{numbers.SPACE}%"
    digits = numbers.interval_digits(ends[1], ends[2])
    value, low, high = (numbers.signed(numbers.decimal(end, digits), end) for end in ends)
    return f"{value}{suffix}", f"{low} to {high}"


def verdict(what: Metric, paired: Interval) -> str:
    if within_noise(paired):
        return NOISE
    return BETTER if (paired.value < 0) == (what.better == "low") else WORSE


def _unpaired_verdict(what: Metric, value: Value, before: Value) -> str:
    """Without pairs, all that can be said is whether the intervals overlap; without intervals, nothing.

    The bounds of a speed are the slowest and fastest of a few repeats in one process. Another process on a busy
    machine may lie wholly outside them with the very same weights, so that speeds are never called better or worse.
    """
    if not what.better or (ours := value.interval) is None or (theirs := before.interval) is None:
        return ""
    if ours[0] <= theirs[1] and theirs[0] <= ours[1]:
        return OVERLAP
    if what.form is Form.RATE:
        return ""
    return BETTER if (ours < theirs) == (what.better == "low") else WORSE
