"""A bias for every channel of what a layer reads: off before activations are rounded, back behind the product.

    y = Q(x - b) Wᵀ + (b Wᵀ + c)

Without rounding that is x Wᵀ + c for any b. With it, a channel whose values lie far from zero on one side, which
stretches the grid of every token, is moved back to zero: with b at the middle of its range, its largest absolute value
becomes half of the range, the least that a bias can make of it. The error is (Q(x - b) - (x - b)) Wᵀ, and b is learned
to make it small over all tokens, or small beside each token's x Wᵀ; through the rounding no gradient goes
(straight-through), and what remains of it goes through steps, which are the tokens' largest numbers over 127.

Where only weights are rounded, x Q(W)ᵀ is what it is for any b: nothing can be gained.

Nearest published method: Outlier Suppression+, 2023, arXiv:2304.09145, which shifts to the middle of the range and
scales too.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LEVELS = 127
"""Of 8 bits, on each side of zero."""


def rounded_by_token(x: Float[Tensor, "tokens channels"]) -> Float[Tensor, "tokens channels"]:
    """Q(x): every token to nearest on a symmetric grid of 8 bits that its largest number ends; gradients as above."""
    step = (x.abs().amax(1, keepdim=True) / LEVELS).clamp(min=torch.finfo(x.dtype).tiny)
    scaled = x / step
    return step * (scaled + (scaled.round() - scaled).detach())


def product_error(
    x: Float[Tensor, "tokens channels"],
    gram: Float[Tensor, "channels channels"],
    bias: Float[Tensor, " channels"],
    *,
    relative: bool = False,
) -> Float[Tensor, ""]:
    """Σ ‖(Q(x - b) - (x - b)) Wᵀ‖² / Σ ‖x Wᵀ‖² over tokens, or the mean over tokens of each one's ratio.

    A few tokens with massive activations are most of the sums, and of the mean they are what they are: a few.
    """
    shifted = x - bias
    error = rounded_by_token(shifted) - shifted
    lost, whole = ((error @ gram) * error).sum(1), ((x @ gram) * x).sum(1)
    return (lost / whole).mean() if relative else lost.sum() / whole.sum()


def learned_bias(
    x: Float[Tensor, "tokens channels"],
    gram: Float[Tensor, "channels channels"],
    start: Float[Tensor, " channels"],
    *,
    relative: bool = False,
    steps: int = 40,
    lr: float = 0.02,
) -> Float[Tensor, " channels"]:
    """b with the least `product_error` that was met on the way down by Adam; the start included.

    Args:
        x: inputs to learn on.
        gram: Σ WᵀW over the matrices that read them.
        start: b to begin at.
        relative: see `product_error`.
        steps: of Adam.
        lr: of Adam, in standard deviations of each channel.
    """
    spread = x.std(0).clamp(min=1e-6)
    offset = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=lr)
    best, least = start, torch.inf
    for step in range(steps + 1):
        bias = start + offset * spread
        loss = product_error(x, gram, bias, relative=relative)
        if (value := float(loss.detach())) < least:
            best, least = bias.detach().clone(), value
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return best
