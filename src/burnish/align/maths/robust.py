"""R3M: robust preference learning, in which the pull of one corrupted label is bounded.

Every pair may buy an offset delta at an l1 price, 0 < lambda < 1:

    l(m, delta) = softplus(-(m + delta)) + lambda |delta|

Source: "Robust Reinforcement Learning from Corrupted Human Feedback", NeurIPS 2024, arXiv 2406.15568, whose algorithm
alternates between delta and the model. What differs: the minimum over delta has a closed form, so there is no state per
pair and nothing to alternate. With t = log(1/lambda - 1),

    delta*(m) = max(t - m, 0)
    f(m)  = softplus(-m)                        for m >= t
          = -log(1 - lambda) + lambda (t - m)   for m <  t
    df/dm = -min(sigma(-m), lambda).

So R3M is the logistic loss with the gradient of each pair capped at lambda. lambda > 1/2 gives t < 0: only pairs that
the model ranks wrongly are flagged. lambda < 1/2 also flags low margins; then only the order of delta has a meaning.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.align.maths.adaptive import information_root, scaled_loss
from burnish.align.maths.bradley_terry import logistic_loss


def threshold(lam: float) -> float:
    """t_lambda = log(1/lambda - 1), the margin below which a pair buys an offset."""
    return math.log1p(-lam) - math.log(lam)


def outlier_offset(
    margin: Float[Tensor, " pairs"], lam: float, tau: Float[Tensor, " pairs"] | float = 1.0
) -> Float[Tensor, " pairs"]:
    """delta*(m) = max(tau t_lambda - m, 0), the outlier score of a pair. Detached."""
    return (tau * threshold(lam) - margin.detach()).clamp(min=0)


def capped_loss(margin: Float[Tensor, " pairs"], lam: float) -> Float[Tensor, " pairs"]:
    """f(m); `where` and not `maximum`, whose gradient is halved at the joint."""
    t = threshold(lam)
    return torch.where(margin < t, -math.log1p(-lam) + lam * (t - margin), logistic_loss(margin))


def combined_scale(
    margin: Float[Tensor, " pairs"], rho0: float, tau0: float, tau_max: float, lam: float
) -> Float[Tensor, " pairs"]:
    """tau*(m) when a pair has a scale and an offset: the minimiser over tau after delta is minimised out.

    Where the offset is in use, the slope in tau is the constant rho0 - h(t_lambda); where it is not, rho0 - h(m/tau).
    So, with u = u_rho and t = t_lambda, tau* = clip(|m|/u, tau0, tau_max) as long as the scale is decided before the
    offset is bought, and an end of the interval otherwise:

        t >= u           tau_max for every pair (the offset is cheaper than any scale)
        -u <= t < u      clip(m/u, tau0, tau_max): a wrongly ranked pair gets tau0 and buys an offset
        t < -u           clip(|m|/u, tau0, tau_max)
    """
    m = margin.detach()
    u, t = information_root(rho0), threshold(lam)
    if t >= u:
        return torch.full_like(m, tau_max)
    size = m.abs() if t < -u else m.clamp(min=0)
    return (size / u).clamp(tau0, tau_max)


def combined_loss(margin: Float[Tensor, " pairs"], tau: Float[Tensor, " pairs"], lam: float) -> Float[Tensor, " pairs"]:
    """min over delta of tau softplus(-(m + delta)/tau) + lambda |delta|; slope -min(sigma(-m/tau), lambda)."""
    joint = tau * threshold(lam)
    line = -math.log1p(-lam) * tau + lam * (joint - margin)
    return torch.where(margin < joint, line, scaled_loss(margin, tau))
