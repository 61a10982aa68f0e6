"""`CodedCache`: what is given to `model.generate(past_key_values=...)`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

from transformers.cache_utils import Cache

from burnish.core.errors import SettingsError
from burnish.quantize.cache.codes import CacheCode, code_of
from burnish.quantize.cache.fitted import FittedCodes, read_fitted
from burnish.quantize.cache.layer import CodedLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.core.checkpoint import Model

BUFFER = 32
"""Tokens that stay dense, unless somebody says otherwise."""


class CodedCache(Cache):
    """The last tokens dense, all before coded.

    One cache serves one batch of texts; `reset` empties it for the next. Every way in which transformers changes a
    cache works: beams, repeated batches, cutting off the end.

    Args:
        fitted: to the model.
        code: how older tokens are stored.
        buffer: tokens that stay dense.
    """

    def __init__(self, fitted: FittedCodes, code: CacheCode, *, buffer: int = BUFFER) -> None:
        if buffer < 0:
            raise SettingsError(f"is {buffer}", where="buffer", fix="give a number of tokens")
        own = [(fitted.of(number, "keys"), fitted.of(number, "values")) for number in range(fitted.shape.num_layers)]
        code.parts(own[0][0])  # which refuses what the code needs and does not have
        super().__init__(layers=[CodedLayer(code, keys, values, buffer) for keys, values in own])

    @classmethod
    def load(cls, directory: str | Path, code: str, model: Model | PreTrainedModel, *, buffer: int = BUFFER) -> Self:
        """An empty cache.

        Args:
            directory: what `burnish kv-cache` has written.
            code: rotated:3, int4, lexico:8, ...
            model: that the cache is for; codes of another one are refused.
            buffer: tokens that stay dense.

        Raises:
            CheckpointError: no codes there, or of another model.
            SettingsError: there is no such code, or it needs dictionaries that were not learned.
        """
        fitted = read_fitted(directory)
        fitted.check(model)
        return cls(fitted, code_of(code), buffer=buffer)

    def num_bytes(self) -> dict[str, int]:
        """{"codes.keys.PART", "buffer.keys", ...: bytes of the tensors that are held, over all layers}."""
        total = Counter[str]()
        for layer in self.layers:
            total.update(cast(CodedLayer, layer).num_bytes())
        return dict(total)
