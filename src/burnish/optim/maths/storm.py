"""PStorm: proximal stochastic gradients with momentum that corrects itself, and the maps that go with it.

    d_{t+1} = v + (1 - b_t) (d_t - u)        v, u: gradients at x_{t+1} and x_t on the same batch
    x_{t+1} = prox(x_t - eta_t d_t)

    eta_t = eta_0 / (t + 4)^(1/3)
    b_t   = (1 + 24 eta_t^2 L^2 - eta_{t+1} / eta_t) / (1 + 4 eta_t^2 L^2)

The difference v - u moves the estimate along with the point, so that its error shrinks from step to step where that of
a plain average lags behind. With b_t = 1 it is the proximal stochastic gradient; with gradients of the whole data d_t
is the exact gradient for every b_t.

Source: Momentum-based variance-reduced proximal stochastic gradient method for composite nonconvex stochastic
optimization, Xu, Xu, 2020 (arXiv:2006.00425).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

FIRST = 4
"""Added to the number of a step, so that the first step sizes do not fall too fast."""

Proximal = Literal["none", "l1", "box", "ball"]


def step_size(step: int, first: float) -> float:
    """eta_t, from `first` at step 0 downward: first (4 / (t + 4))^(1/3)."""
    return first * (FIRST / (step + FIRST)) ** (1 / 3)


def momentum(step: int, first: float) -> float:
    """b_t, where eta_0 is as large as the smoothness L allows: step_size(0) = 1 / (8 L)."""
    smoothness = 1 / (8 * first)
    now, following = step_size(step, first), step_size(step + 1, first)
    square = (now * smoothness) ** 2
    return (1 + 24 * square - following / now) / (1 + 4 * square)


def corrected(
    estimate: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], before: Float[Tensor, "*shape"], weight: float
) -> Float[Tensor, "*shape"]:
    """d_{t+1} from d_t, the gradient here and the gradient before on the same batch, and b_t."""
    return gradient + (1 - weight) * (estimate - before)


def proximal_map(
    kind: Proximal,
    *,
    strength: float = 0.0,
    low: float = -torch.inf,
    high: float = torch.inf,
    radius: float = torch.inf,
) -> Callable[[Float[Tensor, "*shape"], float], Float[Tensor, "*shape"]]:
    """(point, step size) -> prox_{step h}(point).

    none: h = 0; l1: h = strength ||x||_1; box: low <= x <= high; ball: ||x||_2 <= radius.
    """
    if kind == "l1":
        return lambda x, step: x.sign() * (x.abs() - step * strength).clamp_min(0)
    if kind == "box":
        return lambda x, step: x.clamp(low, high)
    if kind == "ball":
        return lambda x, step: x * (radius / torch.linalg.vector_norm(x).clamp_min(radius))
    return lambda x, step: x
