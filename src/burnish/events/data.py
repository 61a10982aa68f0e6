"""Sets of event sequences: where they are read from, splits, and what to do about ties and clocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from burnish.core.errors import DataError, SettingsError, nearest
from burnish.events.sequence import EventSequence

if TYPE_CHECKING:
    import pandas
    import pyarrow


@dataclass(frozen=True)
class EventDataset:
    """Many sequences with one vocabulary of marks.

        ds = EventDataset.from_csv("log.csv", sequence="machine", time="timestamp", mark="event")
        train, validation, test = ds.split((0.8, 0.1, 0.1), seed=0)

    Attributes:
        sequences: the streams.
        mark_names: name of every mark; its length is the number of marks.
        unit: name of the time unit, for reports.
        num_vertices: size of the graph, 0 without one.
        notes: what was done to the data on the way in.
        sphere: whether places are longitudes and latitudes in degrees.
        dates: whether times were dates: seconds since the sequence's epoch.
    """

    sequences: tuple[EventSequence, ...]
    mark_names: tuple[str, ...]
    unit: str = ""
    num_vertices: int = 0
    notes: tuple[str, ...] = field(default=())
    dates: bool = False
    sphere: bool = False

    def __post_init__(self) -> None:
        for sequence in self.sequences:
            if len(sequence) and sequence.marks.max() >= len(self.mark_names):
                raise DataError(
                    f"has mark {int(sequence.marks.max())}, but there are only {len(self.mark_names)} marks",
                    where=f"sequence {sequence.name!r}",
                )
        located = {sequence.locations is not None for sequence in self.sequences if len(sequence)}
        known = {0 if s.covariates is None else s.covariates.shape[1] for s in self.sequences if len(s)}
        outside = {0 if s.exogenous is None else s.exogenous.values.shape[1] for s in self.sequences if len(s)}
        if len(outside) > 1:
            raise DataError("sequences have different numbers of exogenous values", fix="give all of them the same")
        if len(known) > 1:
            raise DataError("sequences have different numbers of covariates", fix="give all of them the same")
        if len(located) > 1:
            raise DataError("some sequences have locations and some do not", fix="give all of them x and y, or none")

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[EventSequence]:
        return iter(self.sequences)

    @property
    def num_marks(self) -> int:
        return len(self.mark_names)

    @property
    def num_events(self) -> int:
        """Events without those that are only context."""
        return sum(len(sequence) - sequence.context for sequence in self.sequences)

    @property
    def num_covariates(self) -> int:
        return max((0 if s.covariates is None else s.covariates.shape[1] for s in self.sequences), default=0)

    @property
    def num_exogenous(self) -> int:
        return max((0 if s.exogenous is None else s.exogenous.values.shape[1] for s in self.sequences), default=0)

    @property
    def has_locations(self) -> bool:
        return any(sequence.locations is not None for sequence in self.sequences)

    def inner_gaps(self) -> NDArray[np.float64]:
        """All gaps between neighbouring events (the first gap of a sequence is not one of them)."""
        return np.concatenate([np.diff(sequence.times) for sequence in self.sequences] or [np.zeros(0)])

    # -- making one --------------------------------------------------------------------------------------------------

    @classmethod
    def from_sequences(
        cls,
        times: Sequence[ArrayLike],
        marks: Sequence[ArrayLike],
        *,
        num_marks: int | None = None,
        start: float | None = None,
        unit: str = "",
    ) -> Self:
        """From lists of times and integer marks; `start` is the common start of observation, if known."""
        sequences = tuple(
            EventSequence(np.asarray(t, np.float64), np.asarray(k, np.int64), start=start, name=str(i))
            for i, (t, k) in enumerate(zip(times, marks, strict=True))
        )
        highest = max((int(s.marks.max()) for s in sequences if len(s)), default=0)
        return cls(sequences, tuple(str(k) for k in range(num_marks or highest + 1)), unit=unit)

    @classmethod
    def from_csv(cls, path: str | Path, **columns: Any) -> Self:
        """From a CSV with a header; see `from_table` for the column arguments."""
        from burnish.events.columns import from_table
        from burnish.events.reading import read_csv

        return cls(**from_table(read_csv(Path(path)), where=str(path), **columns))

    @classmethod
    def from_parquet(cls, path: str | Path, **columns: Any) -> Self:
        """From a parquet file; see `from_table` for the column arguments."""
        from burnish.events.columns import from_table
        from burnish.events.reading import read_parquet

        return cls(**from_table(read_parquet(Path(path)), where=str(path), **columns))

    @classmethod
    def from_jsonl(cls, path: str | Path, **columns: Any) -> Self:
        """From JSON lines, one event a line or one sequence a line (times and marks as lists)."""
        from burnish.events.columns import from_table
        from burnish.events.reading import read_jsonl

        return cls(**from_table(read_jsonl(Path(path), **columns), where=str(path), **columns))

    @classmethod
    def from_pandas(cls, frame: pandas.DataFrame, **columns: Any) -> Self:
        """From a data frame with one row an event; see `from_table` for the column arguments."""
        import pyarrow

        return cls.from_table(pyarrow.Table.from_pandas(frame, preserve_index=False), **columns)

    @classmethod
    def from_hub(cls, name: str, *, split: str = "train", **columns: Any) -> Self:
        """From a data set on the Hugging Face hub, through `datasets`; see `from_table` for the column arguments."""
        from burnish.events.columns import from_table
        from burnish.events.reading import read_hub

        return cls(**from_table(read_hub(name, split), where=name, **columns))

    @classmethod
    def from_table(cls, table: pyarrow.Table, **columns: Any) -> Self:
        """From an Arrow table with one row an event.

        Args:
            sequence, time, mark: column names [sequence_id, time, mark]. Without a sequence column all rows are one
                sequence; without a mark column all events are of one type. Types are those that occur.
            location: names of the x and y columns.
            sphere: whether they are longitudes and latitudes in degrees.
            vertex: name of a graph vertex column.
            covariates: names of columns of numbers that are known at each event and may matter for the next.
            group: name of a split or fold column.
            start, end: when observation began and ended, as the times are given (numbers or ISO dates), if known.
            sort: sort each sequence by time instead of refusing unsorted rows.
            mark_names: the vocabulary of an existing model; an unknown mark is then an error.
            unit: name of the time unit; timestamps become seconds.
        """
        from burnish.events.columns import from_table

        return cls(**from_table(table, **columns))

    def with_exogenous(self, table: pyarrow.Table, **columns: Any) -> Self:
        """The same events with values that change between them, from a table of their own.

        Args:
            table: a row a time, with a column of times and columns of numbers; with a column of sequences each has its
                own rows, without one all share them. A value holds until the next row, the last one from then on.
            sequence, time: names of the two columns [sequence_id, time].
            where: for messages.
        """
        from burnish.events.columns import with_exogenous

        sequences, _ = with_exogenous(self.sequences, table, dates=self.dates, **columns)
        return self.with_sequences(sequences)

    # -- parts -------------------------------------------------------------------------------------------------------

    def with_sequences(self, sequences: Iterable[EventSequence], *notes: str) -> Self:
        return replace(self, sequences=tuple(sequences), notes=self.notes + notes)

    def where(self, keep: Callable[[EventSequence], bool]) -> Self:
        """The sequences for which `keep` is true."""
        return self.with_sequences(sequence for sequence in self.sequences if keep(sequence))

    def group(self, *names: str) -> Self:
        """The sequences whose split or fold column has one of these values."""
        known = sorted({sequence.group for sequence in self.sequences})
        for name in names:
            if name not in known:
                guess = nearest(name, known)
                advice = f"did you mean {guess!r}?" if guess else f"there are {', '.join(map(repr, known))}"
                raise SettingsError(f"no sequence has the group {name!r}", fix=advice)
        return self.where(lambda sequence: sequence.group in names)

    def split(self, fractions: Sequence[float] = (0.8, 0.1, 0.1), *, seed: int = 0) -> tuple[Self, ...]:
        """Random parts by sequence. A single sequence cannot be split so; use `split_by_time`."""
        _check_fractions(fractions)
        order = np.random.default_rng(seed).permutation(len(self.sequences))
        bounds = np.round(np.cumsum([0.0, *fractions]) * len(order)).astype(int)
        parts = [np.sort(order[a:b]) for a, b in pairwise(bounds)]
        if any(len(part) == 0 for part in parts):
            raise DataError(
                f"{len(self.sequences)} sequences split into parts of {tuple(fractions)} leave one of them empty",
                fix="give more sequences, or split by time",
            )
        return tuple(self.with_sequences(self.sequences[i] for i in part) for part in parts)

    def split_by_time(self, fractions: Sequence[float] = (0.8, 0.1, 0.1)) -> tuple[Self, ...]:
        """Cuts every sequence at the same shares of its events: the past trains, the future tests.

        What came before a cut is context of the part after it, never a target.
        """
        _check_fractions(fractions)
        parts: list[list[EventSequence]] = [[] for _ in fractions]
        for sequence in self.sequences:
            bounds = np.round(np.cumsum([0.0, *fractions]) * len(sequence)).astype(int)
            for part, a, b in zip(parts, bounds[:-1], bounds[1:], strict=True):
                if b > a:
                    part.append(sequence.between(int(a), int(b)))
        if any(not part for part in parts):
            raise DataError("a part of the split by time is empty", fix="give more events, or other fractions")
        return tuple(self.with_sequences(part) for part in parts)

    # -- ties --------------------------------------------------------------------------------------------------------

    @property
    def num_ties(self) -> int:
        """Events at exactly the time of the one before."""
        gaps = self.inner_gaps()
        return int((gaps <= 0).sum())

    @property
    def clock_resolution(self) -> float:
        """The smallest positive gap: the step of a coarse clock, or merely a small number on a fine one."""
        gaps = self.inner_gaps()
        positive = gaps[gaps > 0]
        return float(positive.min()) if len(positive) else 1.0

    def dequantise(self, resolution: float | None = None, *, seed: int = 0) -> Self:
        """Adds a uniform draw from [0, resolution) to every time, so that a coarse clock gets a density.

        Within a tie the marks keep their order. The resolution defaults to the smallest positive gap, which leaves the
        order of untied events as it is.
        """
        step = self.clock_resolution if resolution is None else resolution
        rng = np.random.default_rng(seed)
        sequences = []
        for sequence in self.sequences:
            times = np.sort(sequence.times + step * rng.random(len(sequence)))
            end = None if sequence.end is None else max(sequence.end, float(times[-1]) if len(times) else sequence.end)
            sequences.append(replace(sequence, times=times, end=end))
        note = f"{self.num_ties:,} tied events; every time got a uniform jitter below the clock step {step:.4g}"
        return self.with_sequences(sequences, note)


def _check_fractions(fractions: Sequence[float]) -> None:
    if not (
        all(fraction > 0 for fraction in fractions) and sum(fractions) <= 1 + 1e-9
    ):  # not so either where one is NaN
        raise SettingsError(f"split fractions are {tuple(fractions)}, but must be positive and sum to at most 1")
