"""The polar factor U V^T of X = U S V^T, approximated by an odd matrix polynomial (Newton-Schulz iteration).

    X <- X / (c0 ||X||_F + eps);   repeat:  A = X X^T,  X <- a X + (b A + c A A) X

Only matrix products are needed, so it runs at the speed of the matrix units and batches over equal shapes. It acts on
the singular values alone: each goes through the scalar polynomials, and the singular vectors stay.

Sources: Muon (Keller Jordan, 2024) for `quintic`; Dion code base (arXiv:2504.05295) for `tuned5`; The Polar Express
(2025, arXiv:2505.16932) for `polar_express`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Polynomials:
    """One polynomial per iteration, and how the input is normalised first.

    Attributes:
        coefficients: (a, b, c) of every iteration; the last is repeated when more are asked for.
        norm_factor: c0, above 1 where the first polynomial is not safe at the edge.
        eps: added to the norm, so that an exact zero stays zero.
    """

    coefficients: tuple[tuple[float, float, float], ...]
    norm_factor: float
    eps: float

    def iterations(self, steps: int) -> list[tuple[float, float, float]]:
        last = self.coefficients[-1]
        return [*self.coefficients[:steps], *[last] * (steps - len(self.coefficients))]


POLYNOMIALS: dict[str, Polynomials] = {
    # Fast growth of small values rather than exactness: singular values end up between 0.68 and 1.13.
    "quintic": Polynomials(((3.4445, -4.7750, 2.0315),), 1.0, 1e-7),
    # Ends between 0.978 and 1.032 for inputs between 0.01 and 1.
    "tuned5": Polynomials(
        (
            (4.0848, -6.8946, 2.9270),
            (3.9505, -6.3029, 2.6377),
            (3.7418, -5.5913, 2.3037),
            (2.8769, -3.1427, 1.2046),
            (2.8366, -3.0525, 1.2012),
        ),
        1.0,
        1e-7,
    ),
    # Lifts small values most (969 times), ends between 0.86 and 1.14.
    "polar_express": Polynomials(
        (
            (8.156554524902461, -22.48329292557795, 15.878769915207462),
            (4.042929935166739, -2.808917465908714, 0.5000178451051316),
            (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
            (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
            (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
        ),
        1.02,
        1e-6,
    ),
}


def orthogonalise(
    matrix: Float[Tensor, "*batch rows cols"],
    schedule: str = "quintic",
    steps: int = 5,
    dtype: torch.dtype | None = None,
    *,
    eps: float | None = None,
    clamp: bool = False,
) -> Float[Tensor, "*batch rows cols"]:
    """Newton-Schulz iterate of every matrix of a batch; the input is not changed, even where it is a view of state.

    Args:
        matrix: any leading dimensions; the norm is taken per matrix.
        schedule: a name of `POLYNOMIALS`.
        steps: iterations.
        dtype: what to compute in; the cast comes before the normalisation, as in the published code. None: as given.
        eps: keeps an exact zero zero; None is that of the schedule.
        clamp: divide by max(norm, eps) as torch.optim.Muon does, not by norm + eps as the published code does.

    Returns:
        The result in `dtype`; multiply-adds per matrix with m <= n rows and columns: about steps * (2 m^2 n + m^3).
    """
    plan = POLYNOMIALS[schedule]
    x = matrix if dtype is None else matrix.to(dtype)
    norm = torch.linalg.matrix_norm(x, keepdim=True) * plan.norm_factor
    eps = plan.eps if eps is None else eps
    x = x / (norm.clamp_min(eps) if clamp else norm + eps)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for a, b, c in plan.iterations(steps):
        gram = x @ x.mT
        if x.ndim == 2:
            polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.addmm(x, polynomial, x, beta=a)
        elif x.ndim == 3:
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, polynomial, x, beta=a)
        else:
            x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
