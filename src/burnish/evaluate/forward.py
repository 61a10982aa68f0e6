"""Walking a network over windows of tokens without ever holding all of its logits.

A window of 1,024 tokens over a vocabulary of 150,000 has 600 MB of logits in float32, more with a reference beside it.
Here the decoder runs once, and the output head (`burnish.arch.head`) is applied to a chunk of its hidden states at a
time. Where nobody knows what a network does after them, it hands over its own logits, chunked afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.arch import AllLogits, head_of
from burnish.core.errors import NumericalError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_TOKENS = 128


class ChunkedLogits:
    """Logits of one window after another, a chunk of positions at a time.

    Args:
        module: a causal language model in evaluation mode.
        name: what error messages call it.
        chunk: positions per chunk; the largest tensor is (chunk, vocabulary).
    """

    def __init__(self, module: PreTrainedModel, *, name: str, chunk: int = CHUNK_TOKENS) -> None:
        self.module, self.name, self.chunk = module, name, chunk
        self.head = head_of(module) or AllLogits()

    def chunks(self, window: Int[Tensor, " length"], *, index: int) -> Iterator[Float[Tensor, "chunk vocab"]]:
        """Logits at every position but the last, in order; position t predicts token t + 1.

        Raises:
            NumericalError: a logit is not finite; the message names the window, the position and the first module that
                gave such a value.
        """
        ids = window[None].to(self.module.device)
        _, states = self.head.last_hidden(self.module, input_ids=ids, use_cache=False)
        parts = map(self.head.logits, states[0, :-1].split(self.chunk))
        start = 0
        for logits in parts:
            if not torch.isfinite(logits.sum()):
                self._explain(ids, logits, index=index, start=start)
            start += len(logits)
            yield logits

    def _explain(self, ids: Tensor, logits: Tensor, *, index: int, start: int) -> None:
        """Raises for a chunk with a value that is not finite; an overflowing sum of finite values is let through."""
        bad = ~torch.isfinite(logits).all(dim=1)
        if not bad.any():
            return
        position = start + int(bad.nonzero()[0])
        raise NumericalError(
            f"the logits of {self.name} are not finite in window {index + 1} at position {position}",
            where=first_not_finite(self.module, ids) or "output head",
            fix="the checkpoint is damaged, or overflows in this dtype",
        )


def first_not_finite(module: PreTrainedModel, ids: Int[Tensor, "batch length"]) -> str | None:
    """The name of the first submodule whose output is not finite, in the order in which they finish."""
    found: list[str] = []

    def watch(name: str):
        def hook(_module: torch.nn.Module, _inputs: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(tensor, Tensor) and not torch.isfinite(tensor).all():
                found.append(name)

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    module(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found[0] if found else None
