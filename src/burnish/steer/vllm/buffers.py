"""Static buffers of a steered engine on a device: filled before a pass, read by the op behind every output projection.

Shapes never change, and what differs from batch to batch is data in them, so that a compiled or captured pass reads the
right thing each time. Every request that is steered has a row in the tables of requests; row 0 is everybody else's.

The end of thinking is a position: the smallest one behind the prompt at which it stands, kept over passes. A token is
flagged before it and not behind it, in whatever pieces the context is read. Whether a step has begun, so that a
separator ends one, is carried from piece to piece. A token that is read again, after preemption, is steered again and
counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.core.errors import EngineError
from burnish.steer.hooks import SteeringCounts
from burnish.steer.maths.intervene import steered
from burnish.steer.vllm.asked import SteeringRequest, VectorSet

NEVER = 2**62
"""A position that no token has."""
SEEN, FLAGGED, VISITED, GATED, MOVED = range(5)
"""Columns of the counts, in the order of `SteeringCounts`; the last three are counted in every layer."""


class SteeringBuffers:
    """What the op of every layer reads, and the requests it is filled for.

    Args:
        sets: that requests may ask for.
        num_requests: rows for requests that are steered.
        num_tokens: of a pass, at most.
        vocab_size: of the model.
        device: of the model.
    """

    def __init__(
        self, sets: Sequence[VectorSet], *, num_requests: int, num_tokens: int, vocab_size: int, device: torch.device
    ) -> None:
        def full(*shape: int, value: float = 0, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(shape, value, dtype=dtype, device=device)

        self.sets = tuple(sets)
        self._number = {one.name: place for place, one in enumerate(self.sets)}
        self._layers = [
            {layer: heads.to(device) for layer, heads in one.vectors.by_layer().items()} for one in self.sets
        ]
        self._separates = full(len(self.sets) + 1, vocab_size, dtype=torch.bool)
        self._blank = full(len(self.sets) + 1, vocab_size, dtype=torch.bool)
        self._ends = full(len(self.sets) + 1, vocab_size, dtype=torch.bool)
        for place, one in enumerate(self.sets):
            self._separates[place, list(one.vectors.marks.separator_ids)] = True
            self._blank[place, list(one.vectors.marks.blank_ids)] = True
            self._ends[place, list(one.vectors.marks.think_end_ids)] = True
        rows = num_requests + 1
        nobody = len(self.sets)
        self._set_of = full(rows, value=nobody)
        self._coef_of = full(rows, dtype=torch.float32)
        self._prompt_of = full(rows, value=NEVER)
        self._ended_of = full(rows, value=NEVER)
        self._begun_of = full(rows, dtype=torch.bool)
        self._counted_of = full(rows)
        self._counts = full(rows, len(SteeringCounts.__dataclass_fields__))
        self._flags = full(len(self.sets), num_tokens, dtype=torch.bool)
        self._coef = full(num_tokens, dtype=torch.float32)
        self._row = full(num_tokens)
        self._fresh = full(num_tokens)
        self._rows: dict[str, tuple[int, SteeringRequest]] = {}
        self._free = list(range(num_requests, 0, -1))
        self._filled = 0

    @property
    def layers(self) -> list[int]:
        """Of any set."""
        return sorted({layer for layers in self._layers for layer in layers})

    @property
    def turns(self) -> bool:
        """A graph that is captured must hold the mathematics, whatever is flagged at that time."""
        return True

    def begin(self, request: str, asked: SteeringRequest, num_prompt: int) -> None:
        """A request that is steered from its prompt's end on; one of this name that was there before is forgotten.

        Raises:
            EngineError: no row is free.
        """
        if request in self._rows:
            self._free.append(self._rows.pop(request)[0])
        if not self._free:
            raise EngineError(f"more than {len(self._rows)} steered requests are held at once", where="steer")
        row = self._free.pop()
        self._rows[request] = row, asked
        self._set_of[row], self._coef_of[row] = self._number[asked.name], asked.coef
        self._prompt_of[row], self._ended_of[row], self._counted_of[row] = num_prompt, NEVER, 0
        self._begun_of[row], self._counts[row] = False, 0

    def go_back(self, request: str, tokens: Sequence[int]) -> None:
        """What the next pass reads of a request begins behind these tokens of its context, wherever it was before."""
        if request in self._rows:
            row, asked = self._rows[request]
            written = tokens[int(self._prompt_of[row]) :]
            self._begun_of[row] = self.sets[self._number[asked.name]].vectors.marks.is_begun(written)

    def end(self, request: str) -> tuple[SteeringRequest, SteeringCounts] | None:
        """What came of a request; None where it was not steered.

        Raises:
            EngineError: the network went past its ops.
        """
        if request not in self._rows:
            return None
        counts = self.counts()[request]
        row, asked = self._rows.pop(request)
        self._free.append(row)
        self._set_of[row], self._prompt_of[row] = len(self.sets), NEVER
        counts.check(len(self._layers[self._number[asked.name]]))
        return asked, counts

    def counts(self) -> dict[str, SteeringCounts]:
        """So far, of every request that is steered."""
        return {name: SteeringCounts(*self._counts[row].tolist()) for name, (row, _) in self._rows.items()}

    def clear(self) -> None:
        """Nothing is steered in the next pass."""
        if self._filled:
            self._flags[:, : self._filled] = False
            self._filled = 0

    def fill(
        self,
        ids: Int[Tensor, " tokens"],
        positions: Int[Tensor, " tokens"],
        requests: Sequence[str],
        lengths: Sequence[int],
    ) -> None:
        """Says which tokens of the next pass are steered.

        Args:
            ids: of the tokens, request behind request.
            positions: of these tokens in their contexts.
            requests: whose they are.
            lengths: how many tokens each has.
        """
        self.clear()
        rows = [self._rows[request][0] if request in self._rows else 0 for request in requests]
        if not any(rows):
            return
        device, num = ids.device, len(ids)
        counts = torch.tensor(lengths)
        row = torch.repeat_interleave(torch.tensor(rows), counts).to(device)
        first = torch.repeat_interleave(counts.cumsum(0) - counts, counts).to(device)
        ids, number = ids.long(), self._set_of[row]
        written = positions >= self._prompt_of[row]
        ends = written & self._ends[number, ids]
        self._ended_of.scatter_reduce_(0, row, torch.where(ends, positions, NEVER), "amin")
        separates = written & self._separates[number, ids]
        begun = self._begun(written & ~self._blank[number, ids], separates, row, first)
        flagged = separates & begun & (positions < self._ended_of[row])
        fresh = positions >= self._counted_of[row]
        self._counted_of.scatter_reduce_(0, row, positions + 1, "amax")
        self._flags[:, :num] = flagged & (number == torch.arange(len(self.sets), device=device)[:, None])
        self._coef[:num], self._row[:num], self._fresh[:num] = self._coef_of[row], row, fresh.long()
        self._filled = num
        self._count(SEEN, slice(0, num), written)
        self._count(FLAGGED, slice(0, num), flagged)

    def _begun(
        self,
        says: Bool[Tensor, " tokens"],
        separates: Bool[Tensor, " tokens"],
        row: Int[Tensor, " tokens"],
        first: Int[Tensor, " tokens"],
    ) -> Bool[Tensor, " tokens"]:
        """Whether more than blanks stands behind the separator before each token, the token itself included.

        Args:
            says: which tokens are not blank.
            separates: which hold a separator.
            row: of the request of each.
            first: place of the first token of its request.
        """
        index = torch.arange(len(row), device=row.device)
        said = torch.where(says, index, -1).cummax(0).values
        separated = torch.where(separates, index, -1).cummax(0).values.roll(1)
        separated[0] = -1
        begun = (said > torch.maximum(separated, first - 1)) | (self._begun_of[row] & (separated < first))
        last = first.roll(-1) != first  # where the next token is another request's, or the first one again
        last[-1] = True
        self._begun_of[row[last]] = (begun & ~separates)[last]
        return begun

    def apply(self, layer: int, x: Float[Tensor, "tokens hidden"]) -> None:
        """Turns the flagged rows of a layer's output, in place: all go through the mathematics, and a mask keeps the
        others, which a captured graph needs.

        Args:
            layer: which.
            x: of the tokens of a pass, and whatever pads them.
        """
        num = len(x)
        for place, (one, layers) in enumerate(zip(self.sets, self._layers, strict=True)):
            if layer not in layers:
                continue
            flags, heads = self._flags[place, :num], layers[layer]
            options: dict[str, Any] = {"targets": heads.targets, "coef": self._coef[:num], "mode": one.mode}
            moved, gates = steered(x, heads.probes, heads.directions, flags, **options)
            found = torch.stack([flags.long(), (gates > 0.5).sum(1), (moved != x).any(1).long()], 1)
            counts = self._counts[:, VISITED : MOVED + 1]
            counts.index_add_(0, self._row[:num], found * self._fresh[:num][:, None])
            x.copy_(moved)

    def _count(self, column: int, some: slice, what: Tensor) -> None:
        self._counts[:, column].index_add_(0, self._row[some], what.long() * self._fresh[some])
