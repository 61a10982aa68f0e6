"""What was made from what, and what it gained and cost, in one sentence per result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.report import numbers
from burnish.report.compare import Checkpoint, start_of
from burnish.report.metrics import DECODE, KL, PERPLEXITY, SIZE, metric
from burnish.report.paired import Difference, Pairing
from burnish.report.protocols import base_name, listing, protocol_differences, show
from burnish.report.run import Run, Value
from burnish.report.table import OVERLAP, write_change

MAX_HEADLINES = 8


@dataclass(frozen=True)
class Headline:
    """One result, and what is said of it."""

    result: str
    start: str
    size: str
    quality: str
    speed: str

    @property
    def told(self) -> str:
        parts = [part for part in (self.size, self.quality, self.speed) if part]
        return "; ".join(parts) if parts else "nothing was measured on both"


def headlines(columns: Sequence[Checkpoint], runs: Sequence[Run], pairing: Pairing) -> list[Headline]:
    """One for every leaf of every recipe that was measured, in the recipe's order."""
    found = []
    for column in columns:
        if not column.is_leaf:
            continue
        start = start_of(column, columns, runs)
        name = base_name(runs[column.run].start)
        if start is None:
            found.append(Headline(column.label, name, "", "the start was not measured", ""))
            continue
        found.append(
            Headline(column.label, name, _size(start, column), _quality(start, column, pairing), _speed(start, column))
        )
    return found


def _size(start: Checkpoint, column: Checkpoint) -> str:
    before, after = start.exact_value(SIZE), column.exact_value(SIZE)
    if before is None or after is None or not before.value or after.value is None:
        return ""
    change = after.value / before.value - 1
    sizes = f"{numbers.number_bytes(before.value)} to {numbers.number_bytes(after.value)}"
    if abs(change) < 0.0005:
        return f"the same size, {numbers.number_bytes(after.value)}"
    told = numbers.percent(abs(change), 0 if abs(change) > 0.1 else 1)
    return f"{sizes} ({told} {'smaller' if change < 0 else 'larger'})"


def _quality(start: Checkpoint, column: Checkpoint, pairing: Pairing) -> str:
    protocol = pairing.shared_protocol(start, column)
    loss = pairing.difference(start, column, protocol) if protocol else None
    if protocol and loss:
        return _paired(loss, base_name(str(column.measured[protocol][0].protocol.get("text", ""))))
    for name in (PERPLEXITY, KL):
        ours, theirs = start.protocols_of(name), column.protocols_of(name)
        shared = [digest for digest in ours if digest in theirs]
        if shared:
            return _unpaired(name, start.value(name, shared[0]), column.value(name, shared[0]))
        if ours and theirs:
            fields = protocol_differences(start.measured[ours[0]][0].protocol, column.measured[theirs[0]][0].protocol)
            told = listing([f"{field} ({show(b)} against {show(a)})" for field, a, b in fields])
            return f"quality is not compared, because the protocols differ in {told}"
    return ""


def _paired(loss: Difference, text: str) -> str:
    low, high = numbers.ends(loss.low, loss.high)
    on = f" on {text}" if text else ""
    if loss.within_noise:
        return f"loss{on} within noise of the start ({low} to {high} nats per token)"
    if loss.value < 0:
        low, high = numbers.ends(-loss.high, -loss.low)
    value = numbers.decimal(abs(loss.value), numbers.interval_digits(loss.low, loss.high))
    told = f"{value} nats per token {'worse' if loss.value > 0 else 'better'}{on}"
    return f"{told} (95{numbers.SPACE}% interval {low} to {high})"


def _unpaired(name: str, before: Value | None, after: Value | None) -> str:
    what = metric(name)
    if before is None or after is None or before.value is None or after.value is None:
        return ""
    told = f"{what.phrase} {what.write(before)} to {what.write(after)}"
    *_, verdict = write_change(what, after, before, None)
    missing = "per-sequence values are missing, so there is no paired interval"
    return f"{told} ({'the intervals overlap; ' if verdict == OVERLAP else ''}{missing})"


def _speed(start: Checkpoint, column: Checkpoint) -> str:
    """The two speeds and no verdict: see `_unpaired_verdict` of the table."""
    what = metric(DECODE)
    for digest in start.protocols_of(DECODE):
        before, after = start.value(DECODE, digest), column.value(DECODE, digest)
        if before is None or after is None or before.value is None:
            continue
        if after.value is None:
            return "speed not measured"
        return f"decode speed {what.write_bare(before)} to {what.write(after)}, one session each"
    return ""
