"""Score matching for the time of the next event.

With hazard lam(s) of the gap s, the density is p(s) = lam(s) exp(-Lam(s)) and its score is

    psi(s) = d/ds log p(s) = lam'(s)/lam(s) - lam(s).

Matching scores needs no normaliser, but on the half line integration by parts leaves a boundary term -p(0) psi(0), and
a point process has p(0) = lam(0) > 0: score matching in the raw gap is biased (a constant hazard is driven to zero).
In u = log s the density s p(s) vanishes at both ends, psi_u = 1 + s psi(s), and plain matching in u equals matching
in s with weight s^2, so it is consistent.

Sources: SMURF-THP (Li et al., ICML 2023, arXiv 2310.16336) for the objective; Is Score Matching Suitable for
Estimating Point Processes? (Cao et al., NeurIPS 2024) for the weight.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def hazard_score(hazard: Float[Tensor, "*shape"], slope: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """psi(s) = lam'(s)/lam(s) - lam(s)."""
    return slope / hazard - hazard


def log_time_score(gap: Float[Tensor, "*shape"], score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Score of u = log s from the score of s: psi_u = 1 + s psi(s), because p_u = s p(s)."""
    return 1 + gap * score


def implicit_loss(score: Float[Tensor, "*shape"], divergence: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """psi^2/2 + psi', whose mean is the Fisher divergence up to a constant if p vanishes at the boundary."""
    return score.square() / 2 + divergence


def weighted_implicit_loss(
    score: Float[Tensor, "*shape"],
    divergence: Float[Tensor, "*shape"],
    weight: Float[Tensor, "*shape"],
    weight_slope: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """h psi^2/2 + h psi' + h' psi: score matching with a weight h that is zero at the boundary (Cao et al. 2024)."""
    return weight * (score.square() / 2 + divergence) + weight_slope * score


def denoising_loss(
    score: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], sigma: float
) -> Float[Tensor, "*shape"]:
    """1/2 sigma^2 (psi(x + sigma e) + e/sigma)^2 for standard normal e, the published objective."""
    return 0.5 * (sigma * score + noise).square()


def centred_denoising_loss(
    score: Float[Tensor, "*shape"], noise: Float[Tensor, "*shape"], sigma: float
) -> Float[Tensor, "*shape"]:
    """psi^2/2 + psi e/sigma: `denoising_loss / sigma^2` without its parameter-free part e^2/(2 sigma^2).

    With antithetic pairs (e, -e) its variance stays bounded as sigma -> 0, where it becomes `implicit_loss`.
    """
    return score.square() / 2 + score * noise / sigma


def antithetic_noise(shape: tuple[int, ...], num_noise: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal noise of shape (*shape, num_noise), in pairs (e, -e); num_noise is even."""
    half = torch.randn((*shape, num_noise // 2), generator=generator, dtype=like.dtype, device=generator.device)
    return torch.cat([half, -half], dim=-1).to(like.device)


def mass_loss(
    compensator_at_horizons: Float[Tensor, "*shape horizons"],
    gap: Float[Tensor, "*shape"],
    horizons: Float[Tensor, " horizons"],
) -> Float[Tensor, "*shape"]:
    """Mean over horizons tau of -[ 1{s <= tau} log F(tau) + 1{s > tau} log S(tau) ], S = exp(-Lam).

    The score fixes a density only up to a factor; this classification of "before tau or not" fixes the mass, and with
    it the hazard that forecasts given the elapsed time need (a survival term as in Cao, Zhang, Zhou 2025, arXiv
    2512.04617).
    """
    compensator = compensator_at_horizons.clamp_min(1e-12)
    before = gap.unsqueeze(-1) <= horizons
    return torch.where(before, -torch.log(-torch.expm1(-compensator)), compensator).mean(-1)
