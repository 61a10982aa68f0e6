"""One history: events (t_i, k_i[, x_i][, v_i]) with times in order, when observation began and ended, and its targets.

Fitting, evaluating, forecasting and streams all take this. Cutting a sequence loses nothing: the part after a cut keeps
the events before it as context, which is seen and never scored, so that

    LL(whole) = LL(head) + LL(tail given head)     for every cut.

Times stay float64 in the user's unit until a model has subtracted the sequence's origin and divided by its mean gap:
float32 seconds since 1970 have a resolution of two minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from burnish.core.errors import DataError
from burnish.events.exogenous import LARGEST, Exogenous

NANOSECONDS = 1_000_000_000
"""In a second: dates are whole numbers of them."""


@dataclass(frozen=True)
class EventSequence:
    """One stream of events.

    Attributes:
        times: (n,) float64, nondecreasing, in the data's unit.
        marks: (n,) int64 event types, 0-based.
        locations: (n, 2) float64, or None.
        vertices: (n,) int64 graph vertices, or None.
        covariates: (n, C) float64, what else was known at each event, or None.
        exogenous: values that change between events, or None.
        start: when observation began, if known (the first gap then counts, unless the first event is at the start: an
            event that observation begins with has no wait).
        end: when observation ended, if known (the last, censored gap then counts).
        context: so many leading events are history only, never targets.
        since: when the targets began to be observed, if later than the last event of the context: the first target is
            then known not to have come before (its gap is truncated on the left).
        epoch: whole number that the times count from (nanoseconds since 1970 where they are dates), to print them.
        name: for messages.
        group: value of a split or fold column, if there is one.
    """

    times: NDArray[np.float64]
    marks: NDArray[np.int64]
    locations: NDArray[np.float64] | None = None
    vertices: NDArray[np.int64] | None = None
    covariates: NDArray[np.float64] | None = None
    exogenous: Exogenous | None = None
    start: float | None = None
    end: float | None = None
    context: int = 0
    since: float | None = None
    epoch: int = 0
    name: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        where = f"sequence {self.name!r}" if self.name else "sequence"
        object.__setattr__(self, "times", np.asarray(self.times, np.float64))
        object.__setattr__(self, "marks", np.asarray(self.marks, np.int64))
        n = len(self.times)
        if self.times.ndim != 1 or self.marks.shape != (n,):
            raise DataError(
                f"has {n} times but marks of shape {self.marks.shape}", where=where, fix="give one mark an event"
            )
        if not np.isfinite(self.times).all():
            raise DataError(
                f"event {int(np.argmin(np.isfinite(self.times)))} has no finite time", where=where, fix="drop that row"
            )
        gaps = np.diff(self.times)
        if n and np.abs(self.times).max() > LARGEST:
            i = int(np.abs(self.times).argmax())
            what = f"event {i} has the time {self.times[i]:.10g}, and times reach to {LARGEST:g}"
            raise DataError(what, where=where, fix="count in another unit")
        if (near := gaps[(gaps > 0) & (gaps < 1 / LARGEST)]).size:
            what = f"has events {near[0]:.3g} apart, and gaps are 0 or at least {1 / LARGEST:g}"
            raise DataError(what, where=where, fix="count in another unit")
        if n > 1 and gaps.min() < 0:
            i = int(np.argmax(gaps < 0))
            raise DataError(
                f"times go back at event {i + 1} ({self.times[i]:.10g} then {self.times[i + 1]:.10g})",
                where=where,
                fix="sort the events of each sequence by time",
            )
        if n and self.marks.min() < 0:
            raise DataError(f"has mark {int(self.marks.min())}", where=where, fix="number the marks from 0")
        if self.locations is not None:
            object.__setattr__(self, "locations", np.asarray(self.locations, np.float64))
            assert self.locations is not None
            if self.locations.shape != (n, 2) or not (np.abs(self.locations) <= LARGEST).all():
                what = f"needs one finite (x, y) an event, of numbers up to {LARGEST:g}"
                raise DataError(what, where=where, fix="drop the events without a location")
        if self.vertices is not None:
            object.__setattr__(self, "vertices", np.asarray(self.vertices, np.int64))
        if self.covariates is not None:
            object.__setattr__(self, "covariates", np.asarray(self.covariates, np.float64))
            assert self.covariates is not None
            if self.covariates.ndim != 2 or len(self.covariates) != n or not (np.abs(self.covariates) <= LARGEST).all():
                what = f"needs finite covariates for every event, up to {LARGEST:g}"
                raise DataError(what, where=where, fix="drop the incomplete rows")
        if n and self.exogenous is not None and self.exogenous.times[0] > self.origin:
            what = f"its exogenous values begin at {self.exogenous.times[0]:.10g}, after {self.origin:.10g}"
            raise DataError(what, where=where, fix="say what they were when its events began to be observed")
        for name in ("start", "end"):
            if (bound := getattr(self, name)) is not None and not abs(bound) <= LARGEST:
                raise DataError(f"{name}s at {bound}, which is no time up to {LARGEST:g}", where=where)
        if n and self.start is not None and self.start > self.times[0]:
            raise DataError(f"starts at {self.start} after its first event at {self.times[0]}", where=where)
        if n and self.end is not None and self.end < self.times[-1]:
            raise DataError(f"ends at {self.end} before its last event at {self.times[-1]}", where=where)
        if not 0 <= self.context <= n:
            raise DataError(f"has {n} events, but {self.context} of them as context", where=where)
        if self.since is not None:
            self._check_since(where)

    def _check_since(self, where: str) -> None:
        assert self.since is not None
        if self.context == 0:
            raise DataError("its targets begin to be observed at a time, but nothing precedes them", where=where)
        if self.since < self.times[self.context - 1] or (
            self.context < len(self) and self.since > self.times[self.context]
        ):
            raise DataError(
                f"its targets are observed since {self.since}, which is not between the last event of the context and "
                "the first target",
                where=where,
            )

    def __len__(self) -> int:
        return len(self.times)

    @property
    def origin(self) -> float:
        """What models subtract from the times: the start of observation, else the first event."""
        if self.start is not None:
            return self.start
        return float(self.times[0]) if len(self) else 0.0

    @property
    def gaps(self) -> NDArray[np.float64]:
        """(n,) time since the previous event; the first since the origin (zero where the start is unknown)."""
        return np.diff(self.times, prepend=self.origin)

    @property
    def first_gap_known(self) -> bool:
        """Whether the wait for the first event is known: observation began, and before that event."""
        return len(self) > 0 and self.start is not None and self.start < self.times[0]

    @property
    def first_target(self) -> int:
        """Index of the first event that a model is asked for."""
        return max(self.context, 0 if self.first_gap_known else 1)

    def head(self, stop: int) -> EventSequence:
        """The first `stop` events and what was known then; whether others follow is unknown: no gap is censored."""
        return replace(
            self,
            times=self.times[:stop],
            marks=self.marks[:stop],
            locations=None if self.locations is None else self.locations[:stop],
            vertices=None if self.vertices is None else self.vertices[:stop],
            covariates=None if self.covariates is None else self.covariates[:stop],
            exogenous=self._known(float(self.times[:stop][-1]) if len(self.times[:stop]) else self.origin),
            context=min(self.context, stop),
            since=self.since if stop >= self.context else None,
            end=None,
        )

    def between(self, begin: int, stop: int) -> EventSequence:
        """Events begin..stop-1 as targets, those before as context."""
        if stop == len(self):
            return replace(self, context=begin, since=None)
        return replace(self.head(stop), context=begin, since=None)

    def known_until(self, time: float) -> EventSequence:
        """The same without exogenous values of later times."""
        return replace(self, exogenous=self._known(time))

    def _known(self, time: float) -> Exogenous | None:
        return None if self.exogenous is None else self.exogenous.until(time)

    def cut(self, time: float) -> tuple[EventSequence, EventSequence]:
        """What was observed until a time, and what was from then on, given that."""
        stop = int(np.searchsorted(self.times, time, side="right"))
        if stop < max(self.context, 1):
            raise DataError(f"is cut at {time}, before its first target", where=f"sequence {self.name!r}")
        return replace(self.head(stop), exogenous=self._known(time), end=time), replace(self, context=stop, since=time)
