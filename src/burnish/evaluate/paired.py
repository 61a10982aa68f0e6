"""Whether two checkpoints differ: a paired interval over the sequences that both were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from burnish.core.errors import DataError, SettingsError
from burnish.core.statistics import Interval, paired_interval

IDENTIFYING = ("tokens", "bytes", "doc", "pairs")
"""Columns that say what was measured; they must be equal for a comparison, and are never compared themselves."""


def compare(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    *,
    column: str = "nats",
    confidence: float = 0.95,
) -> Interval:
    """Mean of `first` minus mean of `second`, with a paired interval over sequences.

    Per token where the sequences are windows of text, per pair where they are questions, per sample where they are a
    task's. An interval that contains
    zero means: within noise. For perplexity, the ratio is exp(nats difference).

    Args:
        first, second: `Evaluation.sequences` of two checkpoints under one protocol.
        column: `nats` (cross-entropy), `kl` (divergence from the reference), `agreeing` (same top tokens), `right` (of
            preference pairs), or a task's metric, such as `acc`.
        confidence: of the interval.

    Raises:
        DataError: the two were not measured on the same sequences, or lack the column.
        SettingsError: the column says what was measured, not how well.
    """
    if column in IDENTIFYING:
        raise SettingsError(f"column {column!r} cannot be compared", fix="use nats, kl, agreeing or a task's metric")
    for name, sequences in (("first", first), ("second", second)):
        if column not in sequences:
            fix = "evaluate with a reference" if column in ("kl", "agreeing") else None
            raise DataError(f"has no column {column!r}", where=f"{name} evaluation", fix=fix)
    for name in IDENTIFYING:
        if not np.array_equal(np.asarray(first.get(name, [])), np.asarray(second.get(name, []))):
            raise DataError(
                "the two were not measured on the same sequences", fix="evaluate both with the same settings"
            )
    ours, theirs = np.asarray(first[column]), np.asarray(second[column])
    counted = next((name for name in ("tokens", "pairs") if name in first), None)
    weights = np.ones(len(ours)) if counted is None else np.asarray(first[counted])
    return paired_interval(ours, theirs, weights, confidence=confidence)
