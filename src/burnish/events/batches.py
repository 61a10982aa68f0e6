"""Sequences as padded tensors, in units of the training mean gap.

Dimensions in this room: B sequences, L events of the longest one, M hidden size, K marks, q query gaps, S histories.
Position i of the hidden states (B, L + 1, M) summarises the first i events; it forecasts event i (0-based).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from burnish.events.data import EventDataset
from burnish.events.exogenous import Pieces
from burnish.events.sequence import NANOSECONDS, EventSequence

AT_ONCE = 1e-30
"""A wait that has lasted no time, but is one: whatever came at the time of the last event has come."""

FORGOTTEN = 40.0
"""Ages in time constants after which an event excites nothing any more: exp(-40) is below the rounding."""


@dataclass(frozen=True)
class EventBatch:
    """Padded events. `gaps[:, i]` is the wait that ended with event i; padding and an unknown first wait have gap 1.

    Attributes:
        times: since the origin of the sequence (or window), in mean gaps.
        gaps: since the event before, in mean gaps.
        marks: 0-based; 0 at padding.
        present: which positions hold events.
        scored: which events count in a loss (not the padding, the history of a window, the context of a sequence or a
            first event whose gap is unknown).
        waited: the part of a gap in which its event is known not to have come; zero but for a target whose observation
            began inside its gap.
        tail: (B,) censored last gap, NaN where the end of observation is unknown.
        tail_waited: (B,) the part of it that was observed before the targets.
        locations: standardised by the model, or None.
        vertices: or None.
        origin: (B, 2) number of the sequence, and of the window's first event in it.
        features: of the calendar and of the covariates at each event, or None.
        known_first, known_last: exogenous values when each gap begins and ends, the last gap being that after the last
            event; or None.
        piece_at: (P, 2) row and position of the pieces of gaps before their last ones.
        piece_span: (P, 2) end and beginning of each, since the beginning of its gap.
        piece_value: exogenous values of each.
        before: x of maths/excitation.py after what came before the window, or None where no decays are carried.
    """

    times: Float[Tensor, "B L"]
    gaps: Float[Tensor, "B L"]
    marks: Int[Tensor, "B L"]
    present: Bool[Tensor, "B L"]
    scored: Bool[Tensor, "B L"]
    waited: Float[Tensor, "B L"]
    tail: Float[Tensor, " B"]
    tail_waited: Float[Tensor, " B"]
    locations: Float[Tensor, "B L 2"] | None
    vertices: Int[Tensor, "B L"] | None
    origin: Int[Tensor, "B 2"]
    before: Float[Tensor, "B D K"] | None = None
    features: Float[Tensor, "B L F"] | None = None
    known_first: Float[Tensor, "B L+1 C"] | None = None
    known_last: Float[Tensor, "B L+1 C"] | None = None
    piece_at: Int[Tensor, "P 2"] | None = None
    piece_span: Float[Tensor, "P 2"] | None = None
    piece_value: Float[Tensor, "P C"] | None = None

    def to(self, device: torch.device) -> EventBatch:
        """The same batch on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Window:
    """Events begin..stop-1 of a sequence; those before `first` are only history."""

    sequence: int
    begin: int
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.begin


def windows(lengths: list[int], window: int, context: int) -> list[Window]:
    """Cuts long sequences: every event is scored once, with at least `context` events of history where they exist."""
    result = []
    for sequence, length in enumerate(lengths):
        if length <= window:
            result.append(Window(sequence, 0, 0, length))
            continue
        result.append(Window(sequence, 0, 0, window))
        first = window
        while first < length:
            stop = min(first + window - context, length)
            result.append(Window(sequence, first - context, first, stop))
            first = stop
    return [piece for piece in result if len(piece)]


def window_begin(num_events: int, window: int, context: int) -> int:
    """First event of the window that forecasts the event after `num_events`; the layout is that of `windows`."""
    step = window - context
    return 0 if num_events < window else (num_events - context) // step * step


