"""Which keys a query looks at, by rules that draw nothing.

Query i stands at key `positions[i]` and sees the keys up to itself. A rule chooses among the keys that are still free:
seen, and not chosen by a rule before it. Suffixes: H query heads, G heads of keys, Q queries, K keys, P pages, D width;
query heads h·H/G ... share head h of keys.

    sink, local      the first keys, and the last ones
    top-k, top-p     by the scores themselves: bounds of what any rule can reach, not ways to save
    Quest            by a bound of each page's scores (2024, arXiv:2406.10774)
    Double Sparsity  by scores over a few channels of few bits (2024, arXiv:2408.07092)
    SnapKV           once for all later queries, by the attention of the last ones of a prompt (2024, arXiv:2404.14469)
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def seen(positions_Q: Int[Tensor, " queries"], num_keys: int) -> Bool[Tensor, "queries keys"]:
    """Keys up to the query itself."""
    return torch.arange(num_keys, device=positions_Q.device) <= positions_Q[:, None]


def sinks(positions_Q: Int[Tensor, " queries"], num_keys: int, num: int) -> Bool[Tensor, "queries keys"]:
    """The first `num` keys, of those that are seen."""
    return seen(positions_Q, num_keys) & (torch.arange(num_keys, device=positions_Q.device) < num)


def local(positions_Q: Int[Tensor, " queries"], num_keys: int, window: int) -> Bool[Tensor, "queries keys"]:
    """The query's own key and `window` - 1 before it."""
    behind_QK = positions_Q[:, None] - torch.arange(num_keys, device=positions_Q.device)
    return (behind_QK >= 0) & (behind_QK < window)


