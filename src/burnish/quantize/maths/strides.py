"""Rounding stride by stride: block-OBS steps, the cheapest stride of columns first.

Rounding a stride S of columns to q_S costs least where the columns R that are not rounded yet make up for it:

    w_R <- w_R - (w_S - q_S) [H⁻¹_SS]⁻¹ H⁻¹_SR,      cost = 1/2 (w_S - q_S) [H⁻¹_SS]⁻¹ (w_S - q_S)ᵀ,

after which S leaves the problem, H⁻¹_RR <- H⁻¹_RR - H⁻¹_RS [H⁻¹_SS]⁻¹ H⁻¹_SR. Costs add up to 1/2 tr(E H Eᵀ) exactly,
with E what was rounded away in the end, whatever the grid. A stride of one column in a fixed order is GPTQ, a stride of
all columns is nearest rounding. Of a convolution a column is one place of the kernel and one input channel; its natural
stride is the kernel of one channel.

Source: Optimal Brain Compression (2022, arXiv:2208.11580) for the step with blocks, GPTQ (2022, arXiv:2210.17323) for
the fixed order. Strides in ascending cost are the project's own reading of a method of which only the name and a
sentence are public (Optimal Brain Stride-wise Quantization, in a neural video codec).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class RoundedStrides:
    """What rounding stride by stride gives.

    Attributes:
        values: What.
        costs: of every stride, in the order of the columns.
        order: numbers of the strides as they were taken.
    """

    values: Float[Tensor, "out in"]
    costs: Float[Tensor, " strides"]
    order: Int[Tensor, " strides"]


def strides_of(num_columns: int, stride: int) -> list[slice]:
    """Consecutive columns together; the last stride may be shorter."""
    return [slice(start, min(start + stride, num_columns)) for start in range(0, num_columns, stride)]


def round_by_strides(
    weight: Float[Tensor, "out in"],
    factor: Float[Tensor, "in in"],
    nearest: Callable[[Float[Tensor, "out columns"], slice], Float[Tensor, "out columns"]],
    *,
    stride: int,
    order: Sequence[int] | None = None,
) -> RoundedStrides:
    """Rounds a weight so that 1/2 tr(E H Eᵀ) stays small.

    Args:
        weight: W; computed in its dtype.
        factor: H, positive definite.
        nearest: the values of the grid next to those of some columns.
        stride: columns that are rounded together.
        order: numbers of the strides, for a fixed order; None takes the cheapest of those that are left, each time.

    Raises:
        torch.linalg.LinAlgError: the factor is not positive definite.
    """
    parts = strides_of(weight.shape[1], stride)
    values, left = weight.clone(), list(range(len(parts))) if order is None else list(order)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(factor))
    costs, taken, rest = weight.new_zeros(len(parts)), [], torch.ones(weight.shape[1], dtype=torch.bool)

    def step(number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rounded columns, the error pulled back through H⁻¹_SS, and the cost."""
        part = parts[number]
        rounded = nearest(values[:, part], part)
        error = values[:, part] - rounded
        pulled = torch.cholesky_solve(error.mT, torch.linalg.cholesky(inverse[part, part]))
        return rounded, pulled, (error.mT * pulled).sum() / 2

    while left:
        number = left[0] if order is not None else min(left, key=lambda one: float(step(one)[2]))
        rounded, pulled, costs[number] = step(number)
        left.remove(number)
        taken.append(number)
        part = parts[number]
        rest[part] = False
        across = inverse[part][:, rest]
        values[:, part] = rounded
        values[:, rest] -= pulled.mT @ across
        solved = torch.cholesky_solve(across, torch.linalg.cholesky(inverse[part, part]))
        inverse[rest.unsqueeze(1) & rest] -= (across.mT @ solved).flatten()
    return RoundedStrides(values, costs, torch.tensor(taken))
