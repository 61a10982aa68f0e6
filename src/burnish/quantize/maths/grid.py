"""The values that a quantized weight may take.

A rounding needs two things of a grid: the parameters of every element (`parameters`, tensors shaped like the weight)
and the nearest value of an element under its parameters (`nearest`, element by element). Any scalar codebook fits; a
codebook of vectors fits where a rounding hands it whole tiles.

`IntegerGrid` is the uniform one of the compressed-tensors format: value = (q - z) * s with q in
[-2^(b-1), 2^(b-1) - 1], one scale s (and zero point z) per group of consecutive inputs of one output row.

* symmetric: z = 0 and s = absmax / ((2^b - 1) / 2), so that the range is centred on zero up to half a step. This is the
  format's own convention, not absmax / (2^(b-1) - 1).
* symmetric and signed: z = 0 and s = -w / 2^(b-1) for the weight w of the largest size, which becomes the last level
  whichever sign it has. Steps are shorter, by an eighth at 3 bits, and nothing is cut off at that end. Readers multiply
  codes by scales, so that the sign of a scale is nothing to them.
* asymmetric: s = (max - min) / (2^b - 1) with min <= 0 <= max, and z = round(-2^(b-1) - min / s).

Source: the compressed-tensors package (Apache-2.0), `quantization.utils.calculate_qparams`; signed scales as in
llama.cpp's and AutoRound's symmetric formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

CLIP_RATIOS = tuple(1.0 - 0.025 * step for step in range(21))
"""1.0, 0.975 ... 0.5: what `scale_search` tries."""


@runtime_checkable
class Grid(Protocol):
    """What a rounding needs to know of a grid."""

    def parameters(self) -> tuple[Tensor, ...]:
        """Parameters of every element, each shaped like the weight."""
        ...

    def nearest(self, values: Tensor, *parameters: Tensor) -> Tensor:
        """The grid value nearest to each of `values`, elements of any shape with their parameters."""
        ...


@dataclass(frozen=True)
class IntegerGrid:
    """A uniform grid with `2**bits` levels per group.

    Attributes:
        bits: 2 to 8.
        symmetric: without zero points.
        group_size: consecutive inputs of one row that share a scale.
        scale: step per group.
        zero: zero point per group, in the range of the codes; zeros where symmetric.
        bounded: whether codes are kept within their 2^b levels; an unbounded grid is for proofs.
    """

    bits: int
    symmetric: bool
    group_size: int
    scale: Float[Tensor, "*batch out groups"]
    zero: Float[Tensor, "*batch out groups"]
    bounded: bool = True

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def parameters(self) -> tuple[Tensor, Tensor]:
        return self._spread(self.scale), self._spread(self.zero)

    def _spread(self, per_group: Tensor) -> Tensor:
        return per_group.repeat_interleave(self.group_size, dim=-1)

    def codes_of(self, values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """round(v / s) + z, kept within the levels."""
        codes = (values / scale).round_().add_(zero)
        return codes.clamp_(self.lowest, self.highest) if self.bounded else codes

    def nearest(self, values: Tensor, *parameters: Tensor) -> Tensor:
        scale, zero = parameters
        return self.codes_of(values, scale, zero).sub_(zero).mul_(scale)

    def codes(self, values: Float[Tensor, "*batch out in"]) -> Int[Tensor, "*batch out in"]:
        """The integers q behind values that lie on the grid."""
        groups = values.unflatten(-1, (-1, self.group_size))
        return self.codes_of(groups, self.scale.unsqueeze(-1), self.zero.unsqueeze(-1)).to(torch.int8).flatten(-2)

    def levels(self, codes: Int[Tensor, "*batch out in"]) -> Float[Tensor, "*batch out in"]:
        """q - z."""
        groups = codes.unflatten(-1, (-1, self.group_size)).to(self.scale.dtype)
        return groups.sub_(self.zero.unsqueeze(-1)).flatten(-2)

    def values(self, codes: Int[Tensor, "*batch out in"]) -> Float[Tensor, "*batch out in"]:
        """(q - z) * s."""
        groups = self.levels(codes).unflatten(-1, (-1, self.group_size))
        return groups.mul_(self.scale.unsqueeze(-1)).flatten(-2)


def integer_grid(
    weight: Float[Tensor, "*batch out in"],
    *,
    bits: int,
    group_size: int,
    symmetric: bool = True,
    signed: bool = False,
    clip: Float[Tensor, "*batch out groups"] | float = 1.0,
    scale_dtype: torch.dtype | None = None,
) -> IntegerGrid:
    """The grid that spans every group of a weight.

    Args:
        weight: the original weight.
        bits: 2 to 8.
        group_size: must divide the number of inputs; the number of inputs itself gives one scale per row.
        symmetric: without zero points.
        signed: a symmetric grid has one level more on one side; where scales may be negative, that side is the one of
            the group's largest weight, which becomes the last level, so that steps are smaller. Otherwise it is the
            negative side, and the largest weight lies half a step beyond the last level of the other one.
        clip: the spanned range as a part of the group's own range, per group or for all.
        scale_dtype: what the checkpoint will store scales in; they are rounded to it here, so that the rounding sees
            the grid that a reader of the checkpoint will see. None keeps the weight's dtype.
    """
    groups = weight.unflatten(-1, (-1, group_size))
    low, high = groups.amin(dim=-1).clamp(max=0) * clip, groups.amax(dim=-1).clamp(min=0) * clip
    levels = 2**bits - 1
    # Divided by a tensor: a GPU multiplies by the inverse of a number, and then the largest weight of a group, which
    # is 3.5 steps of a symmetric 3-bit grid, goes to either side of that tie.
    if symmetric and signed:
        scale = torch.where(-low >= high, low, high) / torch.full_like(low, -(2 ** (bits - 1)))
    elif symmetric:
        scale = torch.maximum(-low, high) / torch.full_like(low, levels / 2)
    else:
        scale = (high - low) / torch.full_like(low, levels)
    if scale_dtype is not None:
        scale = scale.to(scale_dtype).to(weight.dtype)
    smallest = torch.finfo(scale_dtype or weight.dtype).tiny
    scale = torch.where(scale.abs() < smallest, torch.ones_like(scale), scale)  # a group of zeros: any step will do
    lowest = -(2 ** (bits - 1))
    if symmetric:
        zero = torch.zeros_like(scale)
    else:
        zero = torch.round(lowest - low / scale).clamp_(lowest, lowest + levels)
    return IntegerGrid(bits, symmetric, group_size, scale, zero)


def search_scale(
    weight: Float[Tensor, "*batch out in"],
    importance: Float[Tensor, "*batch in"] | None,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = True,
    signed: bool = False,
    scale_dtype: torch.dtype | None = None,
    ratios: tuple[float, ...] = CLIP_RATIOS,
) -> IntegerGrid:
    """The grid whose clipping ratio, chosen per group, minimises Σ_j h_j (w_j - nearest(w_j))².

    Args:
        weight: the original weight.
        importance: h, the diagonal of the input-side factor; None weighs all inputs alike.
        bits, group_size, symmetric, signed, scale_dtype: as in `integer_grid`.
        ratios: what is tried.
    """
    spanning = partial(
        integer_grid,
        weight,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        signed=signed,
        scale_dtype=scale_dtype,
    )
    best_error: Tensor | None = None
    best_ratio = torch.ones(())
    for ratio in ratios:
        grid = spanning(clip=ratio)
        squared = (weight - grid.nearest(weight, *grid.parameters())).square()
        if importance is not None:
            squared = squared * importance.unsqueeze(-2)
        error = squared.unflatten(-1, (-1, group_size)).sum(dim=-1)
        if best_error is None:
            best_error, best_ratio = error, torch.full_like(error, ratio)
        else:
            best_ratio = torch.where(error < best_error, ratio, best_ratio)
            best_error = torch.minimum(error, best_error)
    return spanning(clip=best_ratio)


AnyGrid = TypeVar("AnyGrid", bound=Any)


def combine(grids: Sequence[AnyGrid], join: Callable[[list[Tensor]], Tensor]) -> AnyGrid:
    """One grid of several that differ in their tensors only: `torch.stack` for a batch, `torch.cat` for more rows."""
    parts = {part.name: [getattr(grid, part.name) for grid in grids] for part in fields(grids[0])}
    return replace(grids[0], **{name: join(part) for name, part in parts.items() if isinstance(part[0], Tensor)})
