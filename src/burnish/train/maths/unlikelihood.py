"""Losses of tokens with weights of either sign: what is above 0 is learned, what is below 0 is unlearned.

    sum_t |w_t| l_t,    l_t = -log p_t where w_t >= 0,    l_t = -log(1 - p_t) where w_t < 0

with p_t the probability of the token. The second is the unlikelihood loss (Neural Text Generation with Unlikelihood
Training, 2019, arXiv:1908.04319). By the cross-entropy c = -log p it is -log(1 - exp(-c)), and its slope
-p / (1 - p): a token that is likely pulls hard, one that is unlikely already hardly at all. At p = 1 the slope has no
bound, but that of c by the logits is 1 - p, so the gradient of the logits is at most |w| in every entry.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST = 1e-7
"""Of 1 - p, which float32 rounds to 0 for a token that is as good as certain."""


def signed_losses(losses: Float[Tensor, " tokens"], weights: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """l_t out of cross-entropies in nats; differentiable in these."""
    unlikely = -(-torch.expm1(-losses)).clamp(min=SMALLEST).log()
    return torch.where(weights < 0, unlikely, losses)


def slopes(losses: Float[Tensor, " tokens"], weights: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """The derivative of |w_t| l_t by the cross-entropy: w_t, and w_t p_t / (1 - p_t) where w_t < 0."""
    odds = (-losses).exp() / (-torch.expm1(-losses)).clamp(min=SMALLEST)
    return torch.where(weights < 0, weights * odds, weights)
