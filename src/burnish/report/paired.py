"""Paired differences between two checkpoints that read the same sequences.

Both checkpoints saw the same text, so most of the spread between sequences is common to both and cancels in the
difference. The interval is the evaluation's own rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from burnish.core.statistics import paired_interval
from burnish.report.compare import Checkpoint


@dataclass(frozen=True)
class Difference:
    """A difference per token (or byte) with its 95 % interval.

    Attributes:
        value, low, high: after minus before.
        num_sequences: how many pairs it rests on.
    """

    value: float
    low: float
    high: float
    num_sequences: int

    @property
    def within_noise(self) -> bool:
        """Whether the interval includes 0: the sign of the difference is not known."""
        return self.low <= 0 <= self.high

    def scaled(self, factor: float) -> Difference:
        """In another unit; `factor` is positive."""
        return Difference(self.value * factor, self.low * factor, self.high * factor, self.num_sequences)


def paired_difference(before: Sequence[float], after: Sequence[float], weights: Sequence[float]) -> Difference:
    """The weighted mean of `after - before` and its interval.

    Args:
        before, after: one sum per sequence, in the same order; at least two.
        weights: what the sums are divided by, such as tokens per sequence.
    """
    found = paired_interval(*(np.asarray(column, dtype=np.float64) for column in (after, before, weights)))
    return Difference(found.value, found.low, found.high, len(weights))


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


class Pairing:
    """Paired differences, each computed once per page, and only those that the page shows."""

    def __init__(self) -> None:
        self._columns: dict[tuple[str, str], dict[str, list[float]]] = {}
        self._known: dict[tuple[str, str, str, Quantity], Difference | None] = {}

    def difference(
        self, before: Checkpoint, after: Checkpoint, protocol: str, quantity: Quantity = Quantity.LOSS
    ) -> Difference | None:
        """`after` minus `before`, or None where one has no per-sequence values, or too few, or of other sequences."""
        key = (before.digest, after.digest, protocol, quantity)
        if key not in self._known:
            self._known[key] = self._compute(before, after, protocol, quantity)
        return self._known[key]

    def shared_protocol(self, before: Checkpoint, after: Checkpoint) -> str | None:
        """The first protocol under which both were measured on the same sequences."""
        shared = [digest for digest in before.measured if digest in after.measured]
        return next((digest for digest in shared if self.difference(before, after, digest)), None)

    def loss(self, before: Checkpoint, after: Checkpoint) -> Difference | None:
        """Of the loss, under the protocol that both share."""
        protocol = self.shared_protocol(before, after)
        return self.difference(before, after, protocol) if protocol else None

    def _compute(self, before: Checkpoint, after: Checkpoint, protocol: str, quantity: Quantity) -> Difference | None:
        sums, weights, factor = _SUMS[quantity]
        first, second = self._read(before, protocol), self._read(after, protocol)
        if not all(name in columns for name in (sums, weights) for columns in (first, second)):
            return None
        if first[weights] != second[weights] or len(first[weights]) < 2:  # one sequence gives no interval
            return None
        return paired_difference(first[sums], second[sums], first[weights]).scaled(factor)

    def _read(self, column: Checkpoint, protocol: str) -> dict[str, list[float]]:
        key = (column.digest, protocol)
        if key not in self._columns:
            found = column.measured.get(protocol)
            read = found[1].read_sequences(column.digest, found[0].protocol) if found else None
            self._columns[key] = read or {}
        return self._columns[key]
