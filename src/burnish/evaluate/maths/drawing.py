"""Which keys a query looks at, by rules that draw: inclusion weights of keys that are free.

    random    every free key with one probability
    MagicPIG  keys whose signs agree with the query's in a table of random directions (2024, arXiv:2410.16179)
    adaptive  as many free keys as the error of the denominator needs (vAttention, 2025, arXiv:2510.05688)

Suffixes: H query heads, G heads of keys, Q queries, K keys, D width, T tables. `free` are keys that are seen and that
no rule before has chosen.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.evaluate.maths.selection import top_k


def uniform(
    draws_HQK: Float[Tensor, "heads queries keys"], free_HQK: Bool[Tensor, "heads queries keys"], rate: float
) -> Float[Tensor, "heads queries keys"]:
    """m = rate for the free keys whose draw from U(0, 1) is below it."""
    return torch.where(free_HQK & (draws_HQK < rate), rate, 0.0)


def augmented_keys(
    key_GKD: Float[Tensor, "kv_heads keys width"],
    centre_GD: Float[Tensor, "kv_heads width"],
    longest_G: Float[Tensor, " kv_heads"],
) -> Float[Tensor, "kv_heads keys widened"]:
    """Keys as unit vectors whose angles to a query order its products with them (Neyshabur and Srebro, 2015).

    [k', sqrt(1 - |k'|^2)] of k' = (k - centre) / longest: a shift of all keys changes no softmax. A key longer than
    `longest`, which came after it was measured, is taken at unit length.
    """
    scaled_GKD = (key_GKD - centre_GD[:, None]) / longest_G[:, None, None]
    rest_GK1 = (1 - scaled_GKD.square().sum(dim=-1, keepdim=True)).clamp(min=0).sqrt()
    return torch.nn.functional.normalize(torch.cat([scaled_GKD, rest_GK1], dim=-1), dim=-1)


def table_codes(
    vectors: Float[Tensor, "*each width"], directions: Float[Tensor, "width tables_bits"], bits: int
) -> Int[Tensor, "*each tables"]:
    """The signs along `bits` directions at a time, as numbers."""
    signs = (vectors @ directions > 0).unflatten(-1, (-1, bits)).long()
    return (signs << torch.arange(bits, device=vectors.device)).sum(dim=-1)


def collision_probability(
    cosine: Float[Tensor, "*each"], bits: int, tables: int, shared: int
) -> Float[Tensor, "*each"]:
    """How likely `shared` tables or more have the same code for two vectors.

    p = 1 - angle / pi is the chance of one sign, p^bits that of a table; with shared = 1, 1 - (1 - p^bits)^tables, and
    with 2 less tables p^bits (1 - p^bits)^(tables - 1).
    """
    one = (1 - cosine.clamp(-1, 1).acos() / math.pi) ** bits
    found = 1 - (1 - one) ** tables
    return found if shared == 1 else found - tables * one * (1 - one) ** (tables - 1)


def magicpig(
    query_HQD: Float[Tensor, "heads queries width"],
    key_GKE: Float[Tensor, "kv_heads keys widened"],
    key_codes_GKT: Int[Tensor, "kv_heads keys tables"],
    directions: Float[Tensor, "widened tables_bits"],
    bits: int,
    shared: int,
) -> Float[Tensor, "heads queries keys"]:
    """m = the probability of a collision, for the keys that collide.

    Args:
        query_HQD: of one layer.
        key_GKE: `augmented_keys`.
        key_codes_GKT: their `table_codes`.
        directions: of all tables.
        bits, shared: signs of a table, and tables that a key must share with the query (1 or 2).
    """
    group, num_tables = query_HQD.shape[0] // key_GKE.shape[0], key_codes_GKT.shape[-1]
    asked_HQE = torch.nn.functional.pad(torch.nn.functional.normalize(query_HQD, dim=-1), (0, 1))
    codes_HQT = table_codes(asked_HQE, directions, bits)
    key_HKE, key_codes_HKT = (part.repeat_interleave(group, dim=0) for part in (key_GKE, key_codes_GKT))
    agreeing_HQK = torch.zeros(codes_HQT.shape[:2] + key_HKE.shape[1:2], dtype=torch.int16, device=query_HQD.device)
    for table in range(num_tables):  # all of them at once would be tables times as much memory
        agreeing_HQK += codes_HQT[:, :, None, table] == key_codes_HKT[:, None, :, table]
    probability_HQK = collision_probability(asked_HQE @ key_HKE.mT, bits, num_tables, shared)
    return torch.where(agreeing_HQK >= shared, probability_HQK, 0.0)


def adaptive(
    scores_HQK: Float[Tensor, "heads queries keys"],
    chosen_HQK: Bool[Tensor, "heads queries keys"],
    free_HQK: Bool[Tensor, "heads queries keys"],
    draws_2HQK: Float[Tensor, "two heads queries keys"],
    *,
    base: float,
    epsilon: float,
    quantile: float,
) -> Float[Tensor, "heads queries keys"]:
    """Free keys without replacement, as many as keep the denominator's relative error within epsilon.

        n = (quantile sigma R / (epsilon D))^2 within [b, R]

    R free keys, of which b are looked at first: sigma is the standard deviation of their exp(s - max), D the chosen
    keys' exact sum and R / b times theirs. The n keys are drawn anew, m = n / R. Where n is R, all are taken.

    Args:
        scores_HQK: of all keys that are seen, -inf for others.
        chosen_HQK: keys that are in the support already.
        free_HQK: the others that are seen.
        draws_2HQK: from U(0, 1), for both drawings.
        base: share of the free keys that is looked at first, at least two.
        epsilon: relative error.
        quantile: of the normal distribution at 1 - delta.
    """
    weights_HQK = (scores_HQK - scores_HQK.amax(dim=-1, keepdim=True)).exp()
    num_free_HQ = free_HQK.sum(dim=-1)
    base_HQ = (base * num_free_HQ).ceil().long().clamp(min=2).minimum(num_free_HQ)
    looked_HQK = top_k(draws_2HQK[0], free_HQK, base_HQ)
    sums_HQ = (weights_HQK * looked_HQK).sum(dim=-1)
    mean_HQ = sums_HQ / base_HQ.clamp(min=1)
    squares_HQ = ((weights_HQK - mean_HQ[..., None]).square() * looked_HQK).sum(dim=-1)
    sigma_HQ = (squares_HQ / (base_HQ - 1).clamp(min=1)).sqrt()
    total_HQ = (weights_HQK * chosen_HQK).sum(dim=-1) + mean_HQ * num_free_HQ
    wanted_HQ = (quantile * sigma_HQ * num_free_HQ / (epsilon * total_HQ).clamp(min=1e-30)).square()
    num_HQ = wanted_HQ.clamp(max=2**30).ceil().long().maximum(base_HQ).minimum(num_free_HQ)
    drawn_HQK = top_k(draws_2HQK[1], free_HQK, num_HQ)
    rate_HQ = num_HQ / num_free_HQ.clamp(min=1)
    return torch.where(drawn_HQK, rate_HQ[..., None].to(scores_HQK.dtype), 0.0)