def top_k(
    scores_HQK: Float[Tensor, "heads queries keys"],
    free_HQK: Bool[Tensor, "heads queries keys"],
    num: Int[Tensor, "#heads #queries"],
) -> Bool[Tensor, "heads queries keys"]:
    """The `num` largest scores among the free keys, all of them where fewer are free; of equal ones the first."""
    order_HQK = scores_HQK.masked_fill(~free_HQK, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    first_QK = torch.arange(scores_HQK.shape[-1], device=scores_HQK.device) < num[..., None]
    chosen_HQK = torch.zeros_like(free_HQK).scatter(-1, order_HQK, first_QK.expand_as(free_HQK))
    return chosen_HQK & free_HQK


def top_p(
    scores_HQK: Float[Tensor, "heads queries keys"], free_HQK: Bool[Tensor, "heads queries keys"], share: float
) -> Bool[Tensor, "heads queries keys"]:
    """The fewest free keys that hold `share` of the softmax over the free keys; all of them with a share of 1."""
    if share >= 1:
        return free_HQK
    masses_HQK = scores_HQK.masked_fill(~free_HQK, -torch.inf).softmax(dim=-1).nan_to_num(0.0)  # none are free
    ordered = masses_HQK.sort(dim=-1, descending=True, stable=True)
    before_HQK = ordered.values.cumsum(dim=-1) - ordered.values
    return torch.zeros_like(free_HQK).scatter(-1, ordered.indices, before_HQK < share) & free_HQK


def page_bounds(
    query_HQD: Float[Tensor, "heads queries width"],
    key_GKD: Float[Tensor, "kv_heads keys width"],
    positions_Q: Int[Tensor, " queries"],
    page: int,
) -> Float[Tensor, "heads queries pages"]:
    """Quest's bound of a page, Σ_d max(q_d min_d, q_d max_d) over the smallest and largest key of each channel.

    No product of the query with a key that it sees there is above it. -inf for pages that it does not see.
    """
    num_pages = -(-key_GKD.shape[1] // page)
    padded = torch.nn.functional.pad(key_GKD.mT, (0, num_pages * page - key_GKD.shape[1]), mode="replicate").mT
    pages_GPLD = padded.unflatten(1, (num_pages, page))
    # Running bounds, for a query inside a page has not seen the rest of it.
    low_GPLD, high_GPLD = pages_GPLD.cummin(dim=2).values, pages_GPLD.cummax(dim=2).values
    group = query_HQD.shape[0] // key_GKD.shape[0]
    up_HQD, down_HQD = query_HQD.clamp(min=0), query_HQD.clamp(max=0)
    low_HPD, high_HPD = (part[:, :, -1].repeat_interleave(group, dim=0) for part in (low_GPLD, high_GPLD))
    bounds_HQP = up_HQD @ high_HPD.mT + down_HQD @ low_HPD.mT
    own_Q = positions_Q // page
    within = (slice(None), own_Q, positions_Q % page)
    low_HQD, high_HQD = (part[within].repeat_interleave(group, dim=0) for part in (low_GPLD, high_GPLD))
    own_HQ1 = (up_HQD * high_HQD + down_HQD * low_HQD).sum(dim=-1, keepdim=True)
    place_QP = torch.arange(num_pages, device=own_Q.device) - own_Q[:, None]
    return torch.where(place_QP == 0, own_HQ1, bounds_HQP).masked_fill(place_QP > 0, -torch.inf)


def quest(
    bounds_HQP: Float[Tensor, "heads queries pages"],
    free_HQK: Bool[Tensor, "heads queries keys"],
    num: Int[Tensor, "#heads #queries"],
    page: int,
) -> Bool[Tensor, "heads queries keys"]:
    """Free keys of the ceil(num / page) pages with the largest bounds, of the pages with a free key."""
    num_pages, num_keys = bounds_HQP.shape[-1], free_HQK.shape[-1]
    padded = torch.nn.functional.pad(free_HQK, (0, num_pages * page - num_keys))
    open_HQP = padded.unflatten(-1, (num_pages, page)).any(dim=-1)
    pages_HQP = top_k(bounds_HQP, open_HQP, -(-num // page))
    return pages_HQP.repeat_interleave(page, dim=-1)[..., :num_keys] & free_HQK


def heavy_channels(
    query_norms_HD: Float[Tensor, "heads width"], key_norms_GD: Float[Tensor, "kv_heads width"], num: int
) -> Int[Tensor, "kv_heads num"]:
    """Double Sparsity's channels of each head of keys: the largest products of both sides' mean magnitudes.

    Keys are labelled once, so that the query heads that share them are averaged.
    """
    shared_GD = query_norms_HD.unflatten(0, (key_norms_GD.shape[0], -1)).mean(dim=1)
    return (shared_GD * key_norms_GD).topk(num, dim=-1).indices


def quantised(vectors: Float[Tensor, "*each width"], bits: int) -> Float[Tensor, "*each width"]:
    """Each vector on 2^bits even steps from its smallest to its largest entry."""
    low, high = vectors.amin(dim=-1, keepdim=True), vectors.amax(dim=-1, keepdim=True)
    step = torch.where(high > low, (high - low) / (2**bits - 1), 1.0)
    return ((vectors - low) / step).round() * step + low


def label_scores(
    query_HQD: Float[Tensor, "heads queries width"],
    key_GKD: Float[Tensor, "kv_heads keys width"],
    channels_GR: Int[Tensor, "kv_heads num"],
    bits: int,
) -> Float[Tensor, "heads queries keys"]:
    """Products over the chosen channels alone, both sides quantised; their order is all that is used."""
    group = query_HQD.shape[0] // key_GKD.shape[0]
    labels_GKR = key_GKD.gather(2, channels_GR[:, None].expand(-1, key_GKD.shape[1], -1))
    channels_HR = channels_GR.repeat_interleave(group, dim=0)
    asked_HQR = query_HQD.gather(2, channels_HR[:, None].expand(-1, query_HQD.shape[1], -1))
    labels_HKR = quantised(labels_GKR, bits).repeat_interleave(group, dim=0)
    return quantised(asked_HQR, bits) @ labels_HKR.mT


def snapkv(
    scores_HWK: Float[Tensor, "heads window keys"], num_kv_heads: int, num: int, pool: int
) -> Bool[Tensor, "kv_heads keys"]:
    """The keys of a prompt that are kept: its last `window`, and those with the largest pooled attention before them.

        a_j = sum over the last queries and mean over the heads that share keys of softmax(scores)_j
        kept = the window, and the num - window keys with the largest mean of a over `pool` keys around them; where num
               is no larger than the window, its last keys

    Args:
        scores_HWK: of the last `window` queries on all keys of the prompt, later ones than the query at -inf.
        num_kv_heads: each is kept for itself.
        num: keys that are kept.
        pool: odd.
    """
    num_keys = scores_HWK.shape[2]
    window = min(scores_HWK.shape[1], num)
    masses_GK = scores_HWK.softmax(dim=-1).sum(dim=1).unflatten(0, (num_kv_heads, -1)).mean(dim=1)
    before = num_keys - window
    kept_GK = torch.ones(num_kv_heads, num_keys, dtype=torch.bool, device=scores_HWK.device)
    if num >= num_keys:
        return kept_GK
    pooled = torch.nn.functional.avg_pool1d(masses_GK[:, :before], pool, stride=1, padding=pool // 2)
    first = pooled.topk(num - window, dim=-1).indices
    kept_GK[:, :before] = torch.zeros_like(pooled, dtype=torch.bool).scatter(-1, first, True)
    return kept_GK
