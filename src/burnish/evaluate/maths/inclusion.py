"""Attention over a part of the keys, and what it leaves out.

A rule gives each key an inclusion weight m: 0 where it is left out, 1 where it is chosen, the probability of being
drawn where it was drawn. With scores s and values v

    z_j = exp(s_j - max s) / m_j on the support,    o = sum_j z_j v_j / sum_j z_j

Numerator and denominator of drawn keys have the sums over all keys as their means; their ratio is consistent and
slightly biased. Where every m is 1 it is softmax attention.

Suffixes: H query heads, G heads of keys, Q queries, K keys, D width.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def attention_over(
    scores_HQK: Float[Tensor, "heads queries keys"],
    inclusion_HQK: Float[Tensor, "heads queries keys"],
    value_HKD: Float[Tensor, "heads keys width"],
) -> Float[Tensor, "heads queries width"]:
    """o of above; 0 for a query whose support is empty."""
    support_HQK = inclusion_HQK > 0
    hidden_HQK = scores_HQK.masked_fill(~support_HQK, -torch.inf)
    largest_HQ1 = hidden_HQK.amax(dim=-1, keepdim=True)
    largest_HQ1 = torch.where(largest_HQ1 == -torch.inf, 0.0, largest_HQ1)
    weights_HQK = (hidden_HQK - largest_HQ1).exp() / torch.where(support_HQK, inclusion_HQK, 1.0)
    total_HQ1 = weights_HQK.sum(dim=-1, keepdim=True)
    return weights_HQK @ value_HKD / torch.where(total_HQ1 > 0, total_HQ1, 1.0)


def density(
    support_HQK: Bool[Tensor, "heads queries keys"], seen_QK: Bool[Tensor, "queries keys"]
) -> Float[Tensor, " queries"]:
    """Share of the keys that a query sees which is in the support, mean over heads."""
    return support_HQK.sum(dim=-1).float().mean(dim=0) / seen_QK.sum(dim=-1)


def mass_recall(
    scores_HQK: Float[Tensor, "heads queries keys"],
    support_HQK: Bool[Tensor, "heads queries keys"],
    seen_QK: Bool[Tensor, "queries keys"],
) -> Float[Tensor, " queries"]:
    """Share of the dense attention that falls on the support, mean over heads."""
    masses_HQK = scores_HQK.masked_fill(~seen_QK, -torch.inf).softmax(dim=-1)
    return (masses_HQK * support_HQK).sum(dim=-1).mean(dim=0)


def relative_error(
    found_HQD: Float[Tensor, "heads queries width"], dense_HQD: Float[Tensor, "heads queries width"]
) -> Float[Tensor, " queries"]:
    """|found - dense| / |dense| of the heads' outputs together."""
    found_QE, dense_QE = (part.transpose(0, 1).flatten(1) for part in (found_HQD, dense_HQD))
    return (found_QE - dense_QE).norm(dim=-1) / dense_QE.norm(dim=-1)


def keys_read(support_HQK: Bool[Tensor, "heads queries keys"], num_kv_heads: int) -> Float[Tensor, " queries"]:
    """Keys that have to be read, over all heads of keys: what any of the query heads that share them looks at."""
    return support_HQK.unflatten(0, (num_kv_heads, -1)).any(dim=1).sum(dim=(0, 2)).float()
