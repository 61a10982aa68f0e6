"""How much to trust an estimated factor: shrinkage chosen on held-out text.

A factor estimated from few tokens has eigenvalues that are too small where it saw nothing, and rounding pushes its
error exactly there. So a factor, scaled to mean diagonal 1, is shrunk toward a target that is better estimated (the
activation covariance) and toward the identity:

    H(mix, damping) = (1 - mix) H + mix T + damping I.

What a choice costs can be foretold without rounding anything. Rounding with L D L^T = H leaves E = L_O^-T eta L_I^-1
with eta like independent noise, eta_ij of variance r_i c_j / 12 for steps s_ij² ~ r_i c_j. Under factors H* measured on
other text its expected proxy is a product of one number per side,

    E tr(H*_O E H*_I E^T) = 1/12 * Σ_i r_i [L_O^-1 H*_O L_O^-T]_ii * Σ_j c_j [L_I^-1 H*_I L_I^-T]_jj,

which `expected_loss` computes. Every side is therefore chosen by itself, and the identity, which is what one-sided
rounding uses for H_O, competes with the rest: its number is Σ_i r_i [H*_O]_ii.

Source: the project's own; the expectation follows from the identity tr(H_O E H_I E^T) = Σ D_O eta² D_I in
Model-Preserving Adaptive Rounding (2025, arXiv:2505.22988), which uses a fixed damping of 0.01.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.quantize.maths.rounding import Order

DAMPINGS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Multiples of the mean diagonal that are tried."""

MIXES = (0.0, 0.5, 1.0)
"""Shares of the target that are tried on a side that has one."""


@dataclass(frozen=True)
class Shrinkage:
    """The choice for one side of one matrix.

    Attributes:
        damping: multiple of the identity; infinity stands for the identity itself (this side is not used).
        mix: share of the target.
        loss: expected loss on held-out text relative to the identity's; below 1 is a gain.
    """

    damping: float
    mix: float = 0.0
    loss: float = 1.0

    @property
    def is_identity(self) -> bool:
        return self.damping == float("inf")

    def apply(
        self, factor: Float[Tensor, "n n"], target: Float[Tensor, "n n"] | None = None
    ) -> Float[Tensor, "n n"] | None:
        """The shrunk factor, None where the choice is the identity."""
        if self.is_identity:
            return None
        return shrink(factor, damping=self.damping, mix=self.mix, target=target)


def normalised(factor: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The factor with mean diagonal 1; a factor of zeros stays zero."""
    mean = factor.diagonal().mean()
    return factor / torch.where(mean > 0, mean, torch.ones_like(mean))


def shrink(
    factor: Float[Tensor, "n n"], *, damping: float, mix: float = 0.0, target: Float[Tensor, "n n"] | None = None
) -> Float[Tensor, "n n"]:
    """(1 - mix) H + mix T + damping I with H and T of mean diagonal 1."""
    shrunk = normalised(factor)
    if target is not None and mix:
        shrunk = (1 - mix) * shrunk + mix * normalised(target)
    shrunk.diagonal().add_(damping)
    return shrunk


def square_root(factor: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """R with R R^T = H, for a positive semidefinite H.

    A factor from few sequences is singular; a millionth of its mean diagonal is added, ten times more each time until
    the decomposition exists in the factor's precision.
    """
    mean = factor.diagonal().mean().clamp(min=torch.finfo(factor.dtype).tiny)
    for exponent in range(-6, 1):
        definite = factor.clone()
        definite.diagonal().add_(10.0**exponent * mean)
        root, failed = torch.linalg.cholesky_ex(definite)
        if not failed:
            return root
    raise torch.linalg.LinAlgError("the matrix has negative eigenvalues as large as its mean diagonal")


def expected_loss(
    candidate: Float[Tensor, "n n"],
    held_out_root: Float[Tensor, "n n"],
    steps: Float[Tensor, " n"] | None = None,
    *,
    order: Order = "diagonal",
) -> float:
    """Σ_j c_j [L^-1 H* L^-T]_jj with L D L^T the candidate in the order in which rounding takes it.

    Args:
        candidate: a factor that rounding could use.
        held_out_root: R with R R^T = H*, the same factor measured on other text.
        steps: c, squared steps of the grid along this side; None takes them as equal.
        order: in which rounding takes this side, see `round_two_sided`.

    Raises:
        torch.linalg.LinAlgError: the candidate is not positive definite.
    """
    if order == "diagonal":
        places = candidate.diagonal().argsort(stable=True)
        candidate, held_out_root = candidate[places.unsqueeze(1), places], held_out_root[places]
        steps = None if steps is None else steps[places]
    unit = torch.linalg.cholesky(candidate)
    del candidate  # a factor of a wide layer is large: none is kept longer than it is needed
    unit.div_(unit.diagonal().clone())
    moved = torch.linalg.solve_triangular(unit, held_out_root, upper=False, unitriangular=True)
    diagonal = moved.square_().sum(dim=1)
    return float(diagonal.sum() if steps is None else (steps * diagonal).sum())


def choose_shrinkage(
    factor: Float[Tensor, "n n"],
    held_out: Float[Tensor, "n n"],
    *,
    target: Float[Tensor, "n n"] | None = None,
    steps: Float[Tensor, " n"] | None = None,
    dampings: Sequence[float] = DAMPINGS,
    mixes: Sequence[float] = MIXES,
    order: Order = "diagonal",
) -> Shrinkage:
    """The shrinkage with the smallest expected loss on held-out text; the identity where nothing beats it.

    For each mix dampings are walked downhill from the best one so far: in them the loss has one valley, from a factor
    that is trusted too much to the identity.

    Args:
        factor: estimated on the fitting part.
        held_out: the same factor on the held-out part.
        target: a better-estimated matrix to shrink toward, from the fitting part.
        steps: squared steps of the grid along this side.
        dampings: what is tried, ascending.
        mixes: what is tried where there is a target.
        order: in which rounding takes this side.
    """
    best = Shrinkage(float("inf"))
    held_out = normalised(held_out)
    diagonal = held_out.diagonal()
    identity_loss = float(diagonal.sum() if steps is None else (steps * diagonal).sum())
    if identity_loss <= 0 or not factor.any():
        return best
    root = square_root(held_out)
    del held_out, diagonal
    place = len(dampings) // 2
    for mix in mixes if target is not None else (0.0,):
        tried: dict[int, float] = {}

        def loss_at(index: int, mix: float = mix, tried: dict[int, float] = tried) -> float:
            if not 0 <= index < len(dampings):
                return float("inf")
            if index not in tried:
                candidate = shrink(factor, damping=dampings[index], mix=mix, target=target)
                loss = expected_loss(candidate, root, steps, order=order)
                tried[index] = loss / identity_loss
            return tried[index]

        while True:
            lower = min((place - 1, place + 1), key=loss_at)
            if loss_at(lower) >= loss_at(place):
                break
            place = lower
        if loss_at(place) < best.loss:
            best = Shrinkage(dampings[place], mix, loss_at(place))
    return best
