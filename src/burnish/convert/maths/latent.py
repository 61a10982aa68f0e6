"""The latent that keys and values share: the best matrix of rank r, and the norm that DeepSeek puts on it.

Let y = W x stack what is left of the keys (without the pairs that turn) and the values, with second moment S = E[y y^T]
over the tokens that matter, and let R say how much an error of y costs, E |dy|_R^2 = tr(R E[dy dy^T]). Then

    min over rank r of E |R^(1/2) (W - V) x|^2        is        V = R^(-1/2) E E^T R^(1/2) W

with E the first r eigenvectors of R^(1/2) S R^(1/2), and the minimum is the sum of the other eigenvalues. Neither the
second moment of the inputs nor its inverse is needed. R = 1 is the principal components of the outputs (CARE, and
TransMLA without its balance); a block of 1/s^2 each for keys and values is TransMLA's balance.

What attention does with an error gives R. With the probabilities a,

    E |d o|^2 = sum a^2 |d s|^2 |W_o (v - o)|^2        for keys, whose error changes scores by d s = q . d k / sqrt(h),
    E |d o|^2 = sum a^2 |W_o d v|^2                    for values,

to first order, for errors that are independent between tokens. So tokens count by the sum of a^2 over the queries that
look at them, R_K = sum over heads of b E[q q^T] / h with b = E[a^2 |W_o (v - o)|^2], and R_V = sum of a W_o^T W_o with
a = E[a^2].

Sources: CARE (2026, arXiv:2603.17946); the weights of attention are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

SMALLEST = 1e-10
"""Eigenvalues of R are no less than so many times their mean: what costs nothing is kept last, but at full rank."""


class Latent(NamedTuple):
    """y ~ up (down y). `spectrum` holds the eigenvalues, largest first; their tail beyond the rank is the error."""

    down: Float64[Tensor, "rank outputs"]
    up: Float64[Tensor, "outputs rank"]
    spectrum: Float64[Tensor, " outputs"]


def factorise(
    moment: Float64[Tensor, "outputs outputs"], cost: Float64[Tensor, "outputs outputs"], rank: int
) -> Latent:
    """The best map of rank `rank` of the outputs onto themselves, for E |dy|_R^2.

    Args:
        moment: S, the second moment of the outputs.
        cost: R, of an error.
        rank: of the result, no more than there are outputs.
    """
    root, inverse = roots(cost)
    values, vectors = torch.linalg.eigh(root @ moment @ root)
    first = vectors.flip(1)[:, :rank]
    return Latent(first.mT @ root, inverse @ first, values.flip(0).clamp(min=0))


def roots(
    cost: Float64[Tensor, "outputs outputs"],
) -> tuple[Float64[Tensor, "outputs outputs"], Float64[Tensor, "outputs outputs"]]:
    """R^(1/2) and R^(-1/2), with the smallest eigenvalues lifted to `SMALLEST`."""
    values, vectors = torch.linalg.eigh(cost)
    values = values.clamp(min=SMALLEST * float(values.mean().clamp(min=1e-300)))
    return vectors * values.sqrt() @ vectors.mT, vectors * values.rsqrt() @ vectors.mT


def output_error(
    applied: Float64[Tensor, "outputs outputs"],
    moment: Float64[Tensor, "outputs outputs"],
    cost: Float64[Tensor, "outputs outputs"],
) -> Float64[Tensor, ""]:
    """E |y - T y|_R^2, for any map T of the outputs."""
    change = torch.eye(len(moment), dtype=moment.dtype) - applied
    return torch.trace(cost @ change @ moment @ change.mT)


# -- what an error costs -------------------------------------------------------------------------------------------


def key_cost(
    queries: Float64[Tensor, "heads width width"], weights: Float64[Tensor, " heads"], num_key_value_heads: int
) -> Float64[Tensor, "keys keys"]:
    """sum of b E[q q^T] / h over the query heads of each key head, which are after each other; one block per key head.

    Args:
        queries: second moment of every head's query, as it will meet the keys.
        weights: b of every head.
        num_key_value_heads: number of blocks.
    """
    weighted = weights[:, None, None] * queries / queries.shape[-1]
    return torch.block_diag(*weighted.view(num_key_value_heads, -1, *queries.shape[1:]).sum(1))


def value_cost(
    outputs: Float64[Tensor, "heads hidden width"], weights: Float64[Tensor, " heads"], num_key_value_heads: int
) -> Float64[Tensor, "values values"]:
    """sum of a W_o^T W_o over the query heads of each value head; one block per value head."""
    weighted = weights[:, None, None] * (outputs.mT @ outputs)
    return torch.block_diag(*weighted.view(num_key_value_heads, -1, *weighted.shape[1:]).sum(1))


def balanced_cost(moment: Float64[Tensor, "outputs outputs"], num_keys: int) -> Float64[Tensor, "outputs outputs"]:
    """TransMLA's balance: keys and values have the same energy in all."""
    energy = moment.diagonal()
    keys, values = energy[:num_keys].sum().clamp(min=1e-300), energy[num_keys:].sum().clamp(min=1e-300)
    return torch.cat([(1 / keys).expand(num_keys), (1 / values).expand(len(energy) - num_keys)]).diag()


