"""Labels drawn from the model's own distribution, one per position.

The gradients of the cross-entropy to them have the Fisher matrix as their second moment; labels of the text would
estimate another matrix. They depend on the seed and the number of the window alone: a second pass, a resumed run and
another number of processes see the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from burnish.calibrate.windows import WindowBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def drawn_label_loss(module: PreTrainedModel, batch: WindowBatch, seed: int) -> Float[Tensor, ""]:
    """The cross-entropy to drawn labels, summed over tokens.

    The sum, not the mean: a scale drops out of every factor, and small gradients would underflow.
    """
    logits = module(input_ids=batch.tokens, attention_mask=batch.mask, use_cache=False).logits
    labels = torch.stack(
        [draw_labels(row.detach(), seed, number) for row, number in zip(logits, batch.numbers, strict=True)]
    )
    if batch.mask is not None:
        labels = labels.masked_fill(~batch.mask, -100)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


def draw_labels(logits: Float[Tensor, "length vocab"], seed: int, window: int) -> Int[Tensor, " length"]:
    """One label per position from the model's own distribution, by inversion; the same for equal seed and window."""
    # Modulo a prime below 2^32: the generator ignores higher bits of its seed.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + window) % 4_294_967_291)
    uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64)
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    drawn = torch.searchsorted(cumulative, uniform.to(cumulative) * cumulative[:, -1:])
    return drawn.squeeze(1).clamp_(max=logits.shape[-1] - 1)
