"""Weights of three or four levels as a function of a latent weight and scales, with a gradient that passes rounding.

    q(L, s) = clip(round(L / s), lowest, highest)         ternary: -1 .. 1, two bits: -2 .. 1
    What    = R(q * R(s))                                  R rounds to the dtype of the checkpoint
    W       = L + λ (What - L)

One scale s for every group of consecutive inputs of an output row. λ goes from 0 to 1 in the first part of a training:
at 0 the weight is the latent one, bit for bit, at 1 it is what is written, bit for bit. Backward takes rounding for the
identity within the clip, half a step beyond the outermost levels, and for a constant outside of it:

    dW/dL = 1 - λ [L / s outside of lowest - 1/2 .. highest + 1/2]
    dW/ds = λ (q - L / s) inside, λ q outside, summed over the group

Where training begins, s is one of two functions of the group's weights w that are homogeneous, so that
q(c L, s(c L)) s(c L) = c q(L, s(L)) s(L) for c > 0:

    absmean     mean |w|                   of BitNet b1.58: thresholds at .40 σ of a Gaussian weight, error .263 σ²
    gaussian    1.2240 sqrt(mean w²)       ternary: the least mean squared error of a Gaussian weight, .190 σ², with
                                           thresholds at .612 σ; 1.0484 and .149 σ² of two bits

Sources: The Era of 1-bit LLMs (BitNet b1.58), 2024, arXiv:2402.17764; the gradient of a scale as in Learned Step Size
Quantization, 2020, arXiv:1902.08153; the constants are those that numerical integration gives (tests).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ScaleRule = Literal["gaussian", "absmean"]

TERNARY, TWO_BITS = (-1, 1), (-2, 1)
GAUSSIAN_SCALE = {TERNARY: 1.2240063699, TWO_BITS: 1.0483852626}
"""Of weights of standard deviation 1: the scale of the least mean squared error, by the lowest and highest level."""

Levels = tuple[int, int]


def initial_scale(
    weight: Float[Tensor, "out in"], group_size: int, levels: Levels, rule: ScaleRule
) -> Float[Tensor, "out groups"]:
    """The scale of every group as a function of its weights; 1 where they are all zero."""
    groups = weight.unflatten(1, (-1, group_size))
    if rule == "absmean":
        scale = groups.abs().mean(dim=2)
    else:
        scale = GAUSSIAN_SCALE[levels] * groups.square().mean(dim=2).sqrt()
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def codes(
    weight: Float[Tensor, "out in"], scale: Float[Tensor, "out groups"], levels: Levels
) -> Float[Tensor, "out in"]:
    """q: the nearest levels."""
    return _steps(weight, scale).round().clamp(*levels).flatten(1)


def values(codes: Float[Tensor, "out in"], scale: Float[Tensor, "out groups"]) -> Float[Tensor, "out in"]:
    """q s."""
    return (codes.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(2)).flatten(1)


def stored_scale(scale: Float[Tensor, "out groups"], stored: torch.dtype) -> Float[Tensor, "out groups"]:
    """R(s): positive numbers that the checkpoint's dtype has."""
    return scale.clamp(min=torch.finfo(stored).tiny).to(stored).to(scale.dtype)


def _steps(weight: Tensor, scale: Tensor) -> Tensor:
    """L / s, (out, groups, inputs of a group)."""
    return weight.unflatten(1, (scale.shape[1], -1)) / scale.unsqueeze(2)


def few_levels(
    latent: Float[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    levels: Levels,
    stored: torch.dtype,
    part: float = 1.0,
) -> Float[Tensor, "out in"]:
    """W, with the gradient above.

    Args:
        latent: L.
        scale: s, before it is rounded.
        levels: lowest and highest.
        stored: dtype of the checkpoint.
        part: λ.
    """
    return _FewLevels.apply(latent, scale, levels, stored, part)


class _FewLevels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, levels: Levels, stored: torch.dtype, part: float) -> Tensor:
        ctx.save_for_backward(latent, scale)
        ctx.levels, ctx.stored, ctx.part = levels, stored, part
        if part == 0:
            return latent.clone()
        rounded = stored_scale(scale, stored)
        written = values(codes(latent, rounded, levels), rounded).to(stored).to(latent.dtype)
        return written if part == 1 else torch.lerp(latent, written, part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        latent, scale = ctx.saved_tensors
        (gradient,), part = gradients, ctx.part
        steps = _steps(latent, stored_scale(scale, ctx.stored))
        inside = within_clip(steps, ctx.levels)
        levels = steps.round().clamp_(*ctx.levels)
        of_scale = torch.where(inside, levels - steps, levels).mul_(gradient.unflatten(1, (scale.shape[1], -1)))
        of_latent = gradient * (1 - part * (~inside).flatten(1).to(gradient.dtype))
        return of_latent, part * of_scale.sum(dim=2), None, None, None


def within_clip(steps: Float[Tensor, "*shape"], levels: Levels) -> Bool[Tensor, "*shape"]:
    """Which L / s are at most half a step from a level."""
    return (steps >= levels[0] - 0.5) & (steps <= levels[1] + 0.5)
