"""Keys and values with room to grow: a token is written beside those before it, and nothing is copied for it.

The stock layers join all keys anew for every token, and again for every row that leaves or comes: at some hundred rows
that is more than half of what a small model's token costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def roomy(config: PretrainedConfig | None = None) -> DynamicCache:
    """An empty cache; with a model's config, layers that keep something else than all keys and values stay its own."""
    cache = DynamicCache(config=config)
    if config is None:
        cache.layer_class_to_replicate = RoomyLayer
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """A layer whose `keys` and `values` (rows, heads, columns, depth) are the used part of a larger store.

    What is unused may hold anything finite; what comes into use unwritten is made zero, since a masked column is
    multiplied by an exact zero, which only a finite number survives.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stores: list[Tensor] = []
        self._rows = self._first = self._end = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes the states of new tokens after the last column."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._rows = len(key_states)
            self._stores = [
                states.new_zeros(*states.shape[:2], 0, states.shape[-1]) for states in (key_states, value_states)
            ]
        new = key_states.shape[-2]
        if self._end + new > self._stores[0].shape[2]:
            self._move(self._rows, left=0, right=new + max(64, self._width // 4))
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[: self._rows, :, self._end : self._end + new] = states
        self._end += new
        return self._shown()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times, one after the other."""
        if self.is_initialized:
            self._stores = [store[: self._rows].repeat_interleave(repeats, 0) for store in self._stores]
            self._rows *= repeats
            self._shown()

    def batch_select_indices(self, indices: Tensor) -> None:
        """The rows of these numbers, in this order; a row that keeps its number is not touched."""
        if not self.is_initialized:
            return
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero()[:, 0]
        if len(moved):
            for store in self._stores:
                used = store[:, :, self._first : self._end]
                used[moved] = used[indices[moved]]
        self._rows = len(indices)
        self._shown()

    def keep_columns(self, first: int, columns: Tensor) -> None:
        """Of the columns from `first` on, these alone, in this order.

        Args:
            first: columns before it stay as they are.
            columns: numbers, counted from `first`, ascending.
        """
        begin, new = self._first + first, len(columns)
        if new and int(columns[-1]) >= new:  # else they are there already
            for store in self._stores:
                store[: self._rows, :, begin : begin + new] = store[: self._rows, :, begin + columns]
        self._end = begin + new
        self._shown()

    def add_rows(self, other: RoomyLayer, *, blank: int) -> None:
        """Puts the rows of another layer under these, all ending in the last column.

        Args:
            other: at least as wide as one of its rows needs; it is not changed.
            blank: first columns of this one that no row needs any more.
        """
        self._first += blank
        rows, width = self._rows + other._rows, max(self._width, other._width)
        room = len(self._stores[0])
        if rows > room or width > self._end:
            room = room if rows <= room else max(rows, room * 5 // 4)
            self._move(room, left=width - self._width, right=64)
        first = self._end - width
        for store, new in zip(self._stores, other._shown(), strict=True):
            store[: self._rows, :, first : self._first] = 0
            store[self._rows : rows, :, first : self._end - other._width] = 0
            store[self._rows : rows, :, self._end - other._width : self._end] = new
        self._rows, self._first = rows, first
        self._shown()

    @property
    def _width(self) -> int:
        return self._end - self._first

    def _move(self, rows: int, *, left: int, right: int) -> None:
        """To a store for so many rows, with free columns on both sides."""
        moved = []
        for store in self._stores:
            larger = store.new_zeros(rows, store.shape[1], left + self._width + right, store.shape[3])
            larger[: self._rows, :, left : left + self._width] = store[: self._rows, :, self._first : self._end]
            moved.append(larger)
        self._stores, self._first, self._end = moved, left, left + self._width

    def _shown(self) -> tuple[Tensor, Tensor]:
        self.keys, self.values = (store[: self._rows, :, self._first : self._end] for store in self._stores)
        return self.keys, self.values
