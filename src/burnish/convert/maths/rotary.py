"""Which pairs of key channels keep their rotary embedding, and what is lost with the others.

Two channels of a key that rotate together are one complex number: k turns by exp(i w t) at position t, and a query q at
a distance D meets it in the score as Re(conj(q) k exp(-i w D)). The keys of all heads are one vector of P pairs. Latent
attention keeps s of them turning, in slots that all query heads share, and the others stand still:

    k = U z + (I - U Z) k,    z = Z k    (s slots, turned),    the rest (not turned).

A slot mixes pairs of one frequency with complex factors, which commute with the rotation, so what is in a slot is
exact. A pair of frequency w in a slot of frequency v (v = 0: the rest) meets queries that are multiplied by the mean
c = E exp(i (w - v) D) over the distances that attention looks at; the best constant. What is lost of its energy is
1 - |c|^2, so that low frequencies are nearly free to stand still, and near frequencies can share a slot's.

Sources: TransMLA (2025, arXiv:2502.07864) for RoRoPE and FreqFold, which mix with real factors and take the first
direction of every frequency. Complex factors, the query's energy as a weight, the choice among all pairs and the mean
rotation are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Complex128, Float64, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

FLOOR = 1e-12
"""Of the largest query energy: pairs that no query looks at are weighted by so much."""


@dataclass(frozen=True)
class Directions:
    """Combinations of key pairs; D U = I, so that U D is a projection.

    Attributes:
        down, up: D and U.
        energy: of each, E|q|^2 |k|^2 as the weights say.
        frequency: number of the frequency that each belongs to.
    """

    down: Complex128[Tensor, "kept pairs"]
    up: Complex128[Tensor, "pairs kept"]
    energy: Float64[Tensor, " kept"]
    frequency: Int[Tensor, " kept"]

    def take(self, which: Int[Tensor, " some"]) -> Directions:
        """Some of them, in that order."""
        return Directions(self.down[which], self.up[:, which], self.energy[which], self.frequency[which])


# -- channels and pairs --------------------------------------------------------------------------------------------


def as_pairs(rows: Float64[Tensor, "channels d"], num_heads: int) -> Complex128[Tensor, "pairs d"]:
    """Rows of a projection (heads after each other, each in two halves) as complex ones."""
    halves = rows.view(num_heads, 2, -1, rows.shape[-1])
    return torch.complex(halves[:, 0], halves[:, 1]).flatten(0, 1)


def as_channels(pairs: Complex128[Tensor, "pairs d"], num_heads: int) -> Float64[Tensor, "channels d"]:
    """The inverse of `as_pairs`."""
    by_head = pairs.view(num_heads, 1, -1, pairs.shape[-1])
    return torch.cat([by_head.real, by_head.imag], 1).flatten(0, 2)


def interleaved(pairs: Complex128[Tensor, "*heads kept d"]) -> Float64[Tensor, "*heads channels d"]:
    """Complex rows as real ones, each real part before its imaginary part: the order of DeepSeek's rotary channels."""
    return torch.stack([pairs.real, pairs.imag], -2).flatten(-3, -2)


def pair_moment(moment: Float64[Tensor, "channels channels"], num_heads: int) -> Complex128[Tensor, "pairs pairs"]:
    """E[k k^H] of complex keys, from the second moment of their channels."""
    half = moment.shape[0] // num_heads // 2
    parts = moment.view(num_heads, 2, half, num_heads, 2, half)
    real = parts[:, 0, :, :, 0] + parts[:, 1, :, :, 1]
    imaginary = parts[:, 1, :, :, 0] - parts[:, 0, :, :, 1]
    return torch.complex(real, imaginary).reshape(num_heads * half, num_heads * half)


# -- rotations -----------------------------------------------------------------------------------------------------


