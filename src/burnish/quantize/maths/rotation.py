"""A rotation that spreads a vector evenly over its numbers: random signs, then Hadamard's matrix.

    rotate(x) = H diag(s) x / √p,    s in {-1, 1}^d,   H of order p, the largest power of two that divides d

With p < d it acts on d / p blocks. The numbers of a rotated vector of length 1 are close to normal with variance 1 / d
whatever the vector, so that one scalar quantizer fits all of them.

Source: Suresh, Yu, Kumar and McMahan, Distributed mean estimation with limited communication, 2016, arXiv:1611.00429;
of caches TurboQuant, 2025, arXiv:2504.19874.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(vectors: Float[Tensor, "*batch dim"], signs: Float[Tensor, " dim"]) -> Float[Tensor, "*batch dim"]:
    """Of the same length as the vectors."""
    return _mixed(vectors * signs)


def rotate_back(vectors: Float[Tensor, "*batch dim"], signs: Float[Tensor, " dim"]) -> Float[Tensor, "*batch dim"]:
    """The inverse: H is symmetric and its own inverse."""
    return _mixed(vectors) * signs


def random_signs(dim: int, generator: torch.Generator) -> Float[Tensor, " dim"]:
    return torch.randint(2, (dim,), generator=generator).float() * 2 - 1


def _mixed(vectors: Tensor) -> Tensor:
    order = vectors.shape[-1] & -vectors.shape[-1]
    matrix = _hadamard(order).to(vectors)
    return (vectors.unflatten(-1, (-1, order)) @ matrix).flatten(-2)


@cache
def _hadamard(order: int) -> Tensor:
    from scipy.linalg import hadamard

    return torch.from_numpy(hadamard(order) / order**0.5)
