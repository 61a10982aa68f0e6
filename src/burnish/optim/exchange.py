"""Whole matrices out of the shards of processes and back, for optimizers that orthogonalise under FSDP2.

    owner       every matrix has one process that orthogonalises it (`burnish.optim.maths.ownership`)
    to owners   one all-to-all carries the shards of what is orthogonalised, in the dtype of the orthogonalisation
    and back    a second one carries the shards of the orthogonalised matrix back

So a process works on about 1/N of the matrices, no process ever holds all of them, and a parameter costs two numbers
of traffic per element. Matrices travel in rounds: while one round is orthogonalised, the next is on its way to the
owners and the last on its way back.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from burnish.optim.layout import num_rows_shape, oriented, out_and_in_dims, row_spans
from burnish.optim.maths.normuon import nesterov
from burnish.optim.maths.ownership import Round, Spread, cut, received, rounds, sent
from burnish.optim.orthogonal import BATCH_ELEMENTS, NS_OPTIONS, orthogonalised
from burnish.optim.rule import Item
from burnish.optim.sharding import Sharding

ROUND_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Elements that an owner holds whole in one round."""

T = TypeVar("T")
Transfer = Generator[None, None, T]
"""A computation that yields wherever it has started a transfer and would have to wait for it, and returns a T."""


@dataclass(frozen=True, eq=False)
class Unit:
    """One matrix of a sharded parameter, as seen from one process.

    Attributes:
        item: the parameter in this step.
        expert: its place in a stack of matrices; None where there is no stack.
        rows: the rows of the local shard (or, of one cut along columns, of the whole) that are this matrix's.
        spread: the whole matrix and which process has what.
        sharding: of the parameter.
    """

    item: Item
    expert: int | None
    rows: slice
    spread: Spread
    sharding: Sharding

    def piece(self, like_shard: Tensor) -> Tensor:
        """This matrix's part, as a view (rows, cols), of the local shard or of anything shaped like it."""
        return self._of(oriented(like_shard, self.item.group))

    def row_piece(self, per_row: Tensor) -> Tensor:
        """The same of a tensor with one number per row, whose shape is (*stack, rows, 1) whatever the layout."""
        return self._of(per_row)

    def _of(self, whole: Tensor) -> Tensor:
        return (whole if self.expert is None else whole[self.expert])[self.rows]

    def direction(self) -> Tensor:
        """The momentum of the local piece, with the Nesterov step where asked for."""
        buffer = self.piece(self.item.state["momentum"])
        if not self.item.group["nesterov"]:
            return buffer
        return nesterov(buffer, self.piece(self.item.gradient), self.item.group["betas"][0])


def units_of(item: Item) -> list[Unit]:
    """The matrices of a sharded parameter, all of them, also those of which this process has nothing."""
    sharding, group = item.sharding, item.group
    assert sharding is not None, "only sharded parameters come here"
    out, columns = out_and_in_dims(len(sharding.shape), group)
    whole = torch.empty(sharding.shape, device="meta")
    num_rows = num_rows_shape(whole, group)[-2]
    num_cols = oriented(whole, group).shape[-1]
    experts = range(sharding.shape[0]) if len(sharding.shape) == 3 else (None,)
    by_rows = sharding.dim == out
    assert by_rows or sharding.dim == columns, (
        "every process steps its own matrices of a stack that is cut between matrices"
    )
    first = sharding.borders[sharding.rank][0]
    units = []
    for start, stop in row_spans(num_rows, group):
        spans = cut((start, stop), sharding.borders) if by_rows else sharding.borders
        here = slice(start, stop)
        if by_rows:
            low, high = spans[sharding.rank]
            here = slice(start + low - first, start + high - first) if low < high else slice(0, 0)
        spread = Spread(stop - start, num_cols, spans, by_rows)
        units += [Unit(item, expert, here, spread, sharding) for expert in experts]
    return units


