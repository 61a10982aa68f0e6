"""Sampling from a score: the published Langevin chain, and a reverse diffusion over a ladder of noise levels.

One-dimensional gaps need neither (their quantiles are exact, see inversion.py). Locations do: their density has no
cheap normaliser in two dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Score = Callable[[Tensor], Tensor]


def langevin(
    score: Score,
    start: Float[Tensor, "*shape"],
    *,
    step: float,
    num_steps: int,
    generator: torch.Generator,
    refuse_below: float | None = None,
    denoise: float = 0.0,
) -> Float[Tensor, "*shape"]:
    """x <- x + step/2 score(x) + sqrt(step) z, then x + denoise^2 score(x) once (SMURF-THP, arXiv 2310.16336).

    Args:
        refuse_below: proposals under this value are refused (the "truncated" mode for raw gaps).
        denoise: the noise level that the score was trained at, for the last step.
    """
    x = start
    for _ in range(num_steps):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
        proposal = x + step / 2 * score(x) + step**0.5 * noise
        x = proposal if refuse_below is None else torch.where(proposal >= refuse_below, proposal, x)
    if denoise:
        proposal = x + denoise**2 * score(x)
        x = proposal if refuse_below is None else torch.where(proposal >= refuse_below, proposal, x)
    return x


def reverse_diffusion(
    score: Callable[[Tensor, Tensor], Tensor],
    start: Float[Tensor, "*shape"],
    sigmas: Float[Tensor, " levels"],
    *,
    generator: torch.Generator,
) -> Float[Tensor, "*shape"]:
    """Ancestral sampling down a ladder sigma_1 > ... > sigma_L of a variance-exploding diffusion.

        x <- x + (sigma_i^2 - sigma_{i+1}^2) score(x, sigma_i) + sigma_{i+1} sqrt(1 - sigma_{i+1}^2/sigma_i^2) z

    and a last noiseless step x + sigma_L^2 score(x, sigma_L). `start` is drawn from N(0, sigma_1^2) by the caller
    (Score-Based Generative Modeling through Stochastic Differential Equations, Song et al. 2021, arXiv 2011.13456).
    """
    x = start
    for here, there in pairwise(sigmas):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x.device)
        drop = here**2 - there**2
        x = x + drop * score(x, here) + there * torch.sqrt(drop) / here * noise
    return x + sigmas[-1] ** 2 * score(x, sigmas[-1])
