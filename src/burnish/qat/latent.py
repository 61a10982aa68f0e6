"""The layers of a network whose weights have few levels while they are trained, and how far they are rounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from burnish.qat.maths.few_levels import Levels, codes, few_levels, stored_scale
from burnish.train.losses import STEP, STEPS, Batch, Loss, LossFn


class FewLevels(nn.Module):
    """A parametrisation (`torch.nn.utils.parametrize`) of a weight (out, in) by a latent one and scales (out, groups).

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

    def forward(self, latent: Tensor, scale: Tensor) -> Float[Tensor, "out in"]:
        return few_levels(latent, scale, self.levels, self.stored, self.part)

    def right_inverse(self, weight: Float[Tensor, "out in"]) -> tuple[Tensor, ...]:
        """Where training begins."""
        assert self.start is not None, "a parametrisation begins once"
        start, self.start = self.start, None
        return start

    def written(self, latent: Tensor, scale: Tensor) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out groups"]]:
        """Codes and scales of what is written."""
        rounded = stored_scale(scale, self.stored)
        return codes(latent, rounded, self.levels), rounded


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
