"""Differences between checkpoints on the same sequences, as numbers and as intervals on a common axis."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.core.page import Cell, Column, Row, Section, Small, Table, intervals
from burnish.core.statistics import Interval
from burnish.report.compare import Checkpoint
from burnish.report.metrics import KL, LOSS, metric
from burnish.report.paired import Pairing, Quantity
from burnish.report.table import TONES, verdict, write_paired

MOST_PAIRS = 24


def forest(pairs: Sequence[tuple[Checkpoint, Checkpoint]], pairing: Pairing) -> tuple[Table | None, int]:
    """The table of paired differences, and how many pairs were left out."""
    found = [(before, after, *loss) for before, after in pairs if (loss := pairing.loss(before, after))]
    shown = found[:MOST_PAIRS]
    if not shown:
        return None, 0
    drawn = intervals([(loss.low, loss.value, loss.high) for *_, loss in shown])
    table = Table(
        caption="Paired differences between checkpoints on the same sequences",
        head="Checkpoint",
        columns=[Column("Loss, nats/token"), Column("Interval", drawn=True), Column("Verdict")],
        sections=[Section([_row(*one, cell, pairing) for one, cell in zip(shown, drawn, strict=True)])],
    )
    return table, len(found) - len(shown)


def _row(before: Checkpoint, after: Checkpoint, digest: str, loss: Interval, drawn: Cell, pairing: Pairing) -> Row:
    text, interval = write_paired(LOSS, loss)
    below = [Small(interval)]
    if not before.is_start:  # against the start it would be the KL of the first table again
        divergence = pairing.difference(before, after, digest, Quantity.KL)
        if divergence is not None:
            change, ends = write_paired(metric(KL), divergence)
            below += [Small(f"{metric(KL).label} {change}"), Small(f"({ends})")]
    judged = verdict(LOSS, loss)
    cells = [Cell(text, below), drawn, Cell(judged, tone=TONES[judged])]
    return Row(after.label, cells, below=f"against {before.label}")
