"""Speed in the engine that serves a checkpoint: who is faster on this machine, who is slower, and by how much.

Checkpoints that were asked the same batches in turns have ratios with paired intervals. Where other work disturbed a
batch, its ratio is that of processor time, and the table says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from burnish.core.page import Cell, Column, Footnotes, Row, Section, Small, Table, numbers
from burnish.core.page.tables import BAD, GOOD, INK, SOFT
from burnish.core.statistics import Interval, interval
from burnish.report.compare import Checkpoint
from burnish.report.protocols import listing
from burnish.report.run import Value

FASTER, SLOWER, SAME = "faster", "slower", "no difference shown"
_TONES = {FASTER: GOOD, SLOWER: BAD, SAME: SOFT}


@dataclass(frozen=True)
class SpeedEntry:
    """A checkpoint under a protocol of speed.

    Attributes:
        label: its name on the page.
        metrics: {name with the shape of the batch: value}, such as `decode_speed@4x128`.
        rounds: {`decode@4x128`: seconds a token in every round}; empty where it was not measured.
        facts: of the checkpoint in this engine: kernels, types in a file.
    """

    label: str
    metrics: Mapping[str, Value]
    rounds: Mapping[str, Sequence[float]]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class SpeedComparison:
    """Checkpoints under one protocol; ratios are those to the first."""

    protocol: Mapping[str, Any]
    entries: Sequence[SpeedEntry]

    @property
    def shapes(self) -> list[str]:
        """Of batches: "1x128", the shortest context first."""
        return list(self.protocol["batches"])

    @property
    def engine(self) -> str:
        """With what its numbers depend on, in words."""
        facts = self.protocol
        threads = f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"
        return f"{facts['engine']} ({facts['mode']}, {threads}, {facts['instructions']}) on {facts['device']}"

    def ratio(self, entry: SpeedEntry, name: str) -> Interval | None:
        """How many times as fast it is as the first; `name` is a column of rounds."""
        first = self.entries[0]
        together = self.protocol["in_turns"] and entry.facts.get("session") == first.facts.get("session")
        if entry is first or not together or name not in first.rounds or name not in entry.rounds:
            return None
        return interval(np.asarray(first.rounds[name]), np.asarray(entry.rounds[name]), scale="log")

    def judged(self, entry: SpeedEntry, what: str, shape: str) -> tuple[Interval, str, bool] | None:
        """(ratio, verdict, whether it is of processor time) of "prefill" or "decode"."""
        if not entry.rounds or not self.entries[0].rounds:
            return None
        disturbed = any(one.metrics[f"{what}_speed@{shape}"].note for one in (entry, self.entries[0]))
        found = self.ratio(entry, f"{what}_cpu@{shape}" if disturbed else f"{what}@{shape}")
        if found is None:
            return None
        return found, FASTER if found.low > 1 else SLOWER if found.high < 1 else SAME, disturbed


def comparisons(columns: Sequence[Checkpoint]) -> list[SpeedComparison]:
    """One for every protocol of speed, the start first."""
    protocols = {digest: row.protocol for column in columns for digest, (row, _) in column.speeds.items()}
    found = []
    for digest, protocol in protocols.items():
        having = sorted((column for column in columns if digest in column.speeds), key=lambda one: not one.is_start)
        entries = []
        for column in having:
            row, ledger = column.speeds[digest]
            rounds = ledger.read_sequences(column.digest, row.protocol) or {}
            entries.append(SpeedEntry(column.label, row.metrics, rounds, row.facts))
        found.append(SpeedComparison(protocol, entries))
    return found


# -- tables ------------------------------------------------------------------------------------------------------------


def rates_table(found: SpeedComparison, *, brief: bool = False) -> Table:
    """Tokens a second, below them their interval and how many times as fast as the first that is.

    Args:
        found: what is shown.
        brief: for a terminal: without intervals of rates, and prompts only at the shortest context.
    """
    notes, first = Footnotes(), found.shapes[0]
    shown = [("prefill", shape) for shape in found.shapes if shape == first or (shape.startswith("1x") and not brief)]
    shown += [("decode", shape) for shape in found.shapes]
    rows = [Row(one.label, [_cell(found, one, *what, notes, brief) for what in shown]) for one in found.entries]
    return Table(
        caption="Tokens a second in the engine: below each value its 95 % interval, then its ratio to the first row.",
        head="Checkpoint",
        columns=[Column(_heading(*what), "tokens/s") for what in shown],
        sections=[Section(rows)],
        notes=notes.texts,
    )


def _heading(what: str, shape: str) -> str:
    batch, context = shape.split("x")
    if what == "prefill":
        return f"Prompt of {context}"
    return f"Decode {batch} at {context}"


def _cell(found: SpeedComparison, entry: SpeedEntry, what: str, shape: str, notes: Footnotes, brief: bool) -> Cell:
    value = entry.metrics.get(f"{what}_speed@{shape}")
    if value is None:
        return Cell()
    mark = 0 if brief and value.value is not None else notes.mark(value.note.removeprefix("not measured: "))
    if value.value is None:
        return Cell("not measured", tone=SOFT, mark=mark)
    below = []
    if value.interval and not brief:
        below.append(Small(numbers.span(*value.interval)))
    if judged := found.judged(entry, what, shape):
        ratio, verdict, disturbed = judged
        clock = " CPU" if disturbed else ""
        below.append(Small(f"{_times(ratio)}{clock}", _TONES[verdict]))
        if not brief:
            below.append(Small(f"{_span(ratio)}, {verdict}", _TONES[verdict]))
        elif verdict != SAME:
            below.append(Small(verdict, _TONES[verdict]))
    return Cell(numbers.significant(value.value), below, INK, mark)


def _times(ratio: Interval) -> str:
    return f"{numbers.TIMES}{numbers.SPACE}{numbers.decimal(ratio.value, 2)}"


def _span(ratio: Interval) -> str:
    return f"{numbers.decimal(ratio.low, 2)} to {numbers.decimal(ratio.high, 2)}"


def facts_table(found: SpeedComparison) -> Table:
    """Everything else: waiting for the first token, memory, time to start, kernels."""
    shapes = [shape for shape in found.shapes if shape.startswith("1x")]
    columns = [Column("First token", f"after {shape[2:]} tokens") for shape in shapes]
    columns += [Column("Start-up"), Column("Peak memory"), Column("Wall over CPU", "largest"), Column("Runs as")]
    rows = [Row(entry.label, _facts(entry, shapes, found.shapes)) for entry in found.entries if entry.rounds]
    caption = "Time to the first token, time to start, memory and kernels of every checkpoint in the engine."
    return Table(caption, "Checkpoint", columns, [Section(rows)])


def _facts(entry: SpeedEntry, alone: Sequence[str], shapes: Sequence[str]) -> list[Cell]:
    def value(name: str) -> float:
        found = entry.metrics[name].value
        assert found is not None
        return found

    cells = [Cell(numbers.number_seconds(value(f"time_to_first_token@{shape}"))) for shape in alone]
    cells.append(Cell(numbers.number_seconds(value("start_up_time"))))
    cells.append(Cell(numbers.number_bytes(value("engine_peak_memory"))))
    cells.append(Cell(numbers.significant(max(value(f"wall_over_cpu@{shape}") for shape in shapes), 2)))
    kernels = listing(entry.facts.get("kernels") or [f"dense {entry.facts['dtype']}"])
    return [*cells, Cell(str(entry.facts.get("file") or kernels))]


def shared(columns: Sequence[Checkpoint]) -> SpeedComparison | None:
    """The newest one that all of these checkpoints are in."""
    found = comparisons(columns)
    return next((one for one in reversed(found) if len(one.entries) == len(columns)), None)


def decode_cell(found: SpeedComparison, label: str, notes: Footnotes, *, brief: bool) -> Cell:
    """For the table of everything: one prompt at a time, at the shortest context."""
    entry = next(one for one in found.entries if one.label == label)
    cell = _cell(found, entry, "decode", found.shapes[0], notes, brief)
    if brief or cell.mark:
        return cell
    return replace(cell, mark=notes.mark(f"in {found.engine}, one prompt of {found.shapes[0][2:]} tokens at a time"))


def headline(start: Checkpoint, column: Checkpoint) -> str:
    """Decoding one at a time, of a checkpoint against its start; empty where one was not measured in an engine."""
    apart = ""
    for found in reversed(comparisons([start, column])):
        if len(found.entries) < 2 or not all(entry.rounds for entry in found.entries):
            continue
        if not (judged := found.judged(found.entries[1], "decode", found.shapes[0])):
            apart = f"speed in {found.protocol['engine']} not compared, because they were not measured together"
            continue
        ratio, verdict, _ = judged
        told = verdict if verdict == SAME else f"{verdict} than the start"
        times = f"{numbers.decimal(ratio.value, 2)} times the speed"
        return f"decodes at {times} in {found.protocol['engine']} ({_span(ratio)}), {told}"
    return apart


# -- sentences ---------------------------------------------------------------------------------------------------------


def sentences(found: SpeedComparison) -> list[str]:
    """What a reader should know before choosing a format for this machine."""
    told = [_told(found, entry) for entry in found.entries[1:] if entry.rounds]
    told += [_refused(entry) for entry in found.entries if not entry.rounds]
    if not found.protocol["in_turns"]:
        told.append("memory did not hold all engines at once, so that they ran one after another: no ratio is claimed")
    disturbed = [one for one in found.entries if any(value.note and one.rounds for value in one.metrics.values())]
    if disturbed:
        names = listing([one.label for one in disturbed])
        ratios = "ratios marked CPU are those of processor time"
        alone = "these rates are those of a busy machine, which of them is faster cannot be seen"
        told.append(f"other work disturbed {names}: {ratios if found.protocol['in_turns'] else alone}")
    if best := _fastest(found):
        told.append(best)
    return told


def _told(found: SpeedComparison, entry: SpeedEntry) -> str:
    by_verdict: dict[str, list[str]] = {FASTER: [], SLOWER: [], SAME: []}
    for what, shape in _cases(found):
        if judged := found.judged(entry, what, shape):
            ratio, verdict, _ = judged
            times = f"{numbers.decimal(ratio.value, 2)} times ({_span(ratio)})"
            by_verdict[verdict].append(f"{_case(what, shape)} {times}" if verdict != SAME else _case(what, shape))
    first = found.entries[0].label
    parts = [f"{one} than {first} in {listing(by_verdict[one])}" for one in (FASTER, SLOWER) if by_verdict[one]]
    if by_verdict[SAME]:
        parts.append(f"{SAME}{' from ' + first if not parts else ''} in {listing(by_verdict[SAME])}")
    return f"{entry.label}: {'; '.join(parts) or 'not compared'}"


def _refused(entry: SpeedEntry) -> str:
    notes = {value.note.removeprefix("not measured: ") for value in entry.metrics.values()}
    return f"{entry.label} does not run there: {listing(sorted(notes))}"


def _fastest(found: SpeedComparison) -> str:
    """Which is fastest at what: the most of those faster than the first, or the first where all are slower."""
    winners: dict[str, list[str]] = {}
    for what, shape in _cases(found):
        judged = [(entry.label, one) for entry in found.entries[1:] if (one := found.judged(entry, what, shape))]
        faster = [(ratio.value, label) for label, (ratio, verdict, _) in judged if verdict == FASTER]
        if faster:
            winners.setdefault(max(faster)[1], []).append(_case(what, shape))
        elif judged and all(verdict == SLOWER for _, (_, verdict, _) in judged):
            winners.setdefault(found.entries[0].label, []).append(_case(what, shape))
    told = "; ".join(f"{name} for {listing(cases)}" for name, cases in winners.items())
    return f"fastest on this machine: {told}" if told else ""


def _cases(found: SpeedComparison) -> list[tuple[str, str]]:
    alone = [("prefill", shape) for shape in found.shapes if shape.startswith("1x")]
    return [*alone, *(("decode", shape) for shape in found.shapes)]


def _case(what: str, shape: str) -> str:
    batch, context = shape.split("x")
    return f"reading {context} tokens" if what == "prefill" else f"decoding {batch} at a time after {context}"
