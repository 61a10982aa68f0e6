"""Refitted scales: the codes stay, and the scales of a row become those with the smallest weighted error.

    min over s of (w - Σ_g s_g q_g) H (w - Σ_g s_g q_g)^T,      q_g the levels of group g, zero elsewhere

A grid is laid over the original weight before anything is rounded. Rounding with feedback then moves targets, beyond
the grid's ends too, so that afterwards other scales fit the codes better. They solve the normal equations

    A s = b,      A_gh = q_g H q_h^T,      b_g = q_g H w^T,

one small system for every row. A checkpoint stores scales in few bits: the solution is rounded and then improved one
scale at a time, each to the stored number with the smallest error under the others as they are. No step raises the
error, and a row whose old scales are no worse keeps them.

Source: the project's own; the normal equations are those of weighted least squares.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SYSTEM_NUMBERS = 16_000_000
"""Numbers in the systems that are held at once; rows are taken in parts."""
SWEEPS = 3
"""Over the scales of a row after rounding them; later ones hardly change any."""


def refit_scales(
    weight: Float[Tensor, "out in"],
    levels: Float[Tensor, "out in"],
    scale: Float[Tensor, "out groups"],
    factor: Float[Tensor, "in in"],
    *,
    scale_dtype: torch.dtype | None = None,
) -> Float[Tensor, "out groups"]:
    """Scales, of the present signs, under which levels * scale is close to the weight.

    Args:
        weight: the original weight.
        levels: what a scale of 1 would give: codes less their zero point.
        scale: the present scales, numbers of `scale_dtype`.
        factor: H, positive semidefinite; with a singular one scales are improved one by one only.
        scale_dtype: what the checkpoint stores scales in; None keeps them as they are computed.
    """
    num_rows = max(SYSTEM_NUMBERS // scale.shape[1] ** 2, 1)
    parts = zip(weight.split(num_rows), levels.split(num_rows), scale.split(num_rows), strict=True)
    return torch.cat([_refit_rows(w, q, s, factor, scale_dtype) for w, q, s in parts])


def normal_equations(
    weight: Float[Tensor, "out in"], levels: Float[Tensor, "out in"], factor: Float[Tensor, "in in"], num_groups: int
) -> tuple[Float[Tensor, "out groups groups"], Float[Tensor, "out groups"]]:
    """A and b of every row, in float64."""
    groups = weight.shape[1] // num_groups
    systems = weight.new_empty(len(weight), num_groups, num_groups, dtype=torch.float64)
    for number, columns in enumerate(torch.arange(weight.shape[1], device=weight.device).split(groups)):
        moved = levels[:, columns] @ factor[columns]
        systems[:, number] = (moved * levels).unflatten(1, (num_groups, groups)).sum(dim=2)
    right = ((weight @ factor) * levels).unflatten(1, (num_groups, groups)).sum(dim=2)
    return systems, right.double()


def _refit_rows(
    weight: Tensor, levels: Tensor, scale: Tensor, factor: Tensor, scale_dtype: torch.dtype | None
) -> Tensor:
    signs = scale.sign()
    levels = levels * signs.repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    systems, right = normal_equations(weight, levels, factor, scale.shape[1])
    before = scale.abs().double()
    stored = torch.finfo(scale_dtype or weight.dtype)

    def storable(values: Tensor) -> Tensor:
        kept = values.clamp(min=stored.tiny, max=stored.max)
        return kept.to(scale_dtype or weight.dtype).double()

    diagonal = systems.diagonal(dim1=1, dim2=2)
    idle = diagonal == 0  # a group whose levels are all zero: any scale will do
    diagonal += idle
    right = torch.where(idle, before, right)
    root, failed = torch.linalg.cholesky_ex(systems)
    solved = torch.cholesky_solve(right.unsqueeze(2), root).squeeze(2)
    fitted = storable(torch.where(failed.unsqueeze(1) > 0, before, solved))
    for _ in range(SWEEPS):
        for group in range(scale.shape[1]):
            rest = right[:, group] - (systems[:, group] * fitted).sum(dim=1)
            fitted[:, group] = storable(fitted[:, group] + rest / diagonal[:, group])

    def error(scales: Tensor) -> Tensor:  # less the error of zero weights
        return (scales * ((systems @ scales.unsqueeze(2)).squeeze(2) - 2 * right)).sum(dim=1)

    better = (error(fitted) < error(before)).unsqueeze(1) & ~idle
    return torch.where(better, fitted, before).to(weight.dtype) * signs
