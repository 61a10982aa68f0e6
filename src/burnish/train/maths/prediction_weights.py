"""Weights of tokens by how likely the model finds them already: p is the probability of the token, c = -log p.

focal      (1 - p)^gamma     what is known counts less (Focal Loss for Dense Object Detection, 2017,
                             arXiv:1708.02002; there for classes, and the sum is divided by their number)
drop-top   1 if p <= cut     what is as good as certain does not count
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def prediction_weights(
    losses: Float[Tensor, " tokens"], gamma: float = 0.0, cut: float | None = None
) -> Float[Tensor, " tokens"]:
    """The product of both, without a gradient.

    Args:
        losses: cross-entropies in nats.
        gamma: 0 for no focal weights.
        cut: the largest probability that counts; None for any.
    """
    losses = losses.detach()
    weights = (-torch.expm1(-losses)).clamp(min=0) ** gamma if gamma else torch.ones_like(losses)
    return weights if cut is None else weights * (losses >= -math.log(cut))