class PackedEvents:
    """A data set as flat arrays, from which batches are gathered by index.

    Args:
        dataset: the events.
        mean_gap: unit of the model's clock, in the data's unit.
        window, context: see `windows`.
        dtype: of times and gaps, after the subtraction and division in float64.
        score_first: whether a known first gap is a target; models see it in any case.
        decays: (D,) per mean gap, of what is carried over the windows of a long sequence.
        periods: of the calendar, in the data's unit.
    """

    def __init__(
        self,
        dataset: EventDataset,
        mean_gap: float,
        *,
        window: int = 512,
        context: int = 128,
        dtype: torch.dtype = torch.float32,
        score_first: bool = True,
        decays: NDArray[np.float64] | None = None,
        periods: Sequence[float] = (),
    ) -> None:
        self.dtype, self.decays, self.num_marks = dtype, decays, dataset.num_marks
        sequences = dataset.sequences
        self.first_target = np.array([max(s.first_target, 0 if score_first else 1) for s in sequences], np.int64)
        pieces = windows([len(sequence) for sequence in sequences], window, context)
        self.windows = [piece for piece in pieces if piece.stop > sequences[piece.sequence].context]
        # A censored last gap is forecast from the window that its event would be; here and there that is another one.
        last = {piece.sequence: piece for piece in self.windows}
        self.last_begin = np.array([window_begin(len(s), window, context) for s in sequences], np.int64)
        for index, sequence in enumerate(sequences):
            begin, n = int(self.last_begin[index]), len(sequence)
            if n and sequence.end is not None and (index not in last or last[index].begin != begin):
                self.windows.append(Window(index, begin, n, n))
        self.num_cut = sum(len(sequence) > window for sequence in sequences)
        self.offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)])
        self.times = np.concatenate([(s.times - s.origin) / mean_gap for s in sequences] or [np.zeros(0)])
        self.gaps = np.concatenate([s.gaps / mean_gap for s in sequences] or [np.zeros(0)])
        self.marks = np.concatenate([s.marks for s in sequences] or [np.zeros(0, np.int64)])
        self.first_gap_known = np.array([s.first_gap_known for s in sequences])
        self.waited = np.concatenate([_waited(s) / mean_gap for s in sequences] or [np.zeros(0)])
        self.tails = np.array([_tail(s) / mean_gap for s in sequences])
        self.tails_waited = np.array([_tail_waited(s) / mean_gap for s in sequences])
        self.pieces: Pieces | None = None
        if dataset.num_exogenous:
            passed = [np.append(_waited(s), _tail_waited(s)) / mean_gap for s in sequences]
            self.pieces = Pieces.of(sequences, passed, mean_gap)
            gaps_of = self.offsets + np.arange(len(self.offsets))
            self.tails_waited = self.pieces.waited[gaps_of[1:] - 1]
            self.waited = np.delete(self.pieces.waited, gaps_of[1:] - 1)
        self.locations = _joined([s.locations for s in sequences])
        self.vertices = _joined([s.vertices for s in sequences])
        self.features = _joined([_features(s, periods, dataset.dates) for s in sequences])

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def num_scored(self) -> int:
        """Events that count in a loss."""
        return sum(max(w.stop - max(w.first, int(self.first_target[w.sequence])), 0) for w in self.windows)

    def digest(self) -> str:
        """sha256 of the events, in the model's units."""
        digest = hashlib.sha256()
        for array in (
            self.times,
            self.marks,
            self.offsets,
            self.first_gap_known,
            self.first_target,
            self.waited,
            self.tails,
            self.tails_waited,
            self.locations,
            self.vertices,
            self.features,
            *([] if self.pieces is None else vars(self.pieces).values()),
        ):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def batch(self, members: list[int]) -> EventBatch:
        """The windows of these indices, padded on the right to the longest."""
        return self.gather([self.windows[i] for i in members])

    def gather(self, chosen: list[Window]) -> EventBatch:
        """Any windows, padded on the right to the longest."""
        longest = max(len(window) for window in chosen)
        begin = np.array([self.offsets[w.sequence] + w.begin for w in chosen])
        length = np.array([len(w) for w in chosen])
        position = np.arange(longest)[None]
        present = position < length[:, None]
        index = np.where(present, begin[:, None] + position, begin[:, None])
        first_inside = np.array([max(w.first, int(self.first_target[w.sequence])) - w.begin for w in chosen])
        knows_first = np.array([w.begin > 0 or bool(self.first_gap_known[w.sequence]) for w in chosen])
        scored = present & (position >= first_inside[:, None])
        # A window that starts inside a sequence counts its clock from its own first event's predecessor.
        shift = np.where([w.begin > 0 for w in chosen], self.times[begin] - self.gaps[begin], 0.0)
        lengths = np.diff(self.offsets)
        whole = np.array([w.stop == lengths[w.sequence] and w.begin == self.last_begin[w.sequence] for w in chosen])
        tails = np.array([self.tails[w.sequence] for w in chosen])
        batch = EventBatch(
            times=self._tensor(np.where(present, self.times[index] - shift[:, None], 0.0)),
            gaps=self._tensor(np.where(present & ((position > 0) | knows_first[:, None]), self.gaps[index], 1.0)),
            marks=torch.from_numpy(np.where(present, self.marks[index], 0)),
            present=torch.from_numpy(present),
            scored=torch.from_numpy(scored),
            waited=self._tensor(np.where(scored, self.waited[index], 0.0)),
            tail=self._tensor(np.where(whole, tails, np.nan)),
            tail_waited=self._tensor(self.tails_waited[[w.sequence for w in chosen]]),
            locations=None if self.locations is None else self._tensor(self.locations[index]),
            vertices=None if self.vertices is None else torch.from_numpy(self.vertices[index]),
            origin=torch.tensor([[w.sequence, w.begin] for w in chosen]),
            before=self._before(chosen),
            features=None if self.features is None else self._tensor(self.features[index]),
        )
        return batch if self.pieces is None else self._with_pieces(batch, self.pieces, length)

    def _with_pieces(self, batch: EventBatch, pieces: Pieces, length: NDArray[np.int64]) -> EventBatch:
        """The batch with the exogenous values of its gaps, and the pieces of those that count."""
        rows = batch.origin.numpy()
        position = np.arange(batch.times.shape[1] + 1)[None]
        # n events of a sequence have n + 1 gaps; the window's own come one after the other.
        begin = self.offsets[rows[:, 0]] + rows[:, 0] + rows[:, 1]
        gap = begin[:, None] + np.minimum(position, length[:, None])
        ends = ~torch.isnan(batch.tail).numpy()
        counts = np.zeros(gap.shape, bool)
        counts[:, :-1] = batch.scored.numpy()
        counts[np.arange(len(rows)), length] = ends
        row, place = np.nonzero(counts)
        of = gap[row, place]
        number = pieces.bounds[of + 1] - pieces.bounds[of]
        index = np.repeat(pieces.bounds[of] - np.cumsum(number) + number, number) + np.arange(number.sum())
        return replace(
            batch,
            known_first=self._tensor(pieces.first[gap]),
            known_last=self._tensor(pieces.last[gap]),
            piece_at=torch.from_numpy(np.repeat(np.stack([row, place], axis=1), number, axis=0)),
            piece_span=self._tensor(np.stack([pieces.gap[index], pieces.begun[index]], axis=1)),
            piece_value=self._tensor(pieces.value[index]),
        )

    def _before(self, chosen: list[Window]) -> Tensor | None:
        """sum over the events before a window of exp(-b age), by decay and mark, right after the last of them."""
        if self.decays is None or not any(window.begin for window in chosen):
            return None
        result = np.zeros((len(chosen), len(self.decays), self.num_marks))
        for row, window in enumerate(chosen):
            first = int(self.offsets[window.sequence])
            stop = first + window.begin
            age = self.times[stop - 1] - self.times[first:stop] if window.begin else np.zeros(0)
            for d, decay in enumerate(self.decays):
                near = int(np.searchsorted(-age, -FORGOTTEN / decay))
                weight, marks = np.exp(-decay * age[near:]), self.marks[first + near : stop]
                result[row, d] = np.bincount(marks, weight, minlength=self.num_marks)
        return self._tensor(result)

    def batches(
        self, size: int, *, shuffle: np.random.Generator | None = None, max_padded: int = 40_000
    ) -> Iterator[EventBatch]:
        """Batches of `size` windows of similar length, in order or shuffled; long windows make smaller batches."""
        order = np.arange(len(self.windows))
        lengths = np.array([len(window) for window in self.windows])
        if shuffle is None:
            order = np.argsort(lengths, kind="stable")
            groups = list(_chunks(order, lengths, size, max_padded))
        else:
            order = shuffle.permutation(order)
            pools = [order[a : a + 20 * size] for a in range(0, len(order), 20 * size)]
            sorted_pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
            groups = [group for pool in sorted_pools for group in _chunks(pool, lengths, size, max_padded)]
            groups = [groups[i] for i in shuffle.permutation(len(groups))]
        for group in groups:
            yield self.batch([int(i) for i in group])

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.dtype)


