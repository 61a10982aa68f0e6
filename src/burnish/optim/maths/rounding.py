"""Rounding float32 to bfloat16 at random, so that updates below half a unit in the last place are kept on average.

A weight of 0.02 in bfloat16 moves in steps of 1.2e-4; an update of 2e-5 would always round away. Rounding up with
probability equal to the part that is cut off makes the expected value exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def stochastic_bfloat16(
    value: Float[Tensor, "*shape"], generator: torch.Generator | None = None
) -> Float[Tensor, "*shape"]:
    """bfloat16 neighbours of float32 values, the upper one with the probability that makes the mean exact.

    Adding a random 16-bit number to the bits that bfloat16 cuts off carries into the kept bits exactly that often;
    infinities and NaN are passed through.
    """
    noise = torch.randint(0, 1 << 16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    bits = value.contiguous().view(torch.int32).add(noise).bitwise_and_(-(1 << 16))
    return torch.where(value.isfinite(), bits.view(torch.float32), value).to(torch.bfloat16)
