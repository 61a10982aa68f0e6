"""SOAP: Adam in the eigenbasis of the gradient covariances on both sides.

    L <- beta L + (1 - beta) G G^T,   R <- beta R + (1 - beta) G^T G
    Q_L, Q_R: their eigenvectors, found by `eigh` once and then by one power step and QR every few steps
    P = Q_L^T G Q_R;  Adam on P;  W <- W - lr Q_L (update) Q_R^T, then decay

Source: SOAP: Improving and Stabilizing Shampoo using Adam (2024, arXiv:2409.11321). Same order of operations as the
authors' code; the first moment is stored in the rotated basis and turned only when the basis changes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def first_eigenbasis(covariance: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Eigenvectors, largest eigenvalue first."""
    return torch.linalg.eigh(covariance).eigenvectors.flip(-1)


def next_eigenbasis(
    covariance: Float[Tensor, "n n"], basis: Float[Tensor, "n n"]
) -> tuple[Float[Tensor, "n n"], Int[Tensor, " n"]]:
    """One power step and QR, with columns re-sorted by their estimated eigenvalues first.

    Returns:
        The new basis, and the order in which the old columns were taken (the second moment follows it).
    """
    estimates = (basis * (covariance @ basis)).sum(dim=0)
    order = torch.argsort(estimates, descending=True)
    return torch.linalg.qr(covariance @ basis[:, order]).Q, order


def rotate(
    matrix: Float[Tensor, "rows cols"],
    left: Float[Tensor, "rows rows"] | None,
    right: Float[Tensor, "cols cols"] | None,
    *,
    back: bool = False,
) -> Float[Tensor, "rows cols"]:
    """Q_L^T X Q_R, or Q_L X Q_R^T with `back`; a side that is too large to rotate has no basis."""
    if left is not None:
        matrix = (left if back else left.mT) @ matrix
    if right is not None:
        matrix = matrix @ (right.mT if back else right)
    return matrix
