"""What was made, and what it gained and cost, in one sentence per result that a hurried reader can quote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from burnish.core.page import numbers
from burnish.core.recipe import START
from burnish.report.compare import Checkpoint, start_of
from burnish.report.metrics import DECODE, KL, PERPLEXITY, SIZE, metric
from burnish.report.paired import Difference, Pairing
from burnish.report.protocols import base_name, listing, protocol_differences, show
from burnish.report.run import Run, Value
from burnish.report.table import OVERLAP, write_change, write_paired

MAX_HEADLINES = 8
_SAME_SIZE = 1.005
_WORDS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Headline:
    """One result.

    Attributes:
        result: its name on the page.
        told: what it is and what it gained and cost: "4 bits, 58 % smaller, 14 % higher perplexity (GPTQ)".
        details: the numbers behind that.
        verdict: "the better of two", where one result is.
    """

    result: str
    told: str
    details: str
    verdict: str = ""


def headlines(columns: Sequence[Checkpoint], runs: Sequence[Run], pairing: Pairing) -> list[Headline]:
    """One for every leaf of every recipe that was measured; the best first where one is, else in the recipes' order."""
    leaves = [column for column in columns if column.is_leaf]
    winner = best(leaves, [start_of(column, columns, runs) for column in leaves], pairing)
    found = []
    for column in leaves:
        one = _headline(column, start_of(column, columns, runs), runs[column.run], pairing)
        if column is winner:
            word = "better" if len(leaves) == 2 else "best"
            number = _WORDS[len(leaves) - 2] if len(leaves) < 2 + len(_WORDS) else f"{len(leaves)}"
            found.insert(0, replace(one, verdict=f"the {word} of {number}"))
        else:
            found.append(one)
    return found


def best(leaves: Sequence[Checkpoint], starts: Sequence[Checkpoint | None], pairing: Pairing) -> Checkpoint | None:
    """The result that is no larger than any other of the same start and whose loss is lower beyond noise."""
    if len(leaves) < 2 or None in starts or any(start is not starts[0] for start in starts):
        return None
    return next(
        (one for one in leaves if all(_beats(one, other, pairing) for other in leaves if other is not one)), None
    )


def _beats(one: Checkpoint, other: Checkpoint, pairing: Pairing) -> bool:
    ours, theirs = one.exact_value(SIZE), other.exact_value(SIZE)
    if ours is None or theirs is None or ours.value is None or theirs.value is None:
        return False
    protocol = pairing.shared_protocol(other, one)
    loss = pairing.difference(other, one, protocol) if protocol else None
    return ours.value <= theirs.value * _SAME_SIZE and loss is not None and loss.high < 0


def _headline(column: Checkpoint, start: Checkpoint | None, run: Run, pairing: Pairing) -> Headline:
    bits, made_by = _made(column, run)
    if start is None:
        return Headline(column.label, f"{bits or 'made'} ({made_by})", "the start was not measured")
    size, sizes = _size(start, column)
    quality, qualities = _quality(start, column, pairing)
    told = ", ".join(filter(None, (bits, size, quality))) or "nothing was measured on both"
    details = "; ".join(filter(None, (f"from {base_name(run.start)}", sizes, qualities, _speed(start, column))))
    return Headline(column.label, f"{told} ({made_by})", details)


def _made(column: Checkpoint, run: Run) -> tuple[str, str]:
    """("4 bits", "GPTQ, then distill"): the width of the last stage that chose one, and the way from the start."""
    by_name = {node.name: node for node in run.nodes}
    chain = []
    name = column.node
    while name != START and name in by_name and by_name[name] not in chain:
        chain.insert(0, by_name[name])
        name = by_name[name].parent
    widths = [node.settings["bits"] for node in chain if isinstance(node.settings.get("bits"), int)]
    ways = [
        str(node.settings["method"]).upper() if node.stage == "quantize" and "method" in node.settings else node.stage
        for node in chain
    ]
    return (f"{widths[-1]}{numbers.SPACE}bits" if widths else ""), ", then ".join(ways)


def _size(start: Checkpoint, column: Checkpoint) -> tuple[str, str]:
    before, after = start.exact_value(SIZE), column.exact_value(SIZE)
    if before is None or after is None or not before.value or after.value is None:
        return "", ""
    change = after.value / before.value - 1
    if abs(change) < _SAME_SIZE - 1:
        return "the same size", numbers.number_bytes(after.value)
    sizes = f"{numbers.number_bytes(before.value)} to {numbers.number_bytes(after.value)}"
    return f"{_percent(change)} {'smaller' if change < 0 else 'larger'}", sizes


def _percent(change: float) -> str:
    return numbers.percent(abs(change), 0 if abs(change) >= 0.1 else 1)


def _quality(start: Checkpoint, column: Checkpoint, pairing: Pairing) -> tuple[str, str]:
    protocol = pairing.shared_protocol(start, column)
    loss = pairing.difference(start, column, protocol) if protocol else None
    if protocol and loss:
        return _paired(loss, start, column, protocol)
    for name in (PERPLEXITY, KL):
        ours, theirs = start.protocols_of(name), column.protocols_of(name)
        shared = [digest for digest in ours if digest in theirs]
        if shared:
            return _unpaired(name, start.value(name, shared[0]), column.value(name, shared[0]))
        if ours and theirs:
            fields = protocol_differences(start.measured[ours[0]][0].protocol, column.measured[theirs[0]][0].protocol)
            told = listing([f"{field} ({show(b)} against {show(a)})" for field, a, b in fields])
            return "", f"quality is not compared, because the protocols differ in {told}"
    return "", ""


def _paired(loss: Difference, start: Checkpoint, column: Checkpoint, protocol: str) -> tuple[str, str]:
    what = metric(PERPLEXITY)
    text = base_name(str(column.measured[protocol][0].protocol.get("text", "")))
    on = f" on {text}" if text else ""
    before, after = start.value(PERPLEXITY, protocol), column.value(PERPLEXITY, protocol)
    values = f"perplexity {what.write(before)} to {what.write(after)}{on}, " if before and after else f"perplexity{on} "
    change, interval = write_paired(what, loss)
    nats = numbers.signed(numbers.decimal(loss.value, numbers.interval_digits(loss.low, loss.high)), loss.value)
    behind = f"{values}{change} (95{numbers.SPACE}% interval {interval}; {nats} nats per token)"
    if loss.within_noise:
        return "perplexity within noise of the start", behind
    return _perplexity(numbers.relative(loss.value)), behind


def _perplexity(change: float) -> str:
    """ "14 % higher perplexity"; from a doubling on as a factor."""
    if change >= 1:
        return f"{numbers.significant(1 + change, 2)} times the perplexity"
    return f"{_percent(change)} {'higher' if change > 0 else 'lower'} perplexity"


def _unpaired(name: str, before: Value | None, after: Value | None) -> tuple[str, str]:
    what = metric(name)
    if before is None or after is None or before.value is None or after.value is None:
        return "", ""
    told = f"{what.phrase} {what.write(before)} to {what.write(after)}"
    *_, verdict = write_change(what, after, before, None)
    missing = "per-sequence values are missing, so there is no paired interval"
    return told, f"{'the intervals overlap; ' if verdict == OVERLAP else ''}{missing}"


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
