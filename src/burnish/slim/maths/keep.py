"""What is kept: the highest scores, in their old order, and the widths of a schedule of rounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def keep_highest(scores: Float[Tensor, "*batch width"], count: int) -> Int[Tensor, "*batch count"]:
    """Indices of the `count` highest scores of each row, ascending; among equals the first ones win.

    Ascending order makes keeping everything the identity, bit for bit.
    """
    order = torch.argsort(scores, dim=-1, descending=True, stable=True)
    return order[..., :count].sort(dim=-1).values


def geometric_widths(first: int, last: int, num_rounds: int, multiple: int) -> list[int]:
    """Widths after each of `num_rounds` cuts that all shrink by about the same ratio; the last is `last` exactly.

    f_i = first (last / first)^(i / num_rounds), rounded to `multiple`.
    """
    ratio = (last / first) ** (1 / num_rounds)
    return ratio_widths(first, last, [ratio] * (num_rounds - 1), multiple)


def ratio_widths(first: int, last: int, ratios: Sequence[float], multiple: int) -> list[int]:
    """Widths after len(ratios) + 1 cuts, of which each but the last leaves that share of what it finds.

    Shares are of the exact widths, before they are rounded to `multiple`; the last width is `last` exactly.
    """
    widths, exact = [], float(first)
    for ratio in ratios:
        exact *= ratio
        widths.append(min(max(multiple * round(exact / multiple), last), first))
    return [*widths, last]
