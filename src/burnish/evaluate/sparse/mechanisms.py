"""What every mechanism chooses for the queries of a layer, as inclusion weights of keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.evaluate.maths import drawing, selection
from burnish.evaluate.sparse.spec import (
    Adaptive,
    DoubleSparsity,
    LocalWindow,
    MagicPig,
    Mechanism,
    Quest,
    Random,
    Sink,
    SnapKV,
    TopK,
    TopP,
)


@dataclass
class LayerMemory:
    """What a layer keeps of a prompt, and of the model.

    Attributes:
        channels_GR: Double Sparsity's, by `burnish.evaluate.sparse.channels`.
        centre_GD, longest_G: MagicPIG's mean of the context's keys, and the largest distance of one from it.
        kept_GK: SnapKV's keys of the context; None of a prompt without one.
    """

    channels_GR: Int[Tensor, "kv_heads num"] | None = None
    centre_GD: Float[Tensor, "kv_heads width"] | None = None
    longest_G: Float[Tensor, " kv_heads"] | None = None
    kept_GK: Bool[Tensor, "kv_heads context"] | None = None

    def forget(self) -> None:
        """The prompt; channels stay."""
        self.centre_GD = self.longest_G = self.kept_GK = None


@dataclass(frozen=True)
class Queries:
    """Queries of one layer, and the keys before them.

    Attributes:
        query_HQD, key_GKD: as attention gets them, in float32.
        scores_HQK: their scaled products, -inf for keys behind a query.
        seen_QK: keys that are not.
        positions_Q: the key at which each query stands.
        context: keys of the context, which was read before the first of these queries.
        layer: its number.
        seed: of what is drawn.
    """

    query_HQD: Float[Tensor, "heads queries width"]
    key_GKD: Float[Tensor, "kv_heads keys width"]
    scores_HQK: Float[Tensor, "heads queries keys"]
    seen_QK: Bool[Tensor, "queries keys"]
    positions_Q: Int[Tensor, " queries"]
    context: int
    layer: int
    seed: int = 0

    def amounts(self, amount: float) -> Int[Tensor, "1 queries"]:
        """A number of keys for every query: a number as it is, up to 1 a share of what it sees, rounded up."""
        seen_Q = self.positions_Q + 1
        return (torch.full_like(seen_Q, int(amount)) if amount > 1 else (amount * seen_Q).ceil().long())[None]

    def draws(self, num: int) -> Float[Tensor, "num heads queries keys"]:
        """U(0, 1) for every query, head and key: the same for a query whichever others are asked beside it."""
        num_keys, heads = self.key_GKD.shape[1], self.query_HQD.shape[0]
        found = np.ones((num, heads, len(self.positions_Q), num_keys), dtype=np.float32)
        for place, position in enumerate(self.positions_Q.tolist()):
            rng = np.random.default_rng((self.seed, self.layer, position))
            found[:, :, place, : position + 1] = rng.random((num, heads, position + 1), dtype=np.float32)
        return torch.from_numpy(found).to(self.query_HQD.device)


def inclusion(
    parts: Mapping[str, Mechanism], asked: Queries, memory: LayerMemory
) -> Float[Tensor, "heads queries keys"]:
    """The weights that the parts give together, each among the keys that those before it have left."""
    chosen_HQK = torch.zeros_like(asked.scores_HQK, dtype=torch.bool)
    drawn_HQK = torch.zeros_like(asked.scores_HQK)
    for part in parts.values():
        free_HQK = asked.seen_QK & ~chosen_HQK
        if part.kind == "draws":  # stands last
            drawn_HQK = _drawn(part, asked, memory, chosen_HQK, free_HQK)
        else:
            chosen_HQK = chosen_HQK | _chosen(part, asked, memory, free_HQK)
    return torch.where(chosen_HQK, 1.0, drawn_HQK)


def _chosen(part: Mechanism, asked: Queries, memory: LayerMemory, free_HQK: Tensor) -> Tensor:
    num_keys, group = asked.key_GKD.shape[1], asked.query_HQD.shape[0] // asked.key_GKD.shape[0]
    match part:
        case Sink(amount=num):
            return selection.sinks(asked.positions_Q, num_keys, num)
        case LocalWindow(amount=window):
            return selection.local(asked.positions_Q, num_keys, window)
        case TopK(amount=amount):
            return selection.top_k(asked.scores_HQK, free_HQK, asked.amounts(amount))
        case TopP(amount=share):
            return selection.top_p(asked.scores_HQK, free_HQK, share)
        case Quest(amount=amount, page=page):
            bounds_HQP = selection.page_bounds(asked.query_HQD, asked.key_GKD, asked.positions_Q, page)
            return selection.quest(bounds_HQP, free_HQK, asked.amounts(amount), page)
        case DoubleSparsity(amount=amount, bits=bits):
            assert memory.channels_GR is not None, "measured before the first prompt"
            labels_HQK = selection.label_scores(asked.query_HQD, asked.key_GKD, memory.channels_GR, bits)
            return selection.top_k(labels_HQK, free_HQK, asked.amounts(amount))
        case SnapKV():
            if memory.kept_GK is None:  # there was no context to leave anything out of
                return asked.seen_QK.expand_as(asked.scores_HQK)
            behind = num_keys - memory.kept_GK.shape[1]
            stays_GK = torch.nn.functional.pad(memory.kept_GK, (0, behind), value=True)
            return stays_GK.repeat_interleave(group, dim=0)[:, None] & asked.seen_QK
    raise AssertionError(f"{type(part).__name__} chooses nothing")


def _drawn(part: Mechanism, asked: Queries, memory: LayerMemory, chosen_HQK: Tensor, free_HQK: Tensor) -> Tensor:
    match part:
        case Random(amount=rate):
            return drawing.uniform(asked.draws(1)[0], free_HQK, rate)
        case Adaptive(amount=epsilon, delta=delta, base=base):
            return drawing.adaptive(
                asked.scores_HQK,
                chosen_HQK,
                free_HQK,
                asked.draws(2),
                base=base,
                epsilon=epsilon,
                quantile=NormalDist().inv_cdf(1 - delta),
            )
        case MagicPig(amount=tables, bits=bits, shared=shared):
            return torch.where(free_HQK, _magicpig(asked, memory, tables, bits, shared), 0.0)
    raise AssertionError(f"{type(part).__name__} draws nothing")


def _magicpig(asked: Queries, memory: LayerMemory, tables: int, bits: int, shared: int) -> Tensor:
    if memory.centre_GD is None or memory.longest_G is None:
        context_GKD = asked.key_GKD[:, : max(1, asked.context)]
        memory.centre_GD = context_GKD.mean(dim=1)
        memory.longest_G = (context_GKD - memory.centre_GD[:, None]).norm(dim=-1).amax(dim=1).clamp(min=1e-30)
    rng = np.random.default_rng((asked.seed, asked.layer))
    drawn = rng.standard_normal((asked.key_GKD.shape[-1] + 1, tables * bits), dtype=np.float32)
    directions = torch.from_numpy(drawn).to(asked.key_GKD.device)
    keys_GKE = drawing.augmented_keys(asked.key_GKD, memory.centre_GD, memory.longest_G)
    codes_GKT = drawing.table_codes(keys_GKE, directions, bits)
    return drawing.magicpig(asked.query_HQD, keys_GKE, codes_GKT, directions, bits, shared)


def evict(part: SnapKV, last_HWD: Tensor, key_GKD: Tensor, scaling: float, memory: LayerMemory) -> None:
    """Keeps SnapKV's keys of a context.

    Args:
        part: how many.
        last_HWD: the last queries of the context.
        key_GKD: all keys of the context.
        scaling: of their products.
        memory: of the layer, which gets them.
    """
    num_keys, group = key_GKD.shape[1], last_HWD.shape[0] // key_GKD.shape[0]
    positions_W = torch.arange(num_keys - last_HWD.shape[1], num_keys, device=key_GKD.device)
    scores_HWK = scaling * last_HWD @ key_GKD.repeat_interleave(group, dim=0).mT
    scores_HWK = scores_HWK.masked_fill(~selection.seen(positions_W, num_keys), -torch.inf)
    num = int(part.amount) if part.amount > 1 else math.ceil(part.amount * num_keys)
    memory.kept_GK = selection.snapkv(scores_HWK, key_GKD.shape[0], num, part.pool)


def index_bytes(
    parts: Mapping[str, Mechanism], num_seen: float, heads: int, kv_heads: int, width: int, size: int
) -> float:
    """Bytes that the mechanisms read of one layer beside keys and values, to find the keys of one query.

    Args:
        parts: of the mechanism.
        num_seen: keys that the query sees.
        heads, kv_heads, width: of the layer.
        size: bytes of an entry of a key.
    """
    found = 0.0
    for part in parts.values():
        match part:
            case TopK() | TopP():  # all scores: all keys
                found += kv_heads * num_seen * width * size
            case Quest(page=page):  # smallest and largest entries
                found += kv_heads * math.ceil(num_seen / page) * 2 * width * size
            case DoubleSparsity(channels=channels, bits=bits):  # steps with their size and beginning
                found += kv_heads * num_seen * (channels * bits / 8 + 2 * size)
            case MagicPig(amount=tables, bits=bits):
                found += kv_heads * num_seen * tables * bits / 8
            case Adaptive(base=base):  # the keys that are looked at first, by every query head for itself
                found += heads * math.ceil(base * num_seen) * width * size
            case _:
                pass
    return found
