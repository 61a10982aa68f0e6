"""NorMuon and Muon on parameters that FSDP2 shards over processes, with the answer of one process.

What a step needs beyond the local shard: the orthogonalised matrix, which its owner makes (`burnish.optim.exchange`),
and two sums, ||O||^2 and ||Oh||^2 of every matrix, added up over the processes, which make the step size global. Row
statistics and weights stay on the shard.

Where a parameter is cut along its columns (GPT-2's transposed storage, or `Shard(1)`), a row's mean square is a sum
over processes too, so m numbers travel in place of two, and the second moment is kept on every process.

What differs from the published distributed versions (NorMuon, 2025, arXiv:2510.05491, Algorithm 2; microsoft/dion):
they restore the norm of each shard, so that the result depends on the number of processes (`norm_scope="local"`).
Here only the order of a few sums does: the product of the shards is the same to rounding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from burnish.optim.exchange import Exchange, Transfer, Unit, in_rounds, orthogonalise_owned, overlapped, units_of
from burnish.optim.maths.normuon import momentum_, row_scales_, row_scales_from_, step_factor
from burnish.optim.orthogonal import apply_, orthogonalisation_dtype
from burnish.optim.rule import Item


def update_sharded(items: list[Item], *, normalise: bool) -> None:
    """One step of Muon, or of NorMuon, on sharded parameters; collective.

    Args:
        items: parameters with `sharding`, equal on all processes.
        normalise: NorMuon.
    """
    units = [unit for item in items for unit in units_of(item)]
    step = _Step(normalise, Counter(unit.item.index for unit in units))
    same: dict[torch.dtype, list[Unit]] = {}
    for unit in units:
        dtype = orthogonalisation_dtype(unit.item.group["ns_dtype"], unit.item.state["momentum"])
        same.setdefault(dtype, []).append(unit)
    overlapped(step.round(exchange, dtype) for dtype, some in same.items() for exchange in in_rounds(some))


@dataclass
class _Step:
    """Attributes:
    normalise: NorMuon.
    unfinished: matrices of every parameter that are not updated yet.
    moved: parameters whose momentum has seen this gradient.
    """

    normalise: bool
    unfinished: Counter[int]
    moved: set[int] = field(default_factory=set)

    def round(self, exchange: Exchange, dtype: torch.dtype) -> Transfer[None]:
        """One round from momentum to weights."""
        units = exchange.units
        pieces = [self._direction(unit).to(dtype) for unit in units]
        wholes = yield from exchange.to_owners(pieces)
        orthogonal = yield from exchange.to_shards(orthogonalise_owned(exchange.mine, wholes), pieces[0])
        updates = [o.to(unit.item.state["momentum"].dtype) for o, unit in zip(orthogonal, units, strict=True)]
        parts = [self._local_sums(unit, update) for unit, update in zip(units, updates, strict=True)]
        sums = yield from exchange.totals([part.sums for part in parts])
        for unit, update, part, total in zip(units, updates, parts, sums, strict=True):
            apply_(unit.item, unit.piece(unit.item.weight), update, self._factor(unit, part, total))
            self.unfinished[unit.item.index] -= 1
            if not self.unfinished[unit.item.index]:
                unit.item.commit()

    def _direction(self, unit: Unit) -> Tensor:
        item = unit.item
        if item.index not in self.moved:
            momentum_(item.state["momentum"], item.gradient, item.group["betas"][0])
            self.moved.add(item.index)
        return unit.direction()

    def _local_sums(self, unit: Unit, update: Tensor) -> _Part:
        """What must be added up over the processes: two squared norms, or the sum of squares of every row."""
        group = unit.item.group
        if not self.normalise:
            norm = update.square().sum()
            return _Part(torch.stack([norm, norm]))
        if not unit.spread.by_rows:
            return _Part(update.square().sum(dim=-1, keepdim=True))
        second_moment = unit.row_piece(unit.item.state["second_moment"])
        row_scale, before, after = row_scales_(update, second_moment, group["betas"][1], group["eps"])
        return _Part(torch.stack([before.view(()), after.view(())]), row_scale)

    def _factor(self, unit: Unit, part: _Part, total: Tensor) -> Tensor:
        """What the local piece of the update is multiplied with."""
        group, spread = unit.item.group, unit.spread
        rows, cols = spread.rows, spread.cols
        if group["norm_scope"] == "local":
            total = part.sums
            if group["scale"] == "rms":
                rows, cols = spread.piece_shape(unit.sharding.rank)
        row_scale = part.row_scale
        if self.normalise and not spread.by_rows:
            second_moment = unit.row_piece(unit.item.state["second_moment"])
            mean_square = total / spread.cols
            row_scale, before, after = row_scales_from_(
                mean_square, spread.cols, second_moment, group["betas"][1], group["eps"]
            )
        else:
            before, after = total.view(2, 1, 1).unbind()
        if row_scale is None:
            return step_factor(group["scale"], rows, cols, None, after)
        return row_scale * step_factor(group["scale"], rows, cols, before, after, group["eps"])


class _Part(NamedTuple):
    """Attributes:
    sums: of the local piece, to be added up.
    row_scale: what its rows are multiplied with, where that is known from the piece alone.
    """

    sums: Tensor
    row_scale: Tensor | None = None
