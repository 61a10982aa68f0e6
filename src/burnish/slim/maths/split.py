"""Experts as pieces: several narrower experts in place of one, of which the best of a layer stay.

The neurons of an expert are shared out over P experts of a P-th of its width, best neurons first, that all have its
router row. A token that was sent to k experts and is sent to the kP pieces with the highest logits is sent to all
pieces of the same k experts, and the pieces of an expert add up to it:

    Σ_p W_down,p act(W_gate,p x) (W_up,p x) = W_down act(W_gate x) (W_up x)

so that nothing changes once the routing weights are what they were (`down_factor`). Then pieces may go, in a layer
whichever score least, and experts that matter more keep more of their neurons, though all experts of the model are of
one width.

With fewer pieces of some experts than of others the K best logits end inside an expert, among pieces with equal ones.
Which of those are chosen is then a matter of the implementation: the first ones in vLLM, others in torch. `tie_breaks`
makes the better pieces' logits larger by a little, along a direction u in which the router's inputs x are all alike,
u·x ≈ 1:

    row_p = row - r ε u,    r = 0, 1, ... the piece's rank in its expert

Ours; splitting experts in this way without dropping any is what MoE-fication and upcycling to finer experts do.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

TIE_BREAK = 2.0**-5
"""ε, in units of a router's logits: more than rounding to bfloat16 makes of logits up to 8, and 3 % of a weight."""


def in_pieces(scores: Float[Tensor, "experts width"], pieces: int) -> Int[Tensor, "experts pieces part"]:
    """Neurons of every piece, ascending; the sum of their scores falls from piece to piece.

    Args:
        scores: of neurons; higher is better.
        pieces: P, which divides the width.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    return order.view(len(scores), pieces, -1).sort(-1).values


def down_factor(weights: Literal["chosen", "all", "each"], before: tuple[int, int], after: tuple[int, int]) -> float:
    """What down projections of pieces are multiplied by for routing weights to be, on average, what they were.

    Where weights of the chosen experts add up to a constant, each of K pieces has k / K of what each of k experts had;
    where those of all experts do, each of N pieces has E / N of it; where each expert has a weight of its own, so has
    each piece. Exact where no piece is dropped and K = k N / E.

    Args:
        weights: over which experts they add up to a constant.
        before: E and k, experts of a layer and those that a token is sent to.
        after: N and K, the same of pieces.
    """
    (num_experts, top_k), (num_pieces, chosen) = before, after
    return {"chosen": chosen / top_k, "all": num_pieces / num_experts, "each": 1.0}[weights]


def dealt(chosen: Int[Tensor, "groups pieces"], hands: int) -> Int[Tensor, " all_pieces"]:
    """Every group of pieces dealt out to so many groups of equal size, one after the other.

    Where a router ranks groups by their two best experts, a group of pieces would be ranked by twice its best. So each
    group of experts becomes P groups, and pieces of one expert, which stand side by side, go to different ones: with
    nothing dropped all of these have the two best that the group had, and of P times as many groups as before, those
    of the same groups are chosen.
    """
    return chosen.unflatten(1, (-1, hands)).transpose(1, 2).flatten()


def common_direction(
    total: Float[Tensor, " hidden"], squares: Float[Tensor, " hidden"], num_tokens: int
) -> Float[Tensor, " hidden"]:
    """u with u·x = 1 for the mean of x, and as near to 1 elsewhere as it can be if features are uncorrelated.

    u = V⁻¹m / (mᵀV⁻¹m),   m = E x,  V = diag(Var x)

    Args:
        total, squares: Σ x and Σ x² over the tokens, features of a router's inputs.
        num_tokens: that were summed.
    """
    mean, second = total / num_tokens, squares / num_tokens
    variance = (second - mean.square()).clamp_min(1e-6 * second.mean())
    weighted = mean / variance
    along = mean @ weighted
    return weighted / along if along > 0 else torch.zeros_like(mean)


def tie_breaks(rank: Int[Tensor, " pieces"], direction: Float[Tensor, " hidden"]) -> Float[Tensor, "pieces hidden"]:
    """- r ε u, to be added to the router's rows."""
    return -TIE_BREAK * rank[:, None] * direction
