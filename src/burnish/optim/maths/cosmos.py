"""COSMOS: Adam in the leading eigenspace of the gradient covariance, Muon in the rest.

SOAP runs Adam in the eigenbasis of the gradient covariance and stores dense n x n and m x m matrices for it. COSMOS
tracks only the leading r directions on the input side, by one power step per iteration, and orthogonalises what is
outside of them:

    M  <- beta1 M + (1 - beta1) G                              first moment, D its bias-corrected (Nesterov) form
    U' = qr(beta2 U S + (1 - beta2) G^T (G U)),  T = U^T U'    leading eigenvectors of the running G^T G
    S' = beta2 T^T S T + (1 - beta2) (G U')^T (G U')
    V  <- beta2 V + (1 - beta2) (G U') o (G U')                second moment inside the space; not rotated with U
    A  = [ (D U') / (sqrt(V / (1 - beta2^t)) + eps) ] U'^T
    R  = D - D U' U'^T,   B = sqrt(m n) NS(R) / ||NS(R)||_F
    C  = A + gamma B,     W <- (1 - lr wd) W - lr ratio sqrt(m n) C / ||C||_F

Source: COSMOS: A Hybrid Adaptive Optimizer for Memory-Efficient Training of LLMs (2025, arXiv:2502.17410), and its code
(lliu606/COSMOS). What differs, because the published code is wrong there: without Nesterov it drops the momentum; it
orthogonalises rounding noise when nothing is left outside the space; it writes into the gradients. `legacy` brings
the first two back, for comparison with published numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.optim.maths.orthogonalise import orthogonalise

NOISE = 1e-6
"""A remainder below this share of the direction is rounding (of float32), not signal."""


def first_basis(
    gradient: Float[Tensor, "*batch rows cols"], rank: int, beta2: float
) -> tuple[Float[Tensor, "*batch cols rank"], Float[Tensor, "*batch rank rank"]]:
    """The leading right singular vectors of the first gradient, and its covariance in them."""
    _, _, right = torch.linalg.svd(gradient, full_matrices=False)
    basis = right[..., :rank, :].mT
    inside = gradient @ basis
    return basis, (1 - beta2) * inside.mT @ inside


def track_basis(
    basis: Float[Tensor, "*batch cols rank"],
    covariance: Float[Tensor, "*batch rank rank"],
    gradient: Float[Tensor, "*batch rows cols"],
    beta2: float,
) -> tuple[Float[Tensor, "*batch cols rank"], Float[Tensor, "*batch rank rank"]]:
    """One power step on the running covariance of the gradients, without ever forming it; S is kept symmetric."""
    new_basis = next_basis(basis, covariance, power_share(basis, gradient, beta2), beta2)
    share = covariance_share(gradient @ new_basis, beta2)
    return new_basis, next_covariance(basis, new_basis, covariance, share, beta2)


def power_share(
    basis: Float[Tensor, "*batch cols rank"], gradient: Float[Tensor, "*batch rows cols"], beta2: float
) -> Float[Tensor, "*batch cols rank"]:
    """(1 - beta2) G^T (G U); of shards of rows it is the sum of the shards' own."""
    return (1 - beta2) * gradient.mT @ (gradient @ basis)


def covariance_share(inside: Float[Tensor, "*batch rows rank"], beta2: float) -> Float[Tensor, "*batch rank rank"]:
    """(1 - beta2) (G U')^T (G U'); of shards of rows it is the sum of the shards' own."""
    return (1 - beta2) * inside.mT @ inside


def next_basis(
    basis: Float[Tensor, "*batch cols rank"],
    covariance: Float[Tensor, "*batch rank rank"],
    power: Float[Tensor, "*batch cols rank"],
    beta2: float,
) -> Float[Tensor, "*batch cols rank"]:
    """U' from the whole `power_share`."""
    return torch.linalg.qr(beta2 * basis @ covariance + power).Q


