"""The ledger as a table for the terminal: one line per checkpoint, narrow enough for eighty columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from burnish.core.recipe import START
from burnish.report import numbers
from burnish.report.metrics import AGREEMENT, DECODE, KL, PERPLEXITY, SIZE, Form, metric
from burnish.report.protocols import protocol_differences, show
from burnish.report.run import Measurement, check_rows, read_measurements

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = {
    SIZE: "size",
    PERPLEXITY: "ppl",
    KL: "KL",
    AGREEMENT: "same\ntop",
    DECODE: "decode\ntok/s",
}


def ledger_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Size, quality and speed of every checkpoint of a ledger, and the time that its stage took.

    Values that were measured under another protocol than those above them are marked and not to be compared; the
    caption says in which fields the protocols differ.

    Args:
        rows: of a ledger, as `Ledger.rows` holds them.

    Raises:
        DataError: no rows, or rows that are not a ledger's.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    check_rows(rows, where="ledger")
    newest = _newest(read_measurements(rows))
    seconds = {row["node"]: row["seconds"] for row in rows if row["row"] == "stage" and row.get("seconds") is not None}
    made = [row["node"] for row in rows if row["row"] == "stage"]
    order = [name for name in dict.fromkeys([START, *made, *newest]) if name in newest or name in seconds]
    shown = [name for name in _COLUMNS if any(name in one.metrics for one in newest.values())]
    first = {name: next(one for one in newest.values() if name in one.metrics) for name in shown}
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption_justify="left", caption_style="dim"
    )
    table.add_column("checkpoint", overflow="fold", min_width=8)
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    others: dict[str, list[tuple[str, Any, Any]]] = {}
    for node in order:
        one = newest.get(node)
        cells = []
        for name in shown:
            foreign = False
            if one and name in one.metrics and not metric(name).exact:
                foreign = one.protocol_hash != first[name].protocol_hash
            if one and foreign:
                others.setdefault(node, protocol_differences(first[name].protocol, one.protocol))
            cells.append(Text(_cell(name, one) + ("*" if foreign else "")))
        time = Text(numbers.number_seconds(seconds[node])) if node in seconds else Text("")
        table.add_row(Text(node), *cells, time)
    if others:
        told = (
            f"* {node}: another protocol, not comparable: "
            + ", ".join(f"{field} {show(theirs)}, above {show(ours)}" for field, ours, theirs in differences)
            for node, differences in others.items()
        )
        table.caption = Text("\n".join(told))
    return table


def _newest(measurements: Sequence[Measurement]) -> dict[str, Measurement]:
    """{node: its newest measurement}, in the order in which nodes were first measured."""
    return {one.node: one for one in measurements}


def _cell(name: str, one: Measurement | None) -> str:
    """A value with the half-width of its interval below it."""
    value = one.metrics.get(name) if one else None
    if value is None:
        return ""
    if value.value is None:
        return "not\nmeasured"
    what = metric(name)
    text = what.write_bare(value)
    if what.form is Form.BYTES or not value.has_interval or value.low is None or value.high is None:
        return text
    scale = 100 if what.form is Form.FRACTION else 1
    low, high = value.low * scale, value.high * scale
    return f"{text}\n±{numbers.decimal((high - low) / 2, numbers.interval_digits(low, high))}"
