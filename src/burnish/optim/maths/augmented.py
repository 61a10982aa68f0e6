"""The augmented Lagrangian of expectation constraints, and the steps of its multipliers.

    min f(x) + h(x)   subject to   c_i(x) = 0 or c_i(x) <= 0,    f = E F,  c = E C

    equality    y c + beta/2 c^2
    inequality  (max(0, y + beta c)^2 - y^2) / (2 beta),  the minimum over s >= 0 of the equality for c + s

The gradient of a constraint's term is J_C (y + beta c): a product of two expectations. Estimated on one batch it is
biased by beta Cov(J_C, C), so that C comes from a batch of its own. The max of an inequality is not linear, and no
second batch mends that: stochastic inequalities keep their slack s as a variable.

Source: Stochastic Inexact Augmented Lagrangian Method for Nonconvex Expectation Constrained Optimization, Li, Chen,
Liu, Lu, Xu, 2022 (arXiv:2212.09513). The outer structure is the paper's; the formulas are reconstructed from the
methods it builds on.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def force(
    violation: Float[Tensor, " constraints"],
    multipliers: Float[Tensor, " constraints"],
    penalty: float,
    inequality: Bool[Tensor, " constraints"],
) -> Float[Tensor, " constraints"]:
    """What each constraint's gradient is weighed with: y + beta c, cut off at 0 for inequalities."""
    pull = multipliers + penalty * violation
    return torch.where(inequality, pull.clamp_min(0), pull)


def augmented_terms(
    violation: Float[Tensor, " constraints"],
    multipliers: Float[Tensor, " constraints"],
    penalty: float,
    inequality: Bool[Tensor, " constraints"],
) -> Float[Tensor, ""]:
    """What is added to f, at exact values of c."""
    pulled = force(violation, multipliers, penalty, inequality)
    return ((pulled**2 - multipliers**2) / (2 * penalty)).sum()


def bounded_step(round_: int, size: float, first_size: float) -> float:
    """w_k / w_0 = min(1, gamma_k / ||c||), gamma_k = (log 2)^2 ||c(x_1)|| / ((k + 1) log^2(k + 2)).

    The gammas have a finite sum, so the multipliers stay bounded whatever the constraints do.
    """
    if size == 0:
        return 1.0
    gamma = math.log(2) ** 2 * first_size / ((round_ + 1) * math.log(round_ + 2) ** 2)
    return min(1.0, gamma / size)


def moved_multipliers(
    violation: Float[Tensor, " constraints"],
    multipliers: Float[Tensor, " constraints"],
    step: float,
    inequality: Bool[Tensor, " constraints"],
) -> Float[Tensor, " constraints"]:
    """y + w c, cut off at 0 for inequalities."""
    return force(violation, multipliers, step, inequality)


def largest_violation(violation: Float[Tensor, " constraints"], inequality: Bool[Tensor, " constraints"]) -> float:
    """max |c_i| over equalities and max(0, c_i) over inequalities."""
    return float(torch.where(inequality, violation.clamp_min(0), violation.abs()).max())


def complementarity(
    violation: Float[Tensor, " constraints"],
    multipliers: Float[Tensor, " constraints"],
    inequality: Bool[Tensor, " constraints"],
) -> float:
    """max |y_i c_i| over inequalities: a multiplier may pull only where its constraint holds with equality."""
    return float(torch.where(inequality, (multipliers * violation).abs(), torch.zeros_like(violation)).max())


def residual(
    violation: Float[Tensor, " constraints"],
    multipliers: Float[Tensor, " constraints"],
    penalty: float,
    inequality: Bool[Tensor, " constraints"],
) -> Float[Tensor, " constraints"]:
    """What a classical step changes a multiplier by, over beta: c, or max(c, -y / beta) for inequalities."""
    return (force(violation, multipliers, penalty, inequality) - multipliers) / penalty
