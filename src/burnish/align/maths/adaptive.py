"""Adaptive preference scaling: every pair gets a scale of its own.

Bradley-Terry uses one relation between reward difference and preference for all pairs. A pair that everybody agrees on
should be allowed a large difference, an ambiguous one should not. Adaptive preference scaling (APS) chooses the scale
tau of each pair by a distributionally robust problem on that pair's two outcomes:

    l(m, tau)   = tau softplus(-m/tau) + (rho0 - log 2) tau,           f(m) = min over tau in [tau0, tau_max]
    l_q(m, tau) = tau softplus(-m/tau) - log(2) tau + rho0 tau^2,      f_q(m) = min over tau >= tau0

Source: "Adaptive Preference Scaling for Reinforcement Learning with Human Feedback", NeurIPS 2024, arXiv 2406.02764.
What differs: the authors run a few projected Newton steps on tau, which for rho0 >= 0.3 oscillate between the bounds on
a sixth to a third of the pairs. The minimiser has a closed form. Since dl/dtau = rho0 - h(m/tau), with h the
information of `bradley_terry`, and h grows with |m/tau|,

    h(u_rho) = rho0 (one root for the whole run),         tau*(m) = clip(|m| / u_rho, tau0, tau_max),

and for the quadratic penalty u h(u) = 2 rho0 |m| with u = |m|/tau, one bisection per pair. tau depends on |m| alone: a
pair that is confidently wrong gets a large tau too. By the envelope theorem df/dm = -sigma(-m/tau*): no gradient flows
through the solver. l is the perspective of a convex function, so f is convex.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.align.maths.bradley_terry import LOG_2, information, logistic_loss, scalar_information

BISECTIONS = 64
"""Enough to close any bracket of positive floats to float64 precision."""


@lru_cache(maxsize=256)
def information_root(rho0: float) -> float:
    """u_rho: the u > 0 with h(u) = rho0; infinite for rho0 >= log 2, where h never gets there."""
    if rho0 >= LOG_2:
        return math.inf
    low, high = math.sqrt(8.0 * rho0) * (1 - 1e-9), 60.0  # h(u) <= u^2/8, and h(60) is log 2 in float64
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if scalar_information(middle) < rho0 else (low, middle)
    return high


def adaptive_scale(
    margin: Float[Tensor, " pairs"], rho0: float, tau0: float, tau_max: float
) -> Float[Tensor, " pairs"]:
    """tau*(m) of the linear penalty: clip(|m| / u_rho, tau0, tau_max). Detached."""
    return (margin.detach().abs() / information_root(rho0)).clamp(tau0, tau_max)


def newton_scale(
    margin: Float[Tensor, " pairs"], rho0: float, tau0: float, tau_max: float, steps: int, eps: float = 1e-6
) -> Float[Tensor, " pairs"]:
    """tau after `steps` projected Newton steps from 1, as in the authors' code, its damping constants included.

    Kept to reproduce published runs only; it does not converge for large rho0 (see the module's docstring).
    """
    m = margin.detach()
    tau = torch.ones_like(m)
    for _ in range(steps):
        u = m / tau
        chosen = torch.sigmoid(u)
        slope = rho0 - torch.log(2 * chosen + eps) + u * (1 - chosen)
        curvature = (m.square() * chosen * (1 - chosen) / tau**3).clamp(min=eps)
        tau = (tau - slope / curvature).clamp(tau0, tau_max)
    return tau


def quadratic_scale(margin: Float[Tensor, " pairs"], rho0: float, tau0: float) -> Float[Tensor, " pairs"]:
    """tau*(m) of the quadratic penalty: the root of 2 rho0 tau = h(m/tau), not below tau0. Detached."""
    size = margin.detach().abs().to(torch.float64)
    low = torch.full_like(size, tau0)
    high = torch.full_like(size, max(tau0, LOG_2 / (2 * rho0)))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        above = 2 * rho0 * middle < information(size / middle)
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return ((low + high) / 2).to(margin.dtype)


def scaled_loss(margin: Float[Tensor, " pairs"], tau: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """tau softplus(-m/tau): the logistic loss at temperature tau, times tau, so that its slope stays in [-1, 0]."""
    return tau * logistic_loss(margin / tau)
