"""What a measurement gives: figures with intervals, what every sequence gave, and the protocol of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.core.ledger import Ledger

Metric = dict[str, Any]
"""{value, low, high, unit, note}: value is None for what was not measured, and the note says why."""


@dataclass
class Evaluation:
    """One checkpoint under one protocol.

    Attributes:
        metrics: {name: {value, low, high, unit, note}}.
        sequences: per-sequence sums, in columns: `tokens`, `bytes`, `nats`, and with a reference `kl`, `agreeing`.
        protocol: what decides whether two evaluations may be compared (see `burnish.core.ledger`).
        facts: of a speed in an engine, what is true of this checkpoint alone; None of other measurements.
    """

    metrics: dict[str, Metric]
    sequences: dict[str, list[float]]
    protocol: dict[str, Any]
    facts: dict[str, Any] | None = None

    def record(self, ledger: Ledger, checkpoint: str, path: str | Path, *, request: str = "") -> None:
        """Appends a ledger row, with the per-sequence values beside it.

        Args:
            ledger: of the run.
            checkpoint: content hash of what was measured.
            path: where it lies.
            request: names what was asked for, so that the runner asks once.
        """
        if self.sequences:
            ledger.write_sequences(checkpoint, self.protocol, dict(self.sequences))
        ledger.measurement(
            checkpoint=checkpoint,
            path=str(path),
            protocol=self.protocol,
            metrics=self.metrics,
            request=request,
            facts=self.facts,
        )
