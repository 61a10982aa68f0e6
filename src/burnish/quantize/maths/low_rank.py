"""The product of low rank that is nearest to a matrix, in the output of a layer or in the weight.

    min over A, B of || (M - B A) S ||²        A (rank, in), B (out, rank); S = H^(1/2), H = E[x^T x], or S = 1

    U Σ V^T = SVD(M S),   B = U_r sqrt(Σ_r),   A = sqrt(Σ_r) V_r^T S^-1

exactly, by Eckart and Young (1936): what is left is the root of the discarded Σ². Both factors have the same size.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def nearest_product(
    matrix: Float[Tensor, "out in"],
    rank: int,
    *,
    root: Float[Tensor, "in in"] | None = None,
    inverse: Float[Tensor, "in in"] | None = None,
) -> tuple[Float[Tensor, "rank in"], Float[Tensor, "out rank"]]:
    """A and B.

    Args:
        matrix: M.
        rank: r.
        root, inverse: S and its inverse; None for one.
    """
    left, sizes, right = torch.linalg.svd(matrix if root is None else matrix @ root, full_matrices=False)
    share = sizes[:rank].sqrt()
    down, up = share[:, None] * right[:rank], left[:, :rank] * share
    return down if inverse is None else down @ inverse, up
