"""A linear layer fitted again, so that its changed inputs give the outputs that it was meant to give.

For inputs X and wanted outputs Y, near the weight W that is there,

    min over V of |Y - X V^T|^2 + ridge |V - W|^2        is        V^T = W^T + (X^T X + ridge I)^-1 X^T (Y - X W^T).

A small ridge fits the text that it sees, and loses on other text; the ridge is chosen on text that was held out, and
leaving the weight as it is is one of the choices. Only sums over tokens are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""In mean second moments of an input."""


@dataclass(frozen=True)
class RegressionSums:
    """Sums over tokens: X^T X, X^T Y and |Y|^2."""

    gram: Float64[Tensor, "inputs inputs"]
    cross: Float64[Tensor, "inputs outputs"]
    energy: Float64[Tensor, ""]

    @classmethod
    def of(cls, inputs: Float[Tensor, "tokens inputs"], outputs: Float[Tensor, "tokens outputs"]) -> RegressionSums:
        x, y = inputs.to("cpu", torch.float64), outputs.to("cpu", torch.float64)
        return cls(x.mT @ x, x.mT @ y, y.square().sum())

    def __add__(self, other: RegressionSums) -> RegressionSums:
        return RegressionSums(self.gram + other.gram, self.cross + other.cross, self.energy + other.energy)

    def error(self, weight: Float64[Tensor, "outputs inputs"]) -> float:
        """|Y - X W^T|^2 / |Y|^2."""
        explained = 2 * (weight * self.cross.mT).sum() - ((weight @ self.gram) * weight).sum()
        return float(1 - explained / self.energy.clamp(min=1e-300))


def refitted(
    weight: Float64[Tensor, "outputs inputs"], fit: RegressionSums, ridge: float
) -> Float64[Tensor, "outputs inputs"]:
    """The minimum above; the ridge is in mean second moments of an input."""
    damping = ridge * fit.gram.diagonal().mean()
    damped = fit.gram + damping * torch.eye(len(fit.gram), dtype=torch.float64)
    return weight + torch.linalg.solve(damped, fit.cross - fit.gram @ weight.mT).mT


def chosen(
    weight: Float64[Tensor, "outputs inputs"],
    fit: RegressionSums,
    held_out: RegressionSums,
    ridges: Sequence[float] = RIDGES,
) -> tuple[Float64[Tensor, "outputs inputs"], float, float]:
    """The weight with the smallest error on held-out text, which may be the one that is there.

    Returns:
        The weight, and the held-out errors before and after.
    """
    before = held_out.error(weight)
    tried = [weight, *(refitted(weight, fit, ridge) for ridge in ridges)]
    errors = [before, *(held_out.error(other) for other in tried[1:])]
    best = min(range(len(tried)), key=errors.__getitem__)
    return tried[best], before, errors[best]