class Exchange:
    """Carries the matrices of one round between those who have pieces of them and their owners.

    Every process must call the same methods in the same order. Each returns through `yield from`, and yields once
    between starting a transfer and waiting for it.

    Attributes:
        units: all matrices of the round, in the order in which they travel.
        mine: those that this process owns.
    """

    def __init__(self, units: list[Unit], one: Round) -> None:
        sharding = units[0].sharding
        self._group, self._rank, self._size = sharding.group, sharding.rank, sharding.size
        self._counts = [len(numbers) for numbers in one.owned]
        spreads = [unit.spread for unit in units]
        self._sent, self._received = sent(one, spreads, self._rank), received(one, spreads, self._rank)
        self.units = [units[number] for number in one.matrices]
        self.mine = [units[number] for number in one.owned[self._rank]]

    def to_owners(self, pieces: list[Tensor]) -> Transfer[list[Tensor]]:
        """This process's pieces of all units in; the whole matrices that it owns out."""
        arrived = yield from self._all_to_all(_flat(pieces), self._sent, self._received)
        wholes = [arrived.new_empty(unit.spread.rows, unit.spread.cols) for unit in self.mine]
        shapes = [unit.spread.piece_shape(source) for source in range(self._size) for unit in self.mine]
        parts = iter(_split(arrived, shapes))
        for source in range(self._size):
            for unit, whole in zip(self.mine, wholes, strict=True):
                _part(unit, whole, source).copy_(next(parts))
        return wholes

    def to_shards(self, wholes: list[Tensor], like: Tensor) -> Transfer[list[Tensor]]:
        """Whole matrices that this process owns in; its pieces of all units out, in the dtype of `like`."""
        pieces = [
            _part(unit, whole, target)
            for target in range(self._size)
            for unit, whole in zip(self.mine, wholes, strict=True)
        ]
        flat = _flat(pieces) if pieces else like.new_empty(0)
        arrived = yield from self._all_to_all(flat, self._received, self._sent)
        return _split(arrived, [unit.spread.piece_shape(self._rank) for unit in self.units])

    def to_everyone(self, owned: list[Tensor], shapes: list[tuple[int, ...]], like: Tensor) -> Transfer[list[Tensor]]:
        """One tensor per owned matrix in; those of all units, which have these shapes, out on every process."""
        flat = _flat(owned) if owned else like.new_empty(0)
        sizes = iter([torch.Size(shape).numel() for shape in shapes])
        by_owner = [sum(next(sizes) for _ in range(count)) for count in self._counts]
        arrived = yield from self._all_to_all(flat.repeat(self._size), [len(flat)] * self._size, by_owner)
        return _split(arrived, shapes)

    def totals(self, parts: list[Tensor]) -> Transfer[list[Tensor]]:
        """The sums over all processes of tensors of any shapes, by one reduction for all of them."""
        packed = _flat(parts)
        work = dist.all_reduce(packed, group=self._group, async_op=True)
        yield
        _wait(work)
        return _split(packed, [tuple(part.shape) for part in parts])

    def _all_to_all(self, flat: Tensor, to: list[int], of: list[int]) -> Transfer[Tensor]:
        arrived = flat.new_empty(sum(of))
        work = dist.all_to_all_single(arrived, flat, of, to, group=self._group, async_op=True)
        yield
        _wait(work)
        return arrived


def _part(unit: Unit, whole: Tensor, rank: int) -> Tensor:
    """What a process has of a whole matrix, as a view."""
    start, stop = unit.spread.spans[rank]
    return whole[start:stop] if unit.spread.by_rows else whole[:, start:stop]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _split(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]


def _wait(work: dist.Work | None) -> None:
    assert work is not None, "asked for asynchronously"
    work.wait()


def orthogonalise_owned(mine: list[Unit], wholes: list[Tensor]) -> list[Tensor]:
    """The orthogonalised matrices, those of one size and schedule in batches."""
    same: dict[tuple[Any, ...], list[int]] = {}
    for number, unit in enumerate(mine):
        group = unit.item.group
        options = tuple(group[option] for option in NS_OPTIONS)
        same.setdefault((unit.spread.rows, unit.spread.cols, *options), []).append(number)
    results = list(wholes)
    for (rows, cols, *_), numbers in same.items():
        device = wholes[numbers[0]].device.type
        each = max(1, BATCH_ELEMENTS.get(device, BATCH_ELEMENTS["cpu"]) // (rows * cols))
        for start in range(0, len(numbers), each):
            batch = numbers[start : start + each]
            whole = torch.stack([wholes[number] for number in batch])
            orthogonal = orthogonalised(whole, mine[batch[0]].item.group, whole.dtype)
            for number, result in zip(batch, orthogonal, strict=True):
                results[number] = result
    return results


def in_rounds(units: list[Unit]) -> list[Exchange]:
    """The rounds of a step: equal on all processes, and worked out once for the same matrices."""
    sharding = units[0].sharding
    device = units[0].item.parameter.device.type
    limit = ROUND_ELEMENTS.get(device, ROUND_ELEMENTS["cpu"])
    plan = _rounds(tuple(unit.spread for unit in units), sharding.size, limit)
    return [Exchange(units, one) for one in plan]


_rounds = lru_cache(maxsize=32)(rounds)


def overlapped(computations: Iterable[Transfer[None]]) -> None:
    """Runs computations so that each works while the transfers of its neighbours are under way.

    A new one is started before the older ones go on, newest first, in the same order on every process. So at most as
    many are in flight as a computation has transfers.
    """
    running: list[Transfer[None]] = []
    for one in computations:
        running = [other for other in (one, *running) if next(other, _DONE) is not _DONE]
    while running:
        running = [other for other in running if next(other, _DONE) is not _DONE]


_DONE = object()
