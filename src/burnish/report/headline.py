"""What was made, and what it gained and cost, in one sentence per result that a hurried reader can quote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from burnish.core.page import numbers
from burnish.core.recipe import START
from burnish.core.statistics import Interval
from burnish.report import engine_speed
from burnish.report.compare import Checkpoint, apart, start_of
from burnish.report.metrics import DECODE, KL, PERPLEXITY, SIZE, metric
from burnish.report.paired import Pairing, within_noise
from burnish.report.protocols import base_name
from burnish.report.run import RunRecord, Value
from burnish.report.table import OVERLAP, write_change, write_paired

MAX_HEADLINES = 8
_SAME_SIZE = 0.005
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


def headlines(columns: Sequence[Checkpoint], runs: Sequence[RunRecord], pairing: Pairing) -> list[Headline]:
    """One for every leaf of every recipe that was measured; the best first where one is, else in the recipes' order."""
    leaves = {column.label: column for column in columns if column.is_leaf}
    starts = {name: start_of(column, columns, runs) for name, column in leaves.items()}
    found = {name: _headline(one, starts[name], runs[one.run], pairing) for name, one in leaves.items()}
    winner = best(list(leaves.values()), list(starts.values()), pairing)
    if winner is None:
        return list(found.values())
    word = "better" if len(leaves) == 2 else "best"
    number = _WORDS[len(leaves) - 2] if len(leaves) - 2 < len(_WORDS) else str(len(leaves))
    first = replace(found.pop(winner.label), verdict=f"the {word} of {number}")
    return [first, *found.values()]


def best(leaves: Sequence[Checkpoint], starts: Sequence[Checkpoint | None], pairing: Pairing) -> Checkpoint | None:
    """The result that is no larger than any other of the same start and whose loss is lower beyond noise."""
    if len(leaves) < 2 or starts[0] is None or any(start is not starts[0] for start in starts):
        return None
    others = {one.label: [other for other in leaves if other is not one] for one in leaves}
    return next((one for one in leaves if all(_beats(one, other, pairing) for other in others[one.label])), None)


def _beats(one: Checkpoint, other: Checkpoint, pairing: Pairing) -> bool:
    size, loss = _size_ratio(other, one), pairing.loss(other, one)
    return size is not None and size <= 1 + _SAME_SIZE and loss is not None and loss[1].high < 0


def _headline(column: Checkpoint, start: Checkpoint | None, run: RunRecord, pairing: Pairing) -> Headline:
    bits, made_by = _made(column, run)
    if start is None:
        return Headline(column.label, f"{bits or 'made'} ({made_by})", "the start was not measured")
    size, sizes = _size(start, column)
    quality, qualities = _quality(start, column, pairing)
    told = ", ".join(filter(None, (bits, size, quality))) or "nothing was measured on both"
    details = "; ".join(filter(None, (f"from {base_name(run.start)}", sizes, qualities, _speed(start, column))))
    return Headline(column.label, f"{told} ({made_by})", details)


def _made(column: Checkpoint, run: RunRecord) -> tuple[str, str]:
    """("4 bits", "GPTQ, then distill"): the width or scheme that the last stage chose, and the way from the start."""
    by_name = {node.name: node for node in run.nodes}
    chain = []
    name = column.node
    while name != START and name in by_name:
        chain.insert(0, by_name.pop(name))
        name = chain[0].parent
    widths = [_width(node.settings) for node in chain if isinstance(node.settings.get("bits"), int)]
    ways = [
        str(node.settings["method"]).upper() if node.stage == "quantize" and "method" in node.settings else node.stage
        for node in chain
    ]
    return (widths[-1] if widths else ""), ", then ".join(ways) or "measured beside the recipe"


def _width(settings: dict[str, Any]) -> str:
    """ "4 bits" of packed weights; other schemes have a width of their own, whatever `bits` says."""
    scheme = settings.get("scheme", "int")
    return f"{settings['bits']}{numbers.SPACE}bits" if scheme == "int" else str(scheme)


def _size_ratio(before: Checkpoint, after: Checkpoint) -> float | None:
    old, new = before.exact_value(SIZE), after.exact_value(SIZE)
    return new.value / old.value if old and new and old.value and new.value is not None else None


def _size(start: Checkpoint, column: Checkpoint) -> tuple[str, str]:
    ratio = _size_ratio(start, column)
    if ratio is None:
        return "", ""
    sizes = [metric(SIZE).write(value) for one in (start, column) if (value := one.exact_value(SIZE))]
    if abs(ratio - 1) < _SAME_SIZE:
        return "the same size", sizes[1]
    return f"{_percent(ratio - 1)} {'smaller' if ratio < 1 else 'larger'}", " to ".join(sizes)


def _percent(change: float) -> str:
    return numbers.percent(abs(change), 0 if abs(change) >= 0.1 else 1)


def _quality(start: Checkpoint, column: Checkpoint, pairing: Pairing) -> tuple[str, str]:
    """(what is said, the numbers behind it)."""
    loss = pairing.loss(start, column)
    if loss is not None:
        return _paired(*loss, start, column)
    for name in (PERPLEXITY, KL):
        shared = [digest for digest in start.protocols_of(name) if digest in column.protocols_of(name)]
        if shared:
            return _unpaired(name, start.value(name, shared[0]), column.value(name, shared[0]))
        if differences := apart(start, column, name):
            return "", f"quality is not compared, because the protocols differ in {differences}"
    return "", ""


def _paired(protocol: str, loss: Interval, start: Checkpoint, column: Checkpoint) -> tuple[str, str]:
    what = metric(PERPLEXITY)
    text = base_name(str(column.measured[protocol][0].protocol.get("text", "")))
    values = [what.write(value) for one in (start, column) if (value := one.value(PERPLEXITY, protocol))]
    change, interval = write_paired(what, loss)
    nats = numbers.signed(numbers.decimal(loss.value, numbers.interval_digits(loss.low, loss.high)), loss.value)
    behind = f"perplexity {' to '.join(values)}{f' on {text}' if text else ''}, {change} "
    behind += f"(95{numbers.SPACE}% interval {interval}; {nats} nats per token)"
    ratio = 1 + numbers.relative(loss.value)
    if within_noise(loss):
        return "perplexity within noise of the start", behind
    if ratio >= 2:
        return f"{numbers.significant(ratio, 2)} times the perplexity", behind
    return f"{_percent(ratio - 1)} {'higher' if ratio > 1 else 'lower'} perplexity", behind


def _unpaired(name: str, before: Value | None, after: Value | None) -> tuple[str, str]:
    what = metric(name)
    if before is None or after is None or before.value is None or after.value is None:
        return "", ""
    *_, verdict = write_change(what, after, before, None)
    missing = "per-sequence values are missing, so there is no paired interval"
    told = f"{what.phrase} {what.write(before)} to {what.write(after)}"
    return told, f"{'the intervals overlap; ' if verdict == OVERLAP else ''}{missing}"


def _speed(start: Checkpoint, column: Checkpoint) -> str:
    """In an engine, where that was measured; else the two speeds and no verdict: see `_unpaired_verdict`."""
    if told := engine_speed.headline(start, column):
        return told
    what = metric(DECODE)
    for digest in start.protocols_of(DECODE):
        before, after = start.value(DECODE, digest), column.value(DECODE, digest)
        if before is not None and after is not None and before.value is not None:
            told = f"decode speed {what.write_bare(before)} to {{}}, one session each"
            return "speed not measured" if after.value is None else told.format(what.write(after))
    return ""
