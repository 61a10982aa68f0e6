"""Windows of calibration text, in parts whose sums are kept apart, a few at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

BATCH_TOKENS = 1024
"""Tokens of a forward pass, unless somebody says otherwise."""


@dataclass(frozen=True)
class WindowBatch:
    """A few windows on the device.

    Attributes:
        numbers: which windows of the text they are.
        tokens, mask: of them; mask None where every window is whole.
    """

    numbers: tuple[int, ...]
    tokens: Int[Tensor, "windows length"]
    mask: Bool[Tensor, "windows length"] | None


@dataclass(frozen=True)
class Calibration:
    """Windows of calibration text.

    Attributes:
        tokens: token ids, one window a row.
        seed: of the drawn labels.
        num_folds: parts of the text, in order, whose sums are kept apart.
        mask: False at padding, None where every window is whole.
        fold_ends: window numbers at which folds end; None makes them equally long.
    """

    tokens: Int[Tensor, "windows length"]
    seed: int = 0
    num_folds: int = 4
    mask: Bool[Tensor, "windows length"] | None = None
    fold_ends: tuple[int, ...] | None = None

    @property
    def bounds(self) -> tuple[int, ...]:
        """Window numbers at which folds begin, and the number of windows."""
        if self.fold_ends is not None:
            return (0, *self.fold_ends)
        return tuple(torch.linspace(0, len(self.tokens), self.num_folds + 1).round().long().tolist())

    def fold(self, number: int) -> range:
        """Window numbers of one fold."""
        return range(self.bounds[number], self.bounds[number + 1])

    def thinned(self, max_tokens: int) -> Calibration:
        """As many of its windows as that allows, spread over the text, at least one for each fold of equal length."""
        wanted = max(max_tokens // self.tokens.shape[1], self.num_folds)
        if wanted >= len(self.tokens):
            return self
        places = torch.linspace(0, len(self.tokens) - 1, wanted).round().long()
        return Calibration(
            self.tokens[places], self.seed, self.num_folds, None if self.mask is None else self.mask[places]
        )

    def batches(self, fold: int, device: torch.device, batch_tokens: int = BATCH_TOKENS) -> Iterator[WindowBatch]:
        """The windows of a fold that are this process's, as many at a time as fit."""
        own = list(self.fold(fold))[rank() :: world_size()]
        size = max(batch_tokens // self.tokens.shape[1], 1)
        for start in range(0, len(own), size):
            some = own[start : start + size]
            mask = None if self.mask is None else self.mask[some].to(device)
            yield WindowBatch(tuple(some), self.tokens[some].to(device), mask)

    @property
    def hash(self) -> str:
        digest = hashlib.sha256(self.tokens.numpy().tobytes())
        if self.mask is not None:
            digest.update(self.mask.numpy().tobytes())
        return digest.hexdigest()


def world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
