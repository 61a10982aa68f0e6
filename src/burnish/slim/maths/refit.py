"""Least-squares repair of down_proj after neurons have gone: the kept ones take over what they can.

With routing weights g and activations A of the tokens that an expert saw, the layer loses nothing if
diag(g) A_K W'ᵀ = diag(g) A Wᵀ. The W' that comes closest follows from the Gram matrix G = Aᵀ diag(g²) A alone:

    W'ᵀ = W_Kᵀ + (G_KK + ε tr(G_KK)/|K| I)⁻¹ G_KR W_Rᵀ,    R the removed neurons

The ridge ε pulls toward the kept columns as they are, not toward zero. On the text it was computed from the repair is
never worse than keeping W[:, K] (for ε → 0). It is ours, not part of SlimMoE; it is the update of Optimal Brain Surgeon
for a block of neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


RIDGE, SWEEPS = 0.1, 2
"""Of `refit_together`; the ridge had the lowest loss on held-out windows (`benchmarks/slim_widths.py`)."""

Part = tuple[Int[Tensor, " _"], Callable[[], Float[Tensor, "_ _"]]]
"""The tokens that one expert is given, and what its columns are multiplied by there: g a, activations times weight,
computed again whenever they are asked for."""


def refit_together(
    parts: Sequence[Part], missing: Float[Tensor, "all_tokens hidden"], ridge: float = RIDGE, sweeps: int = SWEEPS
) -> list[Float[Tensor, "hidden _"]]:
    """Changes of the down projections of a layer's experts that make up for what its output lacks.

        min Σ_t ‖m_t - Σ_e D_e (g_te a_te)‖²,    D_e in turn:  D_eᵀ += (B_eᵀB_e + λ_e I)⁻¹ B_eᵀ M_e

    with rows g a of B_e, M_e what the others leave at its tokens, and λ_e the ridge times the mean diagonal of B_eᵀB_e.

    Args:
        parts: of each expert.
        missing: M, of every token, in the precision to compute in; what is left of it on return.
        ridge: as a share of the mean diagonal.
        sweeps: over all experts.
    """
    changes: list[Tensor] = [missing.new_zeros(0)] * len(parts)
    for sweep in range(sweeps):
        for number, (tokens, computed) in enumerate(parts):
            b = computed()
            if sweep == 0:
                changes[number] = missing.new_zeros(missing.shape[1], b.shape[1])
            gram = b.T @ b
            mean = gram.diagonal().mean()
            if mean == 0:
                continue
            gram += ridge * mean * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            step = torch.linalg.solve(gram, b.T @ missing[tokens])
            missing[tokens] -= b @ step
            changes[number] += step.T
    return changes
