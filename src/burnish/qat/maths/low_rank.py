"""A weight as one of few levels and a product of low rank, by fitting both in turns.

    min over q, s, A, B of  || (W - q s - B A) S ||²      A (r, in), B (out, r); S = H^(1/2), H = E[x^T x], or S = 1

    B A <- SVD_r((W - q s) S) S^-1                          the best product for these levels, exactly
    q, s <- levels and scales of W - B A, row by row        kept where they lower the error of the row

so that no step raises the error. Levels are the nearest ones, and scales those with the smallest error for their
levels, each weighing inputs by the diagonal of H: with S = 1 that is the best for the other, else a candidate, which is
why rows are compared. With r = min(out, in) the product takes up all that levels leave.

Source: the alternation of LoftQ, 2023, arXiv:2310.08659, with the weighted decomposition of CorDA, 2024,
arXiv:2406.05223.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.qat.maths.few_levels import Levels, codes, stored_scale, values
from burnish.quantize.maths.low_rank import nearest_product

DAMPING = 1e-2
"""Multiple of the mean diagonal that is added to H, whose square root is inverted."""
ROUNDS = 5


@dataclass(frozen=True)
class LowRankFit:
    """What comes out.

    Attributes:
        scale: s.
        down, up: A and B, of equal sizes.
        errors: || (W - q s - B A) S ||² before the first round, and after every product and every rounding.
    """

    scale: Float[Tensor, "out groups"]
    down: Float[Tensor, "rank in"]
    up: Float[Tensor, "out rank"]
    errors: list[float]


def fit_low_rank(
    weight: Float[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    levels: Levels,
    rank: int,
    *,
    covariance: Float[Tensor, "in in"] | None = None,
    rounds: int = ROUNDS,
) -> LowRankFit:
    """Levels, scales and a product of low rank.

    Args:
        weight: W.
        scale: where scales begin.
        levels: lowest and highest.
        rank: r.
        covariance: H; None weighs all inputs alike.
        rounds: how often both are fitted.
    """
    root, inverse = _roots(covariance)
    importance = torch.ones_like(weight[0]) if covariance is None else covariance.diagonal()
    level = codes(weight, scale, levels)
    product = torch.zeros_like(weight)
    down, up = weight.new_zeros(rank, weight.shape[1]), weight.new_zeros(weight.shape[0], rank)

    def row_errors(rest: Tensor) -> Tensor:
        return (rest if root is None else rest @ root).square().sum(dim=1)

    errors = [float(row_errors(weight - values(level, scale)).sum())]
    for _ in range(rounds):
        rest = weight - values(level, scale)
        down, up = nearest_product(rest, rank, root=root, inverse=inverse)
        product = up @ down
        errors.append(float(row_errors(weight - values(level, scale) - product).sum()))
        target = weight - product
        new_scale = best_scale(target, codes(target, scale, levels), scale, importance)
        new_level = codes(target, new_scale, levels)
        better = row_errors(target - values(new_level, new_scale)) < row_errors(target - values(level, scale))
        level = torch.where(better[:, None], new_level, level)
        scale = torch.where(better[:, None], new_scale, scale)
        errors.append(float(row_errors(weight - values(level, scale) - product).sum()))
    return LowRankFit(scale, down, up, errors)


def best_scale(
    target: Float[Tensor, "out in"],
    level: Float[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    importance: Float[Tensor, " in"],
) -> Float[Tensor, "out groups"]:
    """Σ h q w / Σ h q² of every group; the old scale where all of its levels are zero."""
    groups = (scale.shape[1], -1)
    weighed = (level * importance).unflatten(1, groups)
    squares = (weighed * level.unflatten(1, groups)).sum(dim=2)
    fitted = (weighed * target.unflatten(1, groups)).sum(dim=2) / squares
    return stored_scale(torch.where(squares > 0, fitted, scale), scale.dtype)


def _roots(covariance: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """S and its inverse, of the damped H, of mean diagonal 1."""
    if covariance is None:
        return None, None
    size = covariance.diagonal().mean()
    sizes, vectors = torch.linalg.eigh(covariance / size + DAMPING * torch.eye(len(covariance)).to(covariance))
    sizes = sizes.clamp(min=DAMPING)
    return (vectors * sizes.sqrt()) @ vectors.T, (vectors / sizes.sqrt()) @ vectors.T
