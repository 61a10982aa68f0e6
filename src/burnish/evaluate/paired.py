"""Whether two checkpoints differ: a paired interval over the sequences that both were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from burnish.core.errors import DataError, SettingsError
from burnish.evaluate.maths.bootstrap import Interval, paired_bootstrap

COLUMNS = {"nats": "tokens", "kl": "tokens", "agreeing": "tokens"}
"""What can be compared, and the column it is a sum over."""


def compare(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    *,
    column: str = "nats",
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of `first` minus mean of `second` per token, with a paired bootstrap interval over sequences.

    An interval that contains zero means: within noise. For perplexity, the ratio is exp(nats difference).

    Args:
        first, second: `Evaluation.sequences` of two checkpoints under one protocol.
        column: `nats` (cross-entropy), `kl` (divergence from the reference) or `agreeing` (equal first tokens).
        confidence: of the interval.
        seed: of the bootstrap's draws.

    Raises:
        DataError: the two were not measured on the same sequences, or lack the column.
        SettingsError: the column cannot be compared.
    """
    if column not in COLUMNS:
        raise SettingsError(f"column {column!r} cannot be compared", fix=f"use {', '.join(COLUMNS)}")
    for name, sequences in (("first", first), ("second", second)):
        if column not in sequences:
            raise DataError(f"has no column {column!r}", where=f"{name} evaluation", fix="evaluate with a reference")
    weights = np.asarray(first[COLUMNS[column]])
    if not np.array_equal(weights, np.asarray(second[COLUMNS[column]])):
        raise DataError("the two were not measured on the same sequences", fix="evaluate both with the same settings")
    return paired_bootstrap(
        np.asarray(first[column]), np.asarray(second[column]), weights, confidence=confidence, seed=seed
    )