def next_covariance(
    basis: Float[Tensor, "*batch cols rank"],
    new_basis: Float[Tensor, "*batch cols rank"],
    covariance: Float[Tensor, "*batch rank rank"],
    share: Float[Tensor, "*batch rank rank"],
    beta2: float,
) -> Float[Tensor, "*batch rank rank"]:
    """S' from the whole `covariance_share`."""
    turn = basis.mT @ new_basis
    new_covariance = beta2 * turn.mT @ covariance @ turn + share
    return (new_covariance + new_covariance.mT) / 2


def momentum(
    first_moment: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    beta1: float,
    step: int,
    *,
    nesterov: bool,
    legacy: bool = False,
) -> Float[Tensor, "*shape"]:
    """The bias-corrected direction D from a first moment that has already seen this gradient.

    With Nesterov `((1-beta1) G + beta1 M) / (1 - beta1 + beta1 (1 - beta1^t))`, without `M / (1 - beta1^t)`; the
    published code without Nesterov has `G (1-beta1) / (1-beta1^t)`, which is no momentum at all (`legacy`).
    """
    correction = 1 - beta1**step
    if nesterov:
        return ((1 - beta1) * gradient + beta1 * first_moment) / (1 - beta1 + beta1 * correction)
    return gradient * ((1 - beta1) / correction) if legacy else first_moment / correction


def direction(
    momentum: Float[Tensor, "*batch rows cols"],
    basis: Float[Tensor, "*batch cols rank"],
    second_moment: Float[Tensor, "*batch rows rank"],
    *,
    gamma: float,
    eps: float,
    orthogonalise: Callable[[Tensor], Tensor] = orthogonalise,
    legacy: bool = False,
) -> Float[Tensor, "*batch rows cols"]:
    """sqrt(m n) C / ||C||: the update in units of `lr * ratio`; its RMS is 1.

    Args:
        momentum: D.
        basis: U', after tracking.
        second_moment: V / (1 - beta2^t).
        gamma: weight of the orthogonalised remainder; 0 moves inside the leading space only.
        eps: as in Adam, and of the norms.
        orthogonalise: of the remainder, in whatever dtype.
        legacy: do not gate a remainder that is rounding noise.
    """
    size = (momentum.shape[-2] * momentum.shape[-1]) ** 0.5
    adam, remainder = parts(momentum, basis, second_moment, eps)
    muon = orthogonalise(remainder).to(momentum.dtype)
    muon = sized(muon, size, _norm(muon), eps)
    if not legacy:
        muon = without_noise(muon, _norm(remainder), _norm(momentum))
    combined = adam + gamma * muon
    return sized(combined, size, _norm(combined), eps)


def parts(
    momentum: Float[Tensor, "*batch rows cols"],
    basis: Float[Tensor, "*batch cols rank"],
    second_moment: Float[Tensor, "*batch rows rank"],
    eps: float,
) -> tuple[Float[Tensor, "*batch rows cols"], Float[Tensor, "*batch rows cols"]]:
    """A, the step inside the leading space, and R, what is left of D outside; row by row."""
    inside = momentum @ basis
    adam = (inside / (second_moment.sqrt() + eps)) @ basis.mT
    return adam, momentum - inside @ basis.mT


def sized(
    matrix: Float[Tensor, "*batch rows cols"], size: float, norm: Float[Tensor, "*batch 1 1"], eps: float
) -> Float[Tensor, "*batch rows cols"]:
    """The matrix (or shards of it), whose Frobenius norm is given, scaled to another one."""
    return matrix * (size / (norm + eps))


def without_noise(
    muon: Float[Tensor, "*batch rows cols"],
    remainder_norm: Float[Tensor, "*batch 1 1"],
    momentum_norm: Float[Tensor, "*batch 1 1"],
) -> Float[Tensor, "*batch rows cols"]:
    """Zero where what was orthogonalised is rounding: its orthogonalisation would be a random matrix of full size."""
    return torch.where(remainder_norm <= NOISE * momentum_norm, torch.zeros_like(muon), muon)


def _norm(matrix: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch 1 1"]:
    return torch.linalg.matrix_norm(matrix, keepdim=True)
