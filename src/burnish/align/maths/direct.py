"""The margin of direct preference optimisation, from per-token log-probabilities.

    m = beta [ s(log p_c - log p_c^ref) - s(log p_r - log p_r^ref) ]

with s the identity for the reverse KL divergence of DPO ("Direct Preference Optimization: Your Language Model is
Secretly a Reward Model", 2023, arXiv 2305.18290), and s = f' of another divergence for f-DPO ("Beyond Reverse KL:
Generalizing Direct Preference Optimization with Diverse Divergence Constraints", 2023, arXiv 2309.16240).

A batch holds the chosen answers first and the rejected ones, in the same order, after them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

EXPONENT_LIMIT = 80.0
"""exp() of more overflows float32."""


def sequence_log_prob(
    per_token: Float[Tensor, "twice_pairs tokens"],
    answer_mask: Int[Tensor, "twice_pairs tokens"],
    tail_weight: float | None = None,
) -> Float[Tensor, " twice_pairs"]:
    """log p of each answer; tokens outside the answer count nothing.

    Args:
        per_token: log-probability of each token, 0 outside the answer.
        answer_mask: 1 on answer tokens.
        tail_weight: weight of the tokens beyond the length of the pair's shorter answer (LD-DPO, arXiv 2409.06411);
            None is 1, ordinary DPO.
    """
    if tail_weight is None:
        return per_token.sum(dim=1)
    position = answer_mask.cumsum(dim=1)
    shorter = torch.minimum(*answer_mask.sum(dim=1).chunk(2)).repeat(2)[:, None]
    weight = torch.where(position <= shorter, 1.0, tail_weight) * answer_mask
    return (per_token * weight).sum(dim=1)


def divergence_score(
    log_ratio: Float[Tensor, " answers"], kind: str = "reverse_kl", alpha: float = 1.0
) -> Float[Tensor, " answers"]:
    """s(log ratio) of f-DPO, up to a constant that cancels in a pair's margin.

    Args:
        log_ratio: log p - log p^ref of each answer.
        kind: reverse_kl, forward_kl, js_divergence or alpha_divergence.
        alpha: of the alpha divergence; 1 is the reverse KL divergence.
    """
    if kind == "forward_kl":
        return -torch.exp((-log_ratio).clamp(max=EXPONENT_LIMIT))
    if kind == "js_divergence":
        return F.logsigmoid(log_ratio)
    if kind == "alpha_divergence" and not math.isclose(alpha, 1.0, abs_tol=1e-6):
        return torch.expm1(((alpha - 1) * log_ratio).clamp(max=EXPONENT_LIMIT)) / (alpha - 1)
    return log_ratio


def direct_margin(
    log_prob: Float[Tensor, " twice_pairs"],
    reference_chosen: Float[Tensor, " pairs"],
    reference_rejected: Float[Tensor, " pairs"],
    beta: float,
    kind: str = "reverse_kl",
    alpha: float = 1.0,
) -> Float[Tensor, " pairs"]:
    """m of each pair, in at least float32."""
    chosen, rejected = log_prob.float().chunk(2) if log_prob.dtype != torch.float64 else log_prob.chunk(2)
    score_chosen = divergence_score(chosen - reference_chosen, kind, alpha)
    score_rejected = divergence_score(rejected - reference_rejected, kind, alpha)
    return beta * (score_chosen - score_rejected)
