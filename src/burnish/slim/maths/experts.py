"""Importance of whole experts, for the baseline that drops experts instead of narrowing all of them.

Source: REAP the Experts (2025, arXiv:2510.13999).
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor


def reap_terms(
    activations: Float[Tensor, "tokens width"], routing: Float[Tensor, "tokens 1"], down: Float[Tensor, "hidden width"]
) -> Float[Tensor, ""]:
    """Σ_t g_te ‖f_e(x_t)‖ over the tokens routed to an expert, f_e(x) = a W_downᵀ; additive over blocks of tokens."""
    return (routing[:, 0] * (activations @ down.T).norm(dim=1)).sum()


def reap(sums: Float[Tensor, "*layers experts"], counts: Int[Tensor, "*layers experts"]) -> Tensor:
    """S_e: `reap_terms` per routed token. An expert that saw no token scores 0."""
    return sums / counts.clamp(min=1)
