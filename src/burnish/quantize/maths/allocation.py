"""Mixed precision: which width every group of matrices gets, for the smallest damage within so many bytes.

    min over choices c of Σ_g Ω_g(c_g)   with   Σ_g size_g(c_g) <= budget          (multiple-choice knapsack)

Ω_g(b) is what rounding group g to b bits is expected to cost the model, to second order, in nats per token:

    Ω = 1/2 tr(H_O E H_I E^T) / tr H / tokens

with E the error that the rounding leaves and H_O, H_I the sums of the Kronecker factors of the Fisher matrix; both have
the trace tr H of what their product stands for. Layers are comparable in it: the unit is the model's own divergence.

The knapsack is solved exactly, by the list of partial sums that nothing dominates: a choice for the first groups is
kept unless another one is neither larger nor worse. Sizes that share a large common divisor keep that list short.

Source: the multiple-choice knapsack is a textbook problem (Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004); the
sensitivity follows from Model-Preserving Adaptive Rounding (2025, arXiv:2505.22988), which spends bits evenly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from burnish.quantize.maths.rounding import proxy_loss

ROWS = 4096
"""Of a vocabulary that are weighed at a time."""


def sensitivity(
    error: Float[Tensor, "out in"],
    output_sum: Float[Tensor, "out out"],
    input_sum: Float[Tensor, "in in"],
    num_tokens: int,
) -> float:
    """Ω of one matrix, see above; 0 where no gradient reached it.

    Args:
        error: W - What.
        output_sum, input_sum: Σ over the text of either sketch's sides, without shrinkage.
        num_tokens: that the text had.
    """
    trace = float(input_sum.diagonal().double().sum())
    if trace <= 0:
        return 0.0
    # Factors divided before they are multiplied: sums of squared gradients are small numbers.
    loss = proxy_loss(error.double(), output_sum.double() / trace, input_sum.double() / trace)
    return float(loss) * trace / (2 * num_tokens)


def sensitivity_of_rows(
    error: Float[Tensor, "rows width"],
    row_sum: Float[Tensor, " rows"],
    column_sum: Float[Tensor, "width width"],
    num_tokens: int,
) -> float:
    """Ω of one use of the vocabulary's rows, whose factor on that side is diagonal; 0 where no gradient reached them.

        Ω = 1/2 Σ_v a_v/Σa · E_v C E_v^T / tokens

    Args:
        error: W - What.
        row_sum: a, how much every row counts.
        column_sum: C, Σ over the text, without shrinkage.
        num_tokens: that the text had.
    """
    total = float(row_sum.double().sum())
    if total <= 0:
        return 0.0
    columns = column_sum.double()
    parts = zip(error.split(ROWS), row_sum.split(ROWS), strict=True)
    loss = sum(float((rows.double() @ ((e := part.double()) @ columns * e)).sum()) for part, rows in parts)
    return loss / total / (2 * num_tokens)


def allocate(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], budget: int) -> list[int]:
    """The choice of every group: the smallest sum of costs whose sizes fit the budget, and of those the smallest size.

    Args:
        costs: of every choice of every group.
        sizes: likewise, integers.
        budget: at least the sum of the smallest sizes.

    Raises:
        ValueError: not even the smallest choices fit.
    """
    least = [min(of_group) for of_group in sizes]
    if sum(least) > budget:
        raise ValueError(f"the smallest choices take {sum(least)}, the budget is {budget}")
    rest = [*np.cumsum(least[::-1])[::-1].tolist()[1:], 0]  # what the groups still to come need at least
    found_sizes, found_costs = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # of every partial choice: the one it extends, and its last part
    for of_group, to_come, group_costs in zip(sizes, rest, costs, strict=True):
        added = np.asarray(of_group, dtype=np.int64)
        every_size = (found_sizes[:, None] + added).ravel()
        every_cost = (found_costs[:, None] + np.asarray(group_costs, dtype=np.float64)).ravel()
        order = np.lexsort((every_cost, every_size))
        order = order[every_size[order] <= budget - to_come]
        ordered = every_cost[order]
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(ordered)[:-1]])
        kept = order[ordered < best_before]
        steps.append((kept // len(added), kept % len(added)))
        found_sizes, found_costs = every_size[kept], every_cost[kept]
    place, choices = len(found_costs) - 1, []  # the last one is the cheapest
    for before, choice in reversed(steps):
        choices.append(int(choice[place]))
        place = int(before[place])
    return choices[::-1]
