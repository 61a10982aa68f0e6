"""Which events a fit has seen: by the events themselves, not by the file that they came in.

A sequence is remembered by its number of events and a hash of them and its name (times from the first event, names of
types, places). One that begins with a remembered one has grown since: what it has more is unseen, the rest its context.
Line ends, other columns, file formats and the order of sequences do not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Self

import numpy as np

from burnish.events.data import EventDataset
from burnish.events.sequence import EventSequence

FEW = 3
"""Events by which a remembered sequence is looked up before its whole is hashed."""


class Seen:
    """The sequences of a fit.

    Args:
        known: {hash of the first few events: [(number of events, hash of them), ...]}.
    """

    def __init__(self, known: dict[str, list[tuple[int, str]]]) -> None:
        self.known = known

    @classmethod
    def of(cls, *parts: EventDataset) -> Self:
        """The sequences of the parts of the data that fitting used, context included."""
        known: dict[str, list[tuple[int, str]]] = {}
        for part in parts:
            for sequence in part.sequences:
                n = len(sequence)
                known.setdefault(_hash(sequence, min(n, FEW), part.mark_names), []).append(
                    (n, _hash(sequence, n, part.mark_names))
                )
        return cls(known)

    def to_json(self) -> list[list[int | str]]:
        """Plain data for a config."""
        return [[few, n, whole] for few, entries in self.known.items() for n, whole in entries]

    @classmethod
    def from_json(cls, rows: Iterable[tuple[str, int, str]]) -> Self:
        known: dict[str, list[tuple[int, str]]] = {}
        for few, n, whole in rows:
            known.setdefault(few, []).append((n, whole))
        return cls(known)

    def num_seen(self, sequence: EventSequence, mark_names: tuple[str, ...]) -> int:
        """So many leading events of a sequence were seen."""
        found = 0
        for first in {min(len(sequence), few) for few in range(1, FEW + 1)}:
            for n, whole in self.known.get(_hash(sequence, first, mark_names), []):
                if found < n <= len(sequence) and min(n, FEW) == first and _hash(sequence, n, mark_names) == whole:
                    found = n
        return found

    def unseen(self, dataset: EventDataset) -> tuple[EventDataset, str]:
        """The rest of a data set, with what was seen as context, and a sentence about it."""
        kept, dropped, cut = [], 0, 0
        for sequence in dataset.sequences:
            n = self.num_seen(sequence, dataset.mark_names)
            if n == len(sequence) and n > sequence.context:
                dropped += 1
                continue
            cut += n > 0
            kept.append(replace(sequence, context=max(n, sequence.context)))
        rest = dataset.with_sequences(kept)
        told = f"{len(kept):,} sequences with {rest.num_events:,} events that fitting has not seen"
        if dropped:
            told += f" ({dropped:,} sequences that it has seen are left out)"
        if cut:
            told += f" ({cut:,} of them go on from events that it has seen)"
        return rest, told


def _hash(sequence: EventSequence, n: int, names: tuple[str, ...]) -> str:
    digest = hashlib.sha256(sequence.name.encode())
    digest.update((sequence.times[:n] - sequence.times[0]).tobytes() if n else b"")
    digest.update("\0".join(names[mark] for mark in sequence.marks[:n]).encode())
    for values in (sequence.locations, sequence.vertices, sequence.covariates):
        digest.update(b"-" if values is None else np.ascontiguousarray(values[:n]).tobytes())
    return digest.hexdigest()[:20]
