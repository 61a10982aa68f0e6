"""Paired differences between two checkpoints that read the same sequences.

Both checkpoints saw the same text, so most of the spread between sequences is common to both and cancels in the
difference. The interval is the evaluation's own rule.
"""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np

from burnish.core.statistics import Interval, paired_interval
from burnish.report.compare import Checkpoint


class Quantity(StrEnum):
    """What is compared sequence by sequence, in the unit of the table."""

    LOSS = "loss"
    BITS = "bits"
    KL = "kl"


_SUMS = {
    Quantity.LOSS: ("nats", "tokens", 1.0),
    Quantity.BITS: ("nats", "bytes", 1 / math.log(2)),
    Quantity.KL: ("kl", "tokens", 1.0),
}
"""{quantity: (column of sums, column they are divided by, factor)}, in the columns that the evaluation writes."""


def within_noise(difference: Interval) -> bool:
    """Whether the interval includes 0: the sign of the difference is not known."""
    return difference.low <= 0 <= difference.high


class Pairing:
    """Paired differences, each computed once per page, and only those that the page shows."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], dict[str, list[float]]] = {}
        self._known: dict[tuple[str, str, str, Quantity], Interval | None] = {}

    def difference(
        self, before: Checkpoint, after: Checkpoint, protocol: str, quantity: Quantity = Quantity.LOSS
    ) -> Interval | None:
        """`after` minus `before`, or None where one has no per-sequence values, or too few, or of other sequences."""
        key = (before.digest, after.digest, protocol, quantity)
        if key not in self._known:
            self._known[key] = self._compute(before, after, protocol, quantity)
        return self._known[key]

    def loss(self, before: Checkpoint, after: Checkpoint) -> tuple[str, Interval] | None:
        """The first protocol under which both were measured on the same sequences, and the difference of the loss."""
        shared = [digest for digest in before.measured if digest in after.measured]
        found = ((digest, self.difference(before, after, digest)) for digest in shared)
        return next(((digest, difference) for digest, difference in found if difference), None)

    def _compute(self, before: Checkpoint, after: Checkpoint, protocol: str, quantity: Quantity) -> Interval | None:
        sums, weights, factor = _SUMS[quantity]
        first, second = self._read(before, protocol), self._read(after, protocol)
        if not all(name in columns for name in (sums, weights) for columns in (first, second)):
            return None
        if first[weights] != second[weights] or len(first[weights]) < 2:  # one sequence gives no interval
            return None
        found = paired_interval(*(np.asarray(column) for column in (second[sums], first[sums], first[weights])))
        return found.map(lambda value: value * factor)

    def _read(self, column: Checkpoint, protocol: str) -> dict[str, list[float]]:
        key = (column.digest, protocol)
        if key not in self._columns:
            found = column.measured.get(protocol)
            read = found[1].read_sequences(column.digest, found[0].protocol) if found else None
            self._columns[key] = read or {}
        return self._columns[key]
