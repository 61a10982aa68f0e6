"""A layer of transformers' cache that keeps its last tokens as they are and codes of all before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from burnish.quantize.cache.codes import CacheCode, LayerFit, Stored

TOKENS = -2
"""The dimension of stored and dense tensors alike that counts tokens."""


class CodedLayer(DynamicLayer):
    """Keys and values of one layer.

    Whoever attends is given all of them: what has just come exactly, the last `buffer` tokens exactly, older ones as
    decoded from their codes. So a prompt that is read in one call is read exactly, and only what is kept of it is not.
    `keys` and `values` are the dense buffer; no dense copy of what is coded stays.

    Args:
        code: how older tokens are stored.
        keys, values: what it knows of each in this layer.
        buffer: tokens that stay dense.
    """

    def __init__(self, code: CacheCode, keys: LayerFit, values: LayerFit, buffer: int) -> None:
        super().__init__()
        self.code, self.buffer, self.fitted = code, buffer, {"keys": keys, "values": values}
        self.stored: dict[str, Stored] = {}
        self.num_coded = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.fitted = {kind: _moved(fitted, key_states.device) for kind, fitted in self.fitted.items()}

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds tokens, and returns keys and values of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        told = []
        for kind, new in (("keys", key_states), ("values", value_states)):
            dense = torch.cat([getattr(self, kind), new], dim=TOKENS) if len(getattr(self, kind)) else new
            told.append(torch.cat([self.decoded(kind), dense], dim=TOKENS) if self.num_coded else dense)
            surplus = max(dense.shape[TOKENS] - self.buffer, 0)
            setattr(self, kind, dense[..., surplus:, :].clone() if surplus else dense)
            if surplus:
                self._store(kind, self.code.encode(dense[..., :surplus, :], self.fitted[kind]))
        self.num_coded += surplus
        return told[0], told[1]

    def get_seq_length(self) -> int:
        if self.keys is None or not self.keys.numel():
            return self.num_coded
        return self.num_coded + self.keys.shape[TOKENS]

    def crop(self, tokens_to_remove: int) -> None:
        """Drops the last tokens, dense ones first; the buffer fills again with what comes."""
        length = self.get_seq_length()
        kept = tokens_to_remove if tokens_to_remove > 0 else length + tokens_to_remove  # transformers knows both
        dense = max(min(kept, length) - self.num_coded, 0)
        self.num_coded = max(min(kept, self.num_coded), 0)
        self._each(lambda tensor: tensor[..., : self.num_coded, :], lambda tensor: tensor[..., :dense, :])

    def reset(self) -> None:
        self.stored, self.num_coded, self.is_initialized = {}, 0, False
        self.keys = self.values = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._each(lambda tensor: tensor[indices])

    def num_bytes(self) -> dict[str, int]:
        """{"codes.keys.PART", "buffer.keys", ...: bytes of the tensors that are held}."""
        if not self.is_initialized:
            return {}
        held = {f"codes.{kind}.{part}": t.nbytes for kind, parts in self.stored.items() for part, t in parts.items()}
        return held | {f"buffer.{kind}": getattr(self, kind).nbytes for kind in self.fitted}

    def _store(self, kind: str, new: Stored) -> None:
        old = self.stored.get(kind)
        self.stored[kind] = new if old is None else {part: torch.cat([old[part], new[part]], TOKENS) for part in new}

    def decoded(self, kind: str) -> Tensor:
        """The "keys" or "values" of the coded tokens, as whoever attends is given them."""
        return self.code.decode(self.stored[kind], self.fitted[kind]).to(self.dtype)

    def _each(self, change: Callable[[Tensor], Tensor], change_dense: Callable[[Tensor], Tensor] | None = None) -> None:
        """Changes every tensor that is held."""
        if not self.is_initialized:
            return
        for kind in self.fitted:
            setattr(self, kind, (change_dense or change)(getattr(self, kind)))
            if kind in self.stored:
                self.stored[kind] = {part: change(tensor) for part, tensor in self.stored[kind].items()}


def _moved(fitted: LayerFit, device: torch.device) -> LayerFit:
    atoms = fitted.dictionary
    return LayerFit(fitted.mean.to(device), fitted.signs.to(device), None if atoms is None else atoms.to(device))
