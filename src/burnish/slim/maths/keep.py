"""What is kept: the highest scores, in their old order, and the widths of a staged schedule."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def keep_highest(scores: Float[Tensor, "*batch width"], count: int) -> Int[Tensor, "*batch count"]:
    """Indices of the `count` highest scores of each row, ascending; among equals the first ones win.

    Ascending order makes keeping everything the identity, bit for bit.
    """
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values


def geometric_widths(first: int, last: int, num_stages: int, multiple: int) -> list[int]:
    """Widths after each of `num_stages` cuts that all shrink by about the same ratio; the last is `last` exactly.

    f_i = first (last / first)^(i / num_stages), rounded to `multiple`.
    """
    exact = [first * (last / first) ** (stage / num_stages) for stage in range(1, num_stages)]
    return [min(max(multiple * round(width / multiple), last), first) for width in exact] + [last]
