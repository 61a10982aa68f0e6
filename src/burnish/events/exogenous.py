"""Values that change between events and act on what comes, such as weather, load or a price; constant between changes.

The rate follows them at once: a gap is cut into pieces at the changes inside it, each with its own values,

    log p(s | H, c) = log lam(s | H, c_m) - sum_j [ Lam(e_{j+1} | H, c_j) - Lam(e_j | H, c_j) ],    e_0 = 0, e_{m+1} = s

so that the pieces before the last are censored gaps, which the likelihood knows already. They must be exogenous: known
whatever the events do, and told by a table of their own. Of the time after the last row the last values are taken; that
is what a forecast does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from burnish.core.errors import DataError

if TYPE_CHECKING:
    from burnish.events.sequence import EventSequence


LARGEST = 1e100
"""Of a time or value, and the inverse of the smallest gap: squares of both, and quotients, stay numbers."""


@dataclass(frozen=True)
class Exogenous:
    """Values from given times on.

    Attributes:
        times: (m,) increasing, on the clock of the sequence.
        values: (m, C) from each time until the next.
    """

    times: NDArray[np.float64]
    values: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.times.shape != self.values.shape[:1] or not len(self.times):
            raise DataError("exogenous values need a row for each of their times, and at least one")
        if not ((np.abs(self.times) <= LARGEST).all() and (np.abs(self.values) <= LARGEST).all()):
            what = f"exogenous values or their times are not finite, or beyond {LARGEST:g}"
            raise DataError(what, fix="drop the incomplete rows, or count in another unit")
        if (np.diff(self.times) <= 0).any():
            raise DataError("the times of exogenous values do not increase", fix="give one row a time, in order")

    def until(self, time: float) -> Exogenous:
        """What was known at a time; of a time before all, the first values."""
        stop = max(int(np.searchsorted(self.times, time, side="right")), 1)
        return Exogenous(self.times[:stop], self.values[:stop])


@dataclass(frozen=True)
class Pieces:
    """The gaps of many sequences with what was known in them: n + 1 of n events, the last one after the last event.

    Attributes:
        first, last: (G, C) values when a gap begins and when it ends.
        waited: (G,) from the beginning of a gap to the beginning of its last piece, or of its observation if later.
        bounds: (G + 1,) pieces before the last one, gap by gap.
        gap, begun: (P,) end and beginning of each of those pieces, from the beginning of its gap.
        value: (P, C).
    """

    first: NDArray[np.float64]
    last: NDArray[np.float64]
    waited: NDArray[np.float64]
    bounds: NDArray[np.int64]
    gap: NDArray[np.float64]
    begun: NDArray[np.float64]
    value: NDArray[np.float64]

    @classmethod
    def of(cls, sequences: Sequence[EventSequence], waited: Sequence[NDArray[np.float64]], mean_gap: float) -> Pieces:
        """Of sequences that all have exogenous values.

        Args:
            waited: of each sequence (n + 1,) how much of a gap had passed when its observation began, in mean gaps.
            mean_gap: unit of the gaps.
        """
        rows: list[tuple[NDArray[Any], ...]] = []
        pieces: list[tuple[float, float, NDArray[np.float64]]] = []
        counts = [np.zeros(1, np.int64)]
        for sequence, passed in zip(sequences, waited, strict=True):
            known = sequence.exogenous
            assert known is not None
            begins = np.insert(sequence.times, 0, sequence.origin)
            # A change at the time of an event acts after it. After the last event, unless the end of observation is
            # known, the values known last are taken from the beginning.
            left = np.maximum(np.searchsorted(known.times, begins, side="right") - 1, 0)
            ends = np.append(sequence.times, begins[-1] if sequence.end is None else sequence.end)
            right = np.maximum(np.searchsorted(known.times, ends, side="left") - 1, left)
            if sequence.end is None:
                left[-1] = right[-1] = len(known.times) - 1
            final = np.where(right > left, (known.times[right] - begins) / mean_gap, 0.0)
            rows.append((known.values[left], known.values[right], np.maximum(final, passed)))
            inside = np.zeros(len(ends), np.int64)
            for i in np.flatnonzero(right > left):
                edges = (known.times[left[i] + 1 : right[i] + 1] - begins[i]) / mean_gap
                before, begun = len(pieces), passed[i]
                for edge, value in zip(edges, known.values[left[i] : right[i]], strict=True):
                    if edge > begun:
                        pieces.append((float(edge), float(begun), value))
                        begun = edge
                inside[i] = len(pieces) - before
            counts.append(inside)
        first, last, final = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        ends, begun = (np.array([piece[j] for piece in pieces]) for j in (0, 1))
        value = np.array([piece[2] for piece in pieces]).reshape(len(pieces), first.shape[1])
        return cls(first, last, final, np.cumsum(np.concatenate(counts)), ends, begun, value)
