"""The eight-bit floating-point grid (E4M3): value = c * s with c a float8 number and one scale per row.

Four exponent bits and three of mantissa give 2^3 steps per octave, so that the error of an element is relative to the
element itself and not, as on a uniform grid, to the largest one of its group. s = absmax / 448, the largest number.

Source: FP8 Formats for Deep Learning (2022, arXiv:2209.05433); the scale is that of the compressed-tensors package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.quantize.maths.grid import IntegerGrid

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
"""448: the format has no infinity, and what is larger would become a NaN, so values are clamped first."""


@dataclass(frozen=True)
class FloatGrid:
    """The float8 numbers, scaled row by row.

    Attributes:
        group_size: inputs that share a scale: all of a row.
        scale: of every row.
    """

    group_size: int
    scale: Float[Tensor, "*batch out groups"]

    def parameters(self) -> tuple[Tensor]:
        return (self.scale.repeat_interleave(self.group_size, dim=-1),)

    def nearest(self, values: Tensor, *parameters: Tensor) -> Tensor:
        (scale,) = parameters
        return _float8(values / scale).to(values.dtype) * scale

    def codes(self, values: Float[Tensor, "*batch out in"]) -> Tensor:
        """The float8 numbers behind values that lie on the grid."""
        return _float8(values / self.parameters()[0])

    def levels(self, codes: Tensor) -> Float[Tensor, "*batch out in"]:
        """c."""
        return codes.to(self.scale.dtype)

    def values(self, codes: Tensor) -> Float[Tensor, "*batch out in"]:
        """c * s."""
        return self.levels(codes) * self.parameters()[0]


WeightGrid: TypeAlias = IntegerGrid | FloatGrid


def float_grid(weight: Float[Tensor, "*batch out in"], *, scale_dtype: torch.dtype | None = None) -> FloatGrid:
    """The grid that spans every row of a weight; `scale_dtype` as in `integer_grid`."""
    scale = weight.abs().amax(dim=-1, keepdim=True) / LARGEST
    if scale_dtype is not None:
        scale = scale.to(scale_dtype).to(weight.dtype)
    smallest = torch.finfo(scale_dtype or weight.dtype).tiny
    scale = torch.where(scale < smallest, torch.ones_like(scale), scale)  # a row of zeros: any scale will do
    return FloatGrid(weight.shape[-1], scale)


def _float8(values: Tensor) -> Tensor:
    return values.clamp(-LARGEST, LARGEST).to(FLOAT8)