@dataclass
class AttentionSums:
    """Sums over some windows of what attention does with the tokens.

    Attributes:
        squares: sum of a^2, for every query head.
        leverage: sum of a^2 |W_o (v - o)|^2.
        distances: sum of a at each distance, the first token of a window left out: what looks there looks nowhere.
        seen: sum of a^2 over query heads and queries, for every token.
        output: sum of |W_o o|^2, over all heads together.
    """

    squares: Float[Tensor, " heads"]
    leverage: Float[Tensor, " heads"]
    distances: Float[Tensor, "heads length"]
    seen: Float[Tensor, "windows length"]
    output: Float[Tensor, ""]


def attention_sums(
    queries: Float[Tensor, "windows heads length width"],
    keys: Float[Tensor, "windows heads length width"],
    values: Float[Tensor, "windows heads length width"],
    outputs: Float[Tensor, "heads hidden width"],
) -> AttentionSums:
    """Sums over causal attention.

    Args:
        queries, keys: turned; keys and values repeated for every query head.
        values: of every query head.
        outputs: W_o of every query head.
    """
    windows, heads, length, width = queries.shape
    gram = outputs.mT @ outputs
    future = torch.ones(length, length, dtype=torch.bool, device=queries.device).triu(1)
    place = torch.arange(length, device=queries.device)
    apart = (place[:, None] - place).clamp(min=0).flatten()
    total = AttentionSums(
        queries.new_zeros(heads),
        queries.new_zeros(heads),
        queries.new_zeros(heads, length),
        queries.new_zeros(windows, length),
        queries.new_zeros(()),
    )
    for window in range(windows):
        scores = queries[window] @ keys[window].mT / width**0.5
        probabilities = scores.masked_fill_(future, -torch.inf).softmax(-1)
        squares = probabilities.square()
        mixed = probabilities @ values[window]
        size_of_value = torch.einsum("hti,hij,htj->ht", values[window], gram, values[window])
        size_of_mixed = torch.einsum("hti,hij,htj->ht", mixed, gram, mixed)
        cross = mixed @ gram @ values[window].mT
        away = size_of_mixed[:, :, None] - 2 * cross + size_of_value[:, None]
        total.squares += squares.sum((1, 2))
        total.leverage += (squares * away).sum((1, 2))
        total.seen[window] = squares.sum((0, 1))
        probabilities[:, :, 0] = 0
        total.distances.index_add_(1, apart, probabilities.flatten(1))
        total.output += torch.einsum("hti,hoi->to", mixed, outputs).square().sum()
    return total


# -- the norm ------------------------------------------------------------------------------------------------------


def near_constant(
    moment: Float64[Tensor, "inputs inputs"], mean: Float64[Tensor, " inputs"], ridge: float
) -> Float64[Tensor, " inputs"]:
    """w with w . x near to 1 for all inputs: (C + ridge mean(diag C) I)^-1 E[x], the least squares of w . x - 1."""
    damping = ridge * moment.diagonal().mean()
    return torch.linalg.solve(moment + damping * torch.eye(len(moment), dtype=moment.dtype), mean)
