"""Differences between checkpoints on the same sequences, as numbers and as intervals on a common axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from burnish.report.compare import Checkpoint
from burnish.report.metrics import KL, LOSS, metric
from burnish.report.paired import Pairing, Quantity
from burnish.report.table import verdict, write_paired


@dataclass(frozen=True)
class Forest:
    """One pair. `low`, `high`, `value` and `zero` are places on the common axis, in per cent of its width."""

    before: str
    after: str
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
    found = [
        (before, after, digest, loss)
        for before, after in pairs
        if (digest := pairing.shared_protocol(before, after)) and (loss := pairing.difference(before, after, digest))
    ]
    left_out = max(0, len(found) - most)
    found = found[:most]
    if not found:
        return [], 0
    low = min(0.0, *(loss.low for *_, loss in found))
    high = max(0.0, *(loss.high for *_, loss in found))
    air = (high - low) * 0.05 or 1.0
    low, high = low - air, high + air

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    rows = []
    for before, after, digest, loss in found:
        text, interval = write_paired(LOSS, loss)
        divergence = None if before.is_start else pairing.difference(before, after, digest, Quantity.KL)
        kl = ""
        if divergence is not None:  # against the start it would be the KL of the first table again
            change, ends = write_paired(metric(KL), divergence)
            kl = f"KL {change} ({ends})"
        rows.append(
            Forest(
                before=before.label,
                after=after.label,
                loss=text,
                interval=interval,
                kl=kl,
                verdict=verdict(LOSS, loss),
                num_sequences=loss.num_sequences,
                low=place(loss.low),
                high=place(loss.high),
                value=place(loss.value),
                zero=place(0.0),
            )
        )
    return rows, left_out
