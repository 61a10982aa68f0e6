"""From losses per token to one number, so that it does not matter how a step is cut into micro-batches and processes.

A micro-batch gives its *share*: sum(loss * mask) / D, with D of the whole optimizer step, known before the first
backward pass. Shares add up: over micro-batches by accumulation, over processes by a sum. Averages of averages do not:
a micro-batch of 100 tokens would weigh as much as one of 900.

    token      D = tokens of the step                    every token weighs the same
    sequence   each row's mean, D = rows of the step     every row weighs the same
    constant   D = rows of the step * longest answer     Dr. GRPO: neither length nor the batch's lengths matter
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Normaliser = Literal["token", "sequence", "constant"]


def denominator(
    mask: Float[Tensor, "rows tokens"], normaliser: Normaliser, longest: int | None = None
) -> Float[Tensor, ""]:
    """What rows add to D: add it up over all micro-batches and processes of the step.

    Args:
        mask: 1 on the tokens that count.
        normaliser: see above.
        longest: tokens that an answer may have; of `constant`.
    """
    if normaliser == "token":
        return mask.sum()
    rows = mask.new_tensor(float(mask.shape[0]))
    if normaliser == "sequence":
        return rows
    if longest is None:
        raise ValueError("the constant normaliser needs the longest answer")
    return rows * longest


def share(
    loss: Float[Tensor, "rows tokens"],
    mask: Float[Tensor, "rows tokens"],
    total: Float[Tensor, ""] | float,
    normaliser: Normaliser,
    processes: int = 1,
) -> Float[Tensor, ""]:
    """A micro-batch's part of the step's loss.

    Args:
        loss: per token.
        mask: 1 on the tokens that count.
        total: D of the whole step.
        normaliser: as for D.
        processes: how many of them average their gradients, where the sum is wanted; 1 where they add them up.
    """
    if normaliser == "sequence":
        summed = ((loss * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)).sum()
    else:
        summed = (loss * mask).sum()
    return summed / torch.as_tensor(total, dtype=loss.dtype, device=loss.device).clamp(min=1) * processes
