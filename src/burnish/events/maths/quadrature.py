"""Integrals of a hazard over a gap.

A hazard that is softplus of a linear function of time integrates in closed form: with x = u + c s,

    int_0^S log(1 + exp(u + c s)) ds = [Li2(-exp(u)) - Li2(-exp(u + c S))] / c        (-> S softplus(u) as c -> 0)

The closed form needs the dilogarithm, which torch lacks, so training uses Gauss-Legendre nodes; twelve of them are
within 1e-6 of the closed form while |c S| <= 10. Uniform random points (the published estimator of the Transformer
Hawkes Process, arXiv 2002.09291) are off by several per cent per gap with a hundred points.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import spence
from torch import Tensor
from torch.nn import functional as F

Numbers = float | int | NDArray[Any]
"""A number or an array of them."""


@lru_cache(maxsize=16)
def _legendre(num_nodes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
    return (nodes + 1) / 2, weights / 2


def gauss_legendre(num_nodes: int, like: Tensor) -> tuple[Float[Tensor, " nodes"], Float[Tensor, " nodes"]]:
    """Nodes and weights on [0, 1] with the dtype and device of `like`."""
    nodes, weights = _legendre(num_nodes)
    options = {"dtype": like.dtype, "device": like.device}
    return torch.tensor(nodes, **options), torch.tensor(weights, **options)


def dilogarithm_of_minus_exp(x: Numbers) -> NDArray[np.float64]:
    """Li2(-exp(x)) for any real x; the inversion formula replaces exp(x) where it would overflow."""
    x = np.asarray(x, dtype=np.float64)
    small = spence(1 + np.exp(np.minimum(x, 30.0)))
    large = -(np.pi**2) / 6 - np.square(x) / 2 - spence(1 + np.exp(-np.maximum(x, 30.0)))
    return np.where(x > 30.0, large, small)


def softplus_integral(u: Numbers, c: Numbers, length: Numbers) -> NDArray[np.float64]:
    """int_0^length log(1 + exp(u + c s)) ds in closed form, by the dilogarithm.

    Args:
        u, c, length: arrays that broadcast; `length` may be inf where c < 0.
    """
    u, c, length = np.broadcast_arrays(
        np.asarray(u, np.float64), np.asarray(c, np.float64), np.asarray(length, np.float64)
    )
    finite = np.where(np.isfinite(length), length, 0.0)
    # Near c = 0 the difference of dilogarithms cancels; a second-order expansion in c is exact to rounding there.
    flat = np.abs(c * finite) < 1e-5
    safe_c = np.where(flat & np.isfinite(length), 1.0, c)
    end = np.where(np.isfinite(length), dilogarithm_of_minus_exp(u + safe_c * finite), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        closed = (dilogarithm_of_minus_exp(u) - end) / safe_c
    sigmoid = 0.5 * (1 + np.tanh(u / 2))
    slope = c * finite
    series = finite * (np.logaddexp(0, u) + slope * sigmoid / 2 + slope**2 * sigmoid * (1 - sigmoid) / 6)
    value = np.where(flat & np.isfinite(length), series, closed)
    return np.where(np.isinf(length) & (c >= 0), np.inf, value)


def softplus_integral_quadrature(
    u: Float[Tensor, "*shape"], c: Float[Tensor, "*shape"], length: Float[Tensor, "*shape"], num_nodes: int = 12
) -> Float[Tensor, "*shape"]:
    """int_0^length log(1 + exp(u + c s)) ds by Gauss-Legendre; differentiable in everything."""
    nodes, weights = gauss_legendre(num_nodes, u)
    values = F.softplus(u.unsqueeze(-1) + (c * length).unsqueeze(-1) * nodes)
    return length * (values @ weights)


def log_softplus(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(log(1 + exp(x))), equal to x - exp(x)/2 to rounding where softplus underflows; no additive constant."""
    low = x < -15.0
    return torch.where(low, x, torch.log(F.softplus(torch.where(low, 0.0, x))))