CALENDAR_FEATURES = 4
"""Numbers that say where in a period a time is: sine and cosine of its angle and of twice that."""


def calendar(times: NDArray[np.float64], epoch: int, period: float, *, dates: bool) -> NDArray[np.float64]:
    """(n, 4) where in the period times since an epoch are; the epoch, which may be large, is divided exactly."""
    begin = epoch % round(period * NANOSECONDS) / NANOSECONDS if dates else math.fmod(epoch, period)
    angle = 2 * np.pi * np.mod((begin + times) / period, 1.0)
    return np.stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)], axis=1)


def _features(sequence: EventSequence, periods: Sequence[float], dates: bool) -> NDArray[np.float64] | None:
    parts = [calendar(sequence.times, sequence.epoch, period, dates=dates) for period in periods]
    if sequence.covariates is not None:
        parts.append(sequence.covariates)
    return np.concatenate(parts, axis=1) if parts else None


def _tail(sequence: EventSequence) -> float:
    if sequence.end is None or not len(sequence):
        return float("nan")
    return sequence.end - float(sequence.times[-1])


def _tail_waited(sequence: EventSequence) -> float:
    """The part of the censored gap before the targets were observed, where there is no target."""
    if sequence.since is None or sequence.context < len(sequence):
        return 0.0
    return max(sequence.since - float(sequence.times[-1]), AT_ONCE)


def _waited(sequence: EventSequence) -> np.ndarray:
    waited = np.zeros(len(sequence))
    if sequence.since is not None and sequence.context < len(sequence):
        waited[sequence.context] = max(sequence.since - sequence.times[sequence.context - 1], AT_ONCE)
    return waited


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    present = [part for part in parts if part is not None]
    return np.concatenate(present) if present else None


def _chunks(order: np.ndarray, lengths: np.ndarray, size: int, max_padded: int) -> Iterator[np.ndarray]:
    """Runs of at most `size` indices whose padded area stays below `max_padded`; `order` is sorted by length."""
    begin = 0
    while begin < len(order):
        stop = min(begin + size, len(order))
        while stop - begin > 1 and (stop - begin) * lengths[order[stop - 1]] > max_padded:
            stop -= 1
        yield order[begin:stop]
        begin = stop
