"""Differences between checkpoints on the same sequences, as numbers and as intervals on a common axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.report.compare import Checkpoint, Pairing
from burnish.report.metrics import KL, LOSS, metric
from burnish.report.table import verdict, write_paired


@dataclass(frozen=True)
class Forest:
    """One pair. `low`, `high`, `value` and `zero` are places on the common axis, in per cent of its width."""

    before: str
    after: str
    against_start: bool
    loss: str
    interval: str
    kl: str
    verdict: str
    num_sequences: int
    low: float
    high: float
    value: float
    zero: float


def forest(
    pairs: Sequence[tuple[Checkpoint, Checkpoint]], pairing: Pairing, most: int = 24
) -> tuple[list[Forest], int]:
    """Rows of the paired-difference table, and how many pairs were left out."""
    found = [pair for before, after in pairs if (pair := pairing.first(before, after))]
    left_out = max(0, len(found) - most)
    found = found[:most]
    if not found:
        return [], 0
    low = min(0.0, *(pair.loss.low for pair in found))
    high = max(0.0, *(pair.loss.high for pair in found))
    air = (high - low) * 0.05 or 1.0
    low, high = low - air, high + air

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = []
    for pair in found:
        loss, interval = write_paired(LOSS, pair.loss)
        kl = ""
        if pair.kl is not None and not pair.before.is_start:  # against the start it is the KL of the first table
            change, ends = write_paired(metric(KL), pair.kl)
            kl = f"KL {change} ({ends})"
        rows.append(
            Forest(
                before=pair.before.label,
                after=pair.after.label,
                against_start=pair.before.is_start,
                loss=loss,
                interval=interval,
                kl=kl,
                verdict=verdict(LOSS, pair.loss),
                num_sequences=pair.loss.num_sequences,
                low=place(pair.loss.low),
                high=place(pair.loss.high),
                value=place(pair.loss.value),
                zero=place(0.0),
            )
        )
    return rows, left_out