def mean_rotation(
    distances: Float64[Tensor, "*heads reach"], frequencies: Float64[Tensor, "*more"]
) -> Complex128[Tensor, "*heads_and_more"]:
    """E exp(i w D), for every head and frequency: shape (*heads, *more).

    Args:
        distances: how much attention is paid at the distances 0, 1, ...; any positive scale.
        frequencies: in radians per position.
    """
    angles = frequencies.flatten()[None] * torch.arange(distances.shape[-1], dtype=torch.float64)[:, None]
    shares = distances / distances.sum(-1, keepdim=True)
    means = torch.complex(shares @ angles.cos(), shares @ angles.sin())
    return means.view(*distances.shape[:-1], *frequencies.shape)


def lost_share(
    distances: Float64[Tensor, " reach"], frequencies: Float64[Tensor, " n"], slots: Float64[Tensor, " m"]
) -> Float64[Tensor, "n m"]:
    """1 - |E exp(i (w - v) D)|^2: what a pair of frequency w loses in a slot of frequency v."""
    return 1 - mean_rotation(distances, frequencies[:, None] - slots[None]).abs().square()


# -- directions ----------------------------------------------------------------------------------------------------


def directions(
    keys: Complex128[Tensor, "pairs pairs"], query_energy: Float64[Tensor, " pairs"], num_frequencies: int
) -> Directions:
    """Every frequency's pairs in the directions that hold the most of E|q|^2 |k|^2, strongest first.

    With the weights S^2 = E|q|^2 the eigenvectors V of S E[k k^H] S give D = V^H S and U = S^-1 V. Real moments give
    real directions, weights of one the principal components of the keys alone.

    Args:
        keys: second moment of the pairs, head by head.
        query_energy: of the queries that look at each pair.
        num_frequencies: pairs of a head.
    """
    num_pairs = len(keys)
    scale = query_energy.clamp(min=FLOOR * float(query_energy.max().clamp(min=1e-300))).sqrt()
    down = keys.new_zeros(num_pairs, num_pairs)
    up, energy = down.clone(), scale.new_zeros(num_pairs)
    num_heads = num_pairs // num_frequencies
    for number in range(num_frequencies):
        own = torch.arange(num_heads) * num_frequencies + number
        weighted = scale[own, None] * keys[own][:, own] * scale[own]
        values, vectors = torch.linalg.eigh(weighted)
        values, vectors = values.flip(0), vectors.flip(1)
        rows = torch.arange(num_heads) + number * num_heads
        energy[rows] = values.clamp(min=0)
        down[rows[:, None], own] = vectors.mH * scale[own]
        up[own[:, None], rows] = vectors / scale[own, None]
    return Directions(down, up, energy, torch.arange(num_frequencies).repeat_interleave(num_heads))


