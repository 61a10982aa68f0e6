"""Several engines asked in turns: what every batch took, round by round.

Who is asked first in a round is asked last in the next, so that a machine that slows down or speeds up does so for all
of them alike; round 0 warms up and is not counted. Both clocks are read at the same moments, inside the engine: the
wall's, and the processor time of its process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from burnish.core.errors import EngineError, located
from burnish.core.progress import Progress
from burnish.evaluate.engines.process import Answer

DISTURBED = 1.3
"""Wall time over processor time of all threads, from which on other work was in the way."""


@dataclass(frozen=True)
class Shape:
    """A batch: so many prompts of so many tokens."""

    batch: int
    context: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.context}"


@dataclass
class TokenSeconds:
    """Seconds for a token, one entry per round, on the wall and of the processor.

    Attributes:
        prefill, prefill_cpu: from sending a batch until each of its prompts has a first token, over prompt tokens.
        decode, decode_cpu: while all prompts of the batch are answered, over the tokens that come meanwhile.
    """

    prefill: list[float] = field(default_factory=list)
    prefill_cpu: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    decode_cpu: list[float] = field(default_factory=list)

    def add(self, samples: Sequence[Sequence[float]], shape: Shape) -> None:
        """One round.

        Args:
            samples: (wall seconds, processor seconds, prompt, tokens that its answer has by then), in their order.
            shape: of the batch.
        """
        first, last = {}, {}
        for index, (_, _, prompt, tokens) in enumerate(samples):
            if tokens:
                first.setdefault(prompt, index)
                last[prompt] = index
        begin, end = max(first.values()), min(last.values())
        begun, ended = ({}, {})
        for index, (_, _, prompt, tokens) in enumerate(samples):
            if index <= begin:
                begun[prompt] = tokens
            if index <= end:
                ended[prompt] = tokens
        decoded = sum(ended.values()) - sum(begun.values())
        if decoded <= 0:
            raise EngineError(
                f"no token came while all {shape.batch} answers were under way", fix="raise decode_tokens"
            )
        for clock, prefill, decode in ((0, self.prefill, self.decode), (1, self.prefill_cpu, self.decode_cpu)):
            prefill.append(samples[begin][clock] / (shape.batch * shape.context))
            decode.append((samples[end][clock] - samples[begin][clock]) / decoded)


@dataclass
class Rounds:
    """What one engine took, by the shape of the batch, and the most bytes that it held."""

    taken: dict[Shape, TokenSeconds]
    peak_memory: int = 0


class Answering(Protocol):
    """What is asked; see `process.EngineWorker`."""

    def ask(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> Answer: ...


def shapes(batches: Sequence[int], contexts: Sequence[int]) -> list[Shape]:
    """Every batch at the shortest context, and one prompt at every longer one."""
    shortest = min(contexts)
    longer = [Shape(1, context) for context in sorted(set(contexts)) if context > shortest]
    return [*(Shape(batch, shortest) for batch in sorted(set(batches))), *longer]


def in_turns(
    engines: Mapping[str, Answering],
    prompts: Mapping[str, Sequence[int]],
    asked: Sequence[Shape],
    *,
    num_tokens: int,
    rounds: int,
    progress: Progress,
) -> dict[str, Rounds]:
    """Asks all engines the same batches.

    Args:
        engines: by name.
        prompts: of each engine the token ids that its prompts are cut from, one after another.
        asked: shapes of batches.
        num_tokens: of an answer after the first one.
        rounds: that count.
        progress: where a bar is shown.

    Raises:
        EngineError: one ends or cannot answer; it is named.
    """
    found = {name: Rounds({shape: TokenSeconds() for shape in asked}) for name in engines}
    with progress.task("asking the engines", (rounds + 1) * len(asked) * len(engines), "batches") as task:
        for number in range(rounds + 1):
            for shape in asked:
                for name in list(engines)[:: -1 if number % 2 else 1]:
                    try:
                        answer = engines[name].ask(batch_of(prompts[name], shape), num_tokens + 1)
                        if number:
                            found[name].taken[shape].add(answer.samples, shape)
                    except EngineError as error:
                        raise located(error, name) from None
                    found[name].peak_memory = max(found[name].peak_memory, answer.peak_memory)
                    task.advance()
    return found


def batch_of(ids: Sequence[int], shape: Shape) -> list[list[int]]:
    """Prompts cut from a text one after another, from its beginning again where it ends."""
    length = shape.context
    begins = [(number * length) % max(len(ids) - length + 1, 1) for number in range(shape.batch)]
    whole = list(ids) * (-(-length // len(ids)))
    return [whole[begin : begin + length] for begin in begins]


def disturbance(taken: TokenSeconds, threads: int) -> float:
    """Wall time over processor time, a thread's share of it; about 1 on a machine that does nothing else."""
    return threads * sum(taken.decode + taken.prefill) / sum(taken.decode_cpu + taken.prefill_cpu)
