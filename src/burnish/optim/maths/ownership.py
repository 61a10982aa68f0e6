"""Who orthogonalises which matrix when matrices are spread over ranks in pieces, and which numbers travel for it.

An orthogonalisation needs the whole matrix. Doing every matrix on every rank repeats the same work on all of them, so
each matrix gets one owner: its pieces travel there, and pieces of the result travel back. This module is the arithmetic
of that, on shapes alone, so that every rank comes to the same plan without asking:

    borders   which rows of a parameter are on which rank, as `torch.chunk` cuts them (the last ranks may have none)
    owners    one rank per matrix: matrices of a shape are dealt out evenly, what is left over goes to the least loaded
    rounds    batches of matrices that travel together, so that one batch travels while another is worked on
    sent, received    how many numbers one rank exchanges with every other in a round

Source of the idea: NorMuon (2025, arXiv:2510.05491), Algorithm 2, which deals matrices out round-robin by size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]
"""First and last + 1."""

MIN_ROUNDS = 4
"""Rounds that a step is cut into where there are enough matrices, so that there is something to overlap."""


@dataclass(frozen=True)
class Spread:
    """One matrix that is spread over ranks in pieces.

    Attributes:
        rows, cols: of the whole matrix.
        spans: for every rank the part that it has, along rows or columns; an empty span where it has none.
        by_rows: whether the pieces are rows; columns otherwise.
    """

    rows: int
    cols: int
    spans: tuple[Span, ...]
    by_rows: bool

    @property
    def num_elements(self) -> int:
        return self.rows * self.cols

    def piece_shape(self, rank: int) -> tuple[int, int]:
        """(rows, cols) of what a rank has."""
        start, stop = self.spans[rank]
        return (stop - start, self.cols) if self.by_rows else (self.rows, stop - start)

    def piece_elements(self, rank: int) -> int:
        rows, cols = self.piece_shape(rank)
        return rows * cols


@dataclass(frozen=True)
class Round:
    """Matrices that travel together.

    Attributes:
        owned: for every rank the numbers of the matrices that it orthogonalises.
    """

    owned: tuple[tuple[int, ...], ...]

    @property
    def matrices(self) -> list[int]:
        """All numbers, in the order of their pieces in the buffers: by owner."""
        return [number for numbers in self.owned for number in numbers]


def borders(size: int, num_ranks: int) -> tuple[Span, ...]:
    """The span of every rank along a sharded dimension: ceil(size / ranks) each, the last ones less or nothing."""
    each = -(-size // num_ranks)
    return tuple((min(rank * each, size), min((rank + 1) * each, size)) for rank in range(num_ranks))


def cut(block: Span, shards: Sequence[Span]) -> tuple[Span, ...]:
    """What every rank has of a block of rows, counted from the block's first row."""
    start, stop = block
    spans = [(max(first, start) - start, min(last, stop) - start) for first, last in shards]
    return tuple((first, last) if first < last else (0, 0) for first, last in spans)


def orthogonalisation_cost(rows: int, cols: int) -> int:
    """Multiply-adds of one Newton-Schulz iteration: 2 s^2 l + s^3 with s <= l."""
    short, long = min(rows, cols), max(rows, cols)
    return 2 * short**2 * long + short**3


def owners(matrices: Sequence[Spread], num_ranks: int) -> tuple[int, ...]:
    """The owner of every matrix.

    Of N matrices of one shape every rank gets floor(N / ranks) or one more, so that equal matrices can be batched. The
    ones that are left over go, most expensive first, one each to the ranks with the least work so far.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for number, matrix in enumerate(matrices):
        by_shape.setdefault((matrix.rows, matrix.cols), []).append(number)
    owner = [0] * len(matrices)
    load = [0] * num_ranks
    for shape in sorted(by_shape, key=lambda shape: -orthogonalisation_cost(*shape)):
        numbers = by_shape[shape]
        even = len(numbers) - len(numbers) % num_ranks
        for place, number in enumerate(numbers[:even]):
            owner[number] = place % num_ranks
        least_loaded = sorted(range(num_ranks), key=lambda rank: (load[rank], rank))
        for rank, number in zip(least_loaded, numbers[even:], strict=False):
            owner[number] = rank
            load[rank] += orthogonalisation_cost(*shape)
    return tuple(owner)


def rounds(matrices: Sequence[Spread], num_ranks: int, limit: int) -> tuple[Round, ...]:
    """The matrices in rounds, each with at most `limit` elements per owner, or one matrix where that is larger.

    Args:
        matrices: all of them, in an order that every rank has.
        num_ranks: of the group that they are spread over.
        limit: elements that an owner holds whole at a time; fewer where the step would have too few rounds.
    """
    owner = owners(matrices, num_ranks)
    queues: list[list[int]] = [[] for _ in range(num_ranks)]
    order = sorted(range(len(matrices)), key=lambda number: (-matrices[number].rows, -matrices[number].cols, number))
    for number in order:
        queues[owner[number]].append(number)
    heaviest = max((sum(matrices[number].num_elements for number in queue) for queue in queues), default=0)
    limit = min(limit, heaviest // MIN_ROUNDS)
    parts = [_parts(queue, matrices, limit) for queue in queues]
    return tuple(
        Round(tuple(tuple(part[number]) if number < len(part) else () for part in parts))
        for number in range(max(map(len, parts), default=0))
    )


def _parts(queue: list[int], matrices: Sequence[Spread], limit: int) -> list[list[int]]:
    """A queue cut into runs of at most `limit` elements."""
    parts: list[list[int]] = []
    size = 0
    for number in queue:
        size += matrices[number].num_elements
        if not parts or size > limit:
            parts.append([])
            size = matrices[number].num_elements
        parts[-1].append(number)
    return parts


def sent(one: Round, matrices: Sequence[Spread], rank: int) -> list[int]:
    """Numbers that a rank sends to every owner: its pieces of the owner's matrices."""
    return [sum(matrices[number].piece_elements(rank) for number in numbers) for numbers in one.owned]


def received(one: Round, matrices: Sequence[Spread], rank: int) -> list[int]:
    """Numbers that a rank gets from every other: their pieces of the matrices that it owns."""
    num_ranks = len(one.owned)
    return [sum(matrices[number].piece_elements(source) for number in one.owned[rank]) for source in range(num_ranks)]