def folded(
    keys: Complex128[Tensor, "pairs pairs"],
    query_energy: Float64[Tensor, " pairs"],
    num_frequencies: int,
    *,
    num_slots: int,
    fold: int,
) -> tuple[Directions, Int[Tensor, " kept"]]:
    """FreqFold: `fold` neighbouring frequencies pooled, as if they turned alike; with one, RoRoPE.

    Of a pool as many first directions are kept as slots fall into it. Slots are every c-th frequency, for
    c = num_frequencies / num_slots, and a pool has no less than c frequencies.

    Returns:
        The directions kept, in the order of the slots, and the number of the frequency of every slot.
    """
    collapse = num_frequencies // num_slots
    fold = max(fold, collapse)
    num_heads = len(keys) // num_frequencies
    pooled = (torch.arange(num_frequencies // fold)[:, None] * fold + torch.arange(fold)).flatten()
    # A pool of `fold` frequencies is one frequency of so many more heads.
    order = (torch.arange(num_heads)[:, None] * num_frequencies + pooled).view(num_heads, -1, fold)
    order = order.permute(0, 2, 1).reshape(-1)
    inside = directions(keys[order][:, order], query_energy[order], num_frequencies // fold)
    per_pool = fold // collapse
    first = torch.arange(num_frequencies // fold)[:, None] * num_heads * fold + torch.arange(per_pool)
    kept = inside.take(first.flatten())
    down, up = torch.zeros_like(kept.down), torch.zeros_like(kept.up)
    down[:, order], up[order] = kept.down, kept.up
    slots = torch.arange(num_slots) * collapse
    return Directions(down, up, kept.energy, slots), slots


# -- slots ---------------------------------------------------------------------------------------------------------


def kept_everywhere(
    gains: Float64[Tensor, "layers frequencies directions"], num_slots: int
) -> Int[Tensor, " num_slots"]:
    """The numbers of frequencies, repeated ones included, that are worth the most to all layers together, ascending.

    A checkpoint has one list of frequencies. Of a frequency that is in it j times every layer keeps its j best
    directions, so the j-th place is worth the sum of the j-th gains; those fall with j, and the largest sums are the
    optimum.

    Args:
        gains: of every layer and frequency, by direction in descending order.
        num_slots: length of the list.
    """
    worth = gains.sort(-1, descending=True).values.sum(0)
    best = worth.flatten().argsort(descending=True, stable=True)[:num_slots]
    return (best // worth.shape[1]).sort().values


def assign(
    found: Directions,
    frequencies: Float64[Tensor, " num_frequencies"],
    slots: Float64[Tensor, " num_slots"],
    distances: Float64[Tensor, " reach"],
) -> tuple[Directions, Float64[Tensor, ""]]:
    """The directions that lose the least in these slots, one in each, and the energy that all directions lose.

    Args:
        found: all directions of a layer.
        frequencies: of the model.
        slots: frequencies to fill, no more than there are directions.
        distances: how much attention is paid at each.
    """
    standing = lost_share(distances, frequencies, slots.new_zeros(1))[found.frequency, 0]
    turning = lost_share(distances, frequencies, slots)[found.frequency]
    saved = found.energy[:, None] * (standing[:, None] - turning)
    rows, columns = linear_sum_assignment(saved.numpy(), maximize=True)
    which = torch.as_tensor(rows)[torch.as_tensor(columns).argsort()]
    lost = (found.energy * standing).sum() - saved[rows, columns].sum()
    return found.take(which), lost


def grid(base: float, num_slots: int) -> Float64[Tensor, " num_slots"]:
    """base^(-j / num_slots), the frequencies that every engine can compute from one number."""
    return base ** (-torch.arange(num_slots, dtype=torch.float64) / num_slots)


# -- projections ---------------------------------------------------------------------------------------------------


def standing_keys(kept: Directions, num_heads: int) -> Float64[Tensor, "channels channels"]:
    """I - U D on channels instead of pairs: what is left of keys beside the slots."""
    rest = torch.eye(len(kept.up), dtype=torch.complex128) - kept.up @ kept.down
    # A complex number a + ib multiplies channels as [[a, -b], [b, a]].
    as_map = torch.cat([torch.cat([rest.real, -rest.imag], 1), torch.cat([rest.imag, rest.real], 1)])
    half = len(rest) // num_heads
    order = (torch.arange(num_heads)[:, None, None] * half + torch.arange(half)).expand(-1, 2, -1)
    order = (order + torch.tensor([0, len(rest)])[:, None]).flatten()
    return as_map[order][:, order]


def turned_queries(
    queries: Complex128[Tensor, "heads half d"],
    kept: Directions,
    rotations: Complex128[Tensor, "heads frequencies slots"],
) -> Complex128[Tensor, "heads slots d"]:
    """What every query head has to meet the slots with: U^H q, each pair times its mean rotation against the slot.

    Args:
        queries: rows of the query projection, as pairs.
        kept: what is in the slots.
        rotations: E exp(i (w - v) D); ones where a slot has the frequency of its pairs.
    """
    num_heads, half, _ = queries.shape
    groups = kept.up.view(-1, half, kept.up.shape[1]).conj()
    per_head = groups.repeat_interleave(num_heads // len(groups), 0) * rotations
    return per_head.mT @ queries


def extended(distances: Float64[Tensor, "heads length"], reach: int) -> Float64[Tensor, "heads reach"]:
    """Attention at distances beyond those that were seen: as much at each as in the last quarter of what was seen."""
    length = distances.shape[1]
    tail = distances[:, length - max(length // 4, 1) :].mean(1, keepdim=True)
    return torch.cat([distances, tail.expand(-1, max(reach - length, 0))], 1)
