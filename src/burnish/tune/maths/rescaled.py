"""A packed weight as a function of its scales, and a norm's gain as a function of a relative one.

    W = R(q * R(s * r))          q whole levels, s the scales of the checkpoint, r trained from 1
    g = R(g_0 + m * (r - 1))     m = mean |g_0|, or 1 where all of them are zero

R rounds to the dtype of the checkpoint, so what is trained is what is written: at r = 1 both are the checkpoint's own,
bit for bit. The gradient passes R unchanged:

    dL/dr = s * sum over the group of dL/dW * q

The levels are kept as whole numbers, and backward needs nothing else.

Source: the project's own; the gradient through rounding is the straight-through estimator (Bengio et al., "Estimating
or Propagating Gradients Through Stochastic Neurons", 2013, arXiv:1308.3432).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Rescaled(nn.Module):
    """A parametrisation (`torch.nn.utils.parametrize`) of a weight (out, in) by relative scales (out, groups).

    Args:
        levels: codes less their zero points.
        scale: of every group, in the dtype of the checkpoint.
    """

    levels: Tensor
    scale: Tensor

    def __init__(self, levels: Int[Tensor, "out in"], scale: Float[Tensor, "out groups"]) -> None:
        super().__init__()
        self.stored = scale.dtype
        self.register_buffer("levels", levels, persistent=False)  # given again, not kept in states of a training
        self.register_buffer("scale", scale.float(), persistent=False)

    def forward(self, relative: Float[Tensor, "out groups"]) -> Float[Tensor, "out in"]:
        return _Product.apply(relative, self.scale, self.levels, self.stored)

    def right_inverse(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out groups"]:
        """Where training begins, whatever the weight."""
        return torch.ones_like(self.scale)

    def scales(self, relative: Float[Tensor, "out groups"]) -> Float[Tensor, "out groups"]:
        """What is written, in the dtype of the checkpoint."""
        return (self.scale * relative).to(self.stored)


class RelativeGain(nn.Module):
    """A parametrisation of a norm's gain (size) by a relative one.

    Args:
        gain: of the checkpoint, in its dtype.
    """

    gain: Tensor

    def __init__(self, gain: Float[Tensor, " size"]) -> None:
        super().__init__()
        self.stored = gain.dtype
        self.register_buffer("gain", gain.float(), persistent=False)
        self.step = float(gain.float().abs().mean()) or 1.0

    def forward(self, relative: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        exact = self.gain + self.step * (relative - 1)
        return exact + (exact.detach().to(self.stored).float() - exact.detach())

    def right_inverse(self, gain: Float[Tensor, " size"]) -> Float[Tensor, " size"]:
        """Where training begins, whatever the gain."""
        return torch.ones_like(self.gain)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, relative: Tensor, scale: Tensor, levels: Tensor, stored: torch.dtype) -> Tensor:
        ctx.save_for_backward(scale, levels)
        rounded = (scale * relative).to(stored).float()
        groups = levels.unflatten(1, (scale.shape[1], -1)).float()
        return (groups * rounded.unsqueeze(2)).flatten(1).to(stored).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        scale, levels = ctx.saved_tensors
        products = (gradients[0] * levels).unflatten(1, (scale.shape[1], -1))
        return products.sum(dim=2) * scale, None, None, None
