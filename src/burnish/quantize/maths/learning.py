"""Learned rounding: codes move by at most one step, and scales a little, by the gradient of whatever loss one has.

    What = s * clip(round(W / s + shift + offset)),      s = stored(s_0 * factor)

`offset`, one number per weight within +-1/2, decides to which side a weight is rounded; `factor`, one per group, moves
the scale. Rounding passes gradients through as if it were the identity, inside the levels; so do scales on their way to
the dtype in which they are stored. `shift` makes an offset of zero give any codes one likes to begin with, for instance
those of two-sided rounding: it moves a weight just inside the interval that is rounded to its code, from the weight's
own side. Where the code is the nearest one it is zero.

Codes of nearest rounding follow the scales, which so learn where to cut off (W / s above). Codes of a rule with
feedback were made to fit each other, and a scale that moved a few of them would undo that: there W / s_0 stands in its
place, and scales move values alone.

Only the sign of a gradient is followed: every offset and factor moves by the same step, which falls linearly to zero,
so that the whole way is just long enough to cross its bounds.

Source: Optimize Weight Rounding via Signed Gradient Descent (2023, arXiv:2309.05516), which starts at nearest rounding
and only shrinks scales; the shift and starting from other codes are the project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.quantize.maths.grid import IntegerGrid

LARGEST_OFFSET = 0.5
FACTORS = 0.5, 1.25
"""Between what a scale is multiplied with."""
MARGIN = 0.25
"""How far from the edge of its interval, in steps, a weight is moved that was rounded to another code than its own."""


@dataclass
class LearnedWeight:
    """One weight whose codes and scales are learned.

    Attributes:
        weight: the original.
        grid: that the codes at the start belong to; its scales are stored in `scale_dtype`.
        shift: see above.
        offset, factor: what is learned.
        coupled: whether codes are those of the learned scales; else of the scales at the start.
    """

    weight: Float[Tensor, "out in"]
    grid: IntegerGrid
    scale_dtype: torch.dtype
    shift: Float[Tensor, "out in"]
    offset: Float[Tensor, "out in"]
    factor: Float[Tensor, "out groups"]
    coupled: bool = True

    @classmethod
    def of(
        cls, weight: Float[Tensor, "out in"], codes: Tensor, grid: IntegerGrid, scale_dtype: torch.dtype
    ) -> LearnedWeight:
        """One that begins at these codes."""
        step = grid.parameters()[0]
        place, start = weight / step, grid.levels(codes)
        inside = start + (place - start).clamp(MARGIN - 0.5, 0.5 - MARGIN)
        is_nearest = start == grid.levels(grid.codes(weight))
        shift = torch.where(is_nearest, torch.zeros_like(place), inside - place)
        offset = torch.zeros_like(place).requires_grad_()
        factor = torch.ones_like(grid.scale).requires_grad_()
        return cls(weight, grid, scale_dtype, shift, offset, factor, coupled=bool(is_nearest.all()))

    def values(self) -> Float[Tensor, "out in"]:
        """What, differentiable in `offset` and `factor`."""
        scale = _Stored.apply(self.grid.scale * self.factor, self.scale_dtype)
        return _Rounded.apply(self.offset, scale, self.weight, self.shift, self.grid, self.coupled)

    def result(self) -> tuple[Tensor, IntegerGrid]:
        """The codes as they are now and their grid."""
        with torch.no_grad():
            scale = _Stored.apply(self.grid.scale * self.factor, self.scale_dtype)
            grid = replace(self.grid, scale=scale)
            levels = self.values() / grid.parameters()[0]
            return (levels.round() + grid.parameters()[1]).to(torch.int8), grid

    def variables(self) -> list[tuple[Tensor, tuple[float, float]]]:
        """What is learned, with its bounds."""
        return [(self.offset, (-LARGEST_OFFSET, LARGEST_OFFSET)), (self.factor, FACTORS)]


class _Stored(torch.autograd.Function):
    """Numbers as the checkpoint will hold them; the gradient is passed through."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor, dtype: torch.dtype) -> Tensor:
        return scale.to(dtype).to(scale.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Rounded(torch.autograd.Function):
    """s * clip(round(W / t + shift + offset)), with the gradient as if rounding were the identity.

    t is s, or where that is not coupled the scale at the start.
    """

    @staticmethod
    def forward(
        ctx: Any, offset: Tensor, scale: Tensor, weight: Tensor, shift: Tensor, grid: IntegerGrid, coupled: bool
    ) -> Tensor:
        step = scale.repeat_interleave(grid.group_size, dim=-1)
        at_start, zero = grid.parameters()
        place = weight / (step if coupled else at_start)
        rounded = (place + shift + offset).round_()
        levels = torch.maximum(torch.minimum(rounded, grid.highest - zero), grid.lowest - zero)
        inside = levels == rounded
        ctx.save_for_backward(scale, levels - place * inside if coupled else levels, inside)
        ctx.group_size = grid.group_size
        return levels * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        (gradient,) = gradients
        scale, by_scale, inside = ctx.saved_tensors
        step = scale.repeat_interleave(ctx.group_size, dim=-1)
        of_scale = (gradient * by_scale).unflatten(-1, (-1, ctx.group_size)).sum(dim=-1)
        return gradient * step * inside, of_scale, None, None, None, None


def descend(
    weights: Sequence[LearnedWeight],
    loss: Callable[[int], Tensor],
    *,
    iterations: int,
    optimizer: str = "sign",
    rate: float | None = None,
) -> None:
    """Learns the weights' offsets and factors.

    Args:
        weights: changed in place.
        loss: of the values that the weights have now; told the number of the iteration.
        iterations: steps.
        optimizer: "sign", or "adam".
        rate: the first step; None is 1 / iterations for signs and 0.01 for Adam. It falls linearly to zero.
    """
    first = rate if rate is not None else (1 / iterations if optimizer == "sign" else 0.01)
    variables = [variable for weight in weights for variable in weight.variables()]
    tensors = [tensor for tensor, _ in variables]
    adam = torch.optim.Adam(tensors, lr=first) if optimizer == "adam" else None
    for iteration in range(iterations):
        step = first * (1 - iteration / iterations)
        gradients = torch.autograd.grad(loss(iteration), tensors)
        with torch.no_grad():
            if adam is None:
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    tensor.sub_(gradient.sign_(), alpha=step)
            else:
                adam.param_groups[0]["lr"] = step
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    tensor.grad = gradient
                adam.step()
            for tensor, (low, high) in variables:
                tensor.clamp_(low, high)
