"""Steering where tokens are known to the host: on CPUs, in lists of Python.

The rules are those of the buffers, token by token: a request is steered behind its prompt and before the smallest
position at which its thinking has ended, at separators that end a step; a token that is read again, after preemption,
is steered again and counted once. But a pass over a few tokens of a few requests is some microseconds of Python, where
operations of torch on as many numbers take a hundred; and that nothing is turned in a pass is known before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.steer.hooks import SteeringCounts
from burnish.steer.maths.products import HeadProducts, steered_rows
from burnish.steer.vllm.asked import SteeringRequest, VectorSet
from burnish.steer.vllm.buffers import NEVER


@dataclass
class ReadRequest:
    """A request that is steered, as far as it has been read.

    Attributes:
        asked: what it asks for.
        number: of its set.
        num_prompt: tokens of its prompt.
        counts: so far.
        ended: smallest position behind the prompt at which the thinking has ended.
        begun: whether a step has begun, so that a separator ends one.
        counted: positions below it are in the counts.
    """

    asked: SteeringRequest
    number: int
    num_prompt: int
    counts: SteeringCounts = field(default_factory=SteeringCounts)
    ended: int = NEVER
    begun: bool = False
    counted: int = 0


class Flagged(NamedTuple):
    """Tokens of a pass that one set turns.

    Attributes:
        number: of the set.
        places: in the pass, to index with.
        coefs: of each.
        whose: request of each, and whether it is counted.
    """

    number: int
    places: Int[Tensor, " flagged"]
    coefs: list[float]
    whose: list[tuple[ReadRequest, bool]]


class HostSteering:
    """The requests that are steered, and which tokens of a pass are.

    Args:
        sets: that requests may ask for.
    """

    def __init__(self, sets: Sequence[VectorSet]) -> None:
        self.sets = tuple(sets)
        self._number = {one.name: place for place, one in enumerate(self.sets)}
        self._heads = [
            {layer: HeadProducts.of(*heads) for layer, heads in one.vectors.by_layer().items()} for one in self.sets
        ]
        self._read: dict[str, ReadRequest] = {}
        self._flagged: list[Flagged] = []

    @property
    def layers(self) -> list[int]:
        """Of any set."""
        return sorted({layer for layers in self._heads for layer in layers})

    @property
    def turns(self) -> bool:
        """Whether the pass that was filled turns anything."""
        return bool(self._flagged)

    def begin(self, request: str, asked: SteeringRequest, num_prompt: int) -> None:
        """A request that is steered from its prompt's end on; one of this name that was there before is forgotten."""
        self._read[request] = ReadRequest(asked, self._number[asked.name], num_prompt)

    def go_back(self, request: str, tokens: Sequence[int]) -> None:
        """What the next pass reads of a request begins behind these tokens of its context, wherever it was before."""
        if (read := self._read.get(request)) is not None:
            read.begun = self.sets[read.number].vectors.marks.is_begun(tokens[read.num_prompt :])

    def end(self, request: str) -> tuple[SteeringRequest, SteeringCounts] | None:
        """What came of a request; None where it was not steered.

        Raises:
            EngineError: the network went past its ops.
        """
        if (read := self._read.pop(request, None)) is None:
            return None
        read.counts.check(len(self._heads[read.number]))
        return read.asked, read.counts

    def counts(self) -> dict[str, SteeringCounts]:
        """So far, of every request that is steered."""
        return {name: read.counts for name, read in self._read.items()}

    def clear(self) -> None:
        """Nothing is steered in the next pass."""
        self._flagged = []

    def fill(
        self,
        ids: Int[Tensor, " tokens"],
        positions: Int[Tensor, " tokens"],
        requests: Sequence[str],
        lengths: Sequence[int],
    ) -> None:
        """Says which tokens of the next pass are steered; arguments as of `SteeringBuffers.fill`."""
        self._flagged = []
        if not self._read:
            return
        found: dict[int, list[tuple[int, ReadRequest, bool]]] = {}
        tokens, places, first = ids.tolist(), positions.tolist(), 0
        for request, length in zip(requests, lengths, strict=True):
            behind = first + int(length)
            if (read := self._read.get(request)) is not None:
                marks = self.sets[read.number].vectors.marks
                for index in range(first + max(0, read.num_prompt - places[first]), behind):
                    token, position = tokens[index], places[index]
                    fresh = position >= read.counted
                    read.counted = max(read.counted, position + 1)
                    read.counts.seen += fresh
                    if token in marks.think_ends:
                        read.ended = min(read.ended, position)
                    read.begun |= token not in marks.blanks
                    if token not in marks.separators:
                        continue
                    if read.begun and position < read.ended:
                        read.counts.flagged += fresh
                        found.setdefault(read.number, []).append((index, read, fresh))
                    read.begun = False
            first = behind
        for number, some in found.items():
            indices, coefs = torch.tensor([index for index, _, _ in some]), [read.asked.coef for _, read, _ in some]
            self._flagged.append(Flagged(number, indices, coefs, [(read, fresh) for _, read, fresh in some]))

    def apply(self, layer: int, x: Float[Tensor, "tokens hidden"]) -> None:
        """Turns the flagged rows of a layer's output, in place.

        Args:
            layer: which.
            x: of the tokens of a pass, and whatever pads them.
        """
        for flagged in self._flagged:
            heads = self._heads[flagged.number].get(layer)
            if heads is None:
                continue
            before = x[flagged.places]
            moved, opened = steered_rows(before, heads, flagged.coefs, self.sets[flagged.number].mode)
            changed = (moved != before).any(1).tolist()
            x.index_copy_(0, flagged.places, moved)
            for (read, fresh), gates, change in zip(flagged.whose, opened, changed, strict=True):
                if fresh:
                    read.counts.visited += 1
                    read.counts.gated += gates
                    read.counts.moved += change
