"""The layers of a network whose weights have few levels while they are trained, and how far they are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from burnish.qat.maths.few_levels import Levels, codes, few_levels, stored_scale
from burnish.train.losses import STEP, STEPS, Batch, Loss, LossFn

FACTOR_DTYPE = torch.bfloat16
"""Of a part of low rank, on disk."""


class FewLevels(nn.Module):
    """A parametrisation (`torch.nn.utils.parametrize`) of a weight (out, in) by what is trained, in this order: a
    latent weight, scales (out, groups) and, with a part of low rank, its factors A (rank, in) and B (out, rank).

    Args:
        levels: lowest and highest.
        start: of what is trained.
        stored: dtype of the checkpoint.

    Attributes:
        part: λ, how far weights are rounded; 1 is what is written.
    """

    def __init__(self, levels: Levels, start: Sequence[Tensor], stored: torch.dtype) -> None:
        super().__init__()
        self.levels, self.stored, self.part = levels, stored, 1.0
        self.start: tuple[Tensor, ...] | None = tuple(start)

    def forward(self, latent: Tensor, scale: Tensor, *factors: Tensor) -> Float[Tensor, "out in"]:
        rounded = few_levels(latent, scale, self.levels, self.stored, self.part)
        if not factors:
            return rounded
        down, up = (_as_written(factor) for factor in factors)
        return rounded + up @ down

    def right_inverse(self, weight: Float[Tensor, "out in"]) -> tuple[Tensor, ...]:
        """Where training begins."""
        assert self.start is not None, "a parametrisation begins once"
        start, self.start = self.start, None
        return start

    def written(self, latent: Tensor, scale: Tensor) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out groups"]]:
        """Codes and scales of what is written."""
        rounded = stored_scale(scale, self.stored)
        return codes(latent, rounded, self.levels), rounded


def _as_written(factor: Tensor) -> Tensor:
    """A factor in the precision in which it is written; the gradient passes."""
    return factor + (factor.detach().to(FACTOR_DTYPE).to(factor.dtype) - factor.detach())


@dataclass
class Ramped:
    """A `LossFn` under which weights go from dense to rounded in the first steps; what is measured is always rounded.

    Attributes:
        loss: of the model.
        parts: the layers' parametrisations.
        ramp: share of the steps.
    """

    loss: LossFn
    parts: Sequence[FewLevels]
    ramp: float

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        part = ramped(int(batch[STEP]), int(batch[STEPS]), self.ramp) if STEP in batch else 1.0
        for one in self.parts:
            one.part = part
        return self.loss(model, batch)


def ramped(step: int, steps: int, ramp: float) -> float:
    """λ: the share of the ramp's steps that lie behind."""
    return min(1.0, step / (ramp * steps)) if ramp > 0 else 1.0
