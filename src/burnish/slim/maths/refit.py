"""Least-squares repair of down_proj after neurons have gone: the kept ones take over what they can.

With routing weights g and activations A of the tokens that an expert saw, the layer loses nothing if
diag(g) A_K W'ᵀ = diag(g) A Wᵀ. The W' that comes closest follows from the Gram matrix G = Aᵀ diag(g²) A alone:

    W'ᵀ = W_Kᵀ + (G_KK + ε tr(G_KK)/|K| I)⁻¹ G_KR W_Rᵀ,    R the removed neurons

The ridge ε pulls toward the kept columns as they are, not toward zero. On the text it was computed from the repair is
never worse than keeping W[:, K] (for ε → 0). It is ours, not part of SlimMoE; it is the update of Optimal Brain Surgeon
for a block of neurons.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def gram_terms(
    activations: Float[Tensor, "tokens width"], routing: Float[Tensor, "tokens 1"]
) -> Float[Tensor, "width width"]:
    """Aᵀ diag(g²) A of a block of tokens; additive."""
    weighted = routing * activations
    return weighted.T @ weighted


def refit_down(
    down: Float[Tensor, "hidden width"],
    gram: Float[Tensor, "width width"],
    keep: Int[Tensor, " kept"],
    ridge: float = 1e-6,
) -> Float[Tensor, "hidden kept"]:
    """W' (hidden, kept). A Gram matrix of zeros (no token) leaves the kept columns as they are."""
    inner = gram[keep][:, keep]
    mean = inner.diagonal().mean()
    if mean == 0:
        return down[:, keep]
    damped = inner + ridge * mean * torch.eye(len(keep), dtype=gram.dtype, device=gram.device)
    removed = torch.ones(down.shape[1], dtype=torch.bool, device=keep.device)
    removed[keep] = False
    correction = torch.linalg.solve(damped, gram[keep][:, removed] @ down[:, removed].T)
    return down[:, keep] + correction.T
