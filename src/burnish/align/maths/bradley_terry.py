"""Bradley-Terry: the logistic loss of a margin, and the two functions of it that the other losses are made of.

A pair's margin is m = r(chosen) - r(rejected). Bradley and Terry's model ("Rank Analysis of Incomplete Block Designs",
1952) gives the label the probability sigma(m), so its loss is

    f(m) = -log sigma(m) = softplus(-m),        df/dm = -sigma(-m).

The information gained by knowing that probability, against a coin toss, is

    h(u) = log 2 + log sigma(u) - u sigma(-u) = KL( Bernoulli(sigma(u)) || Bernoulli(1/2) ),

even in u, 0 at 0, rising to log 2. Adaptive preference scaling sets each pair's scale through it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

LOG_2 = math.log(2.0)

SERIES_BELOW = 0.1
"""Below this |u|, h(u) ~ u^2/8 loses digits in its closed form; the series is exact to 2e-15 there."""
SERIES = (1 / 8, -1 / 64, 1 / 576, -17 / 92160, 31 / 1612800)
"""h(u) = u^2/8 - u^4/64 + ...: the integral of h'(u) = u sech(u/2)^2 / 4, term by term."""


def logistic_loss(margin: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """softplus(-m), through logsigmoid, which neither overflows nor saturates."""
    return -F.logsigmoid(margin)


def information(u: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs"]:
    """h(u), in nats, for a tensor. Use float64 where digits matter."""
    size = u.abs()
    closed = LOG_2 - F.softplus(-size) - size * torch.sigmoid(-size)
    square = size.clamp(max=SERIES_BELOW).square()
    series = torch.zeros_like(square)
    for coefficient in reversed(SERIES):
        series = (series + coefficient) * square
    return torch.where(size < SERIES_BELOW, series, closed)


def scalar_information(u: float) -> float:
    """h(u) for one float."""
    size = abs(u)
    if size < SERIES_BELOW:
        series = 0.0
        for coefficient in reversed(SERIES):
            series = (series + coefficient) * size * size
        return series
    return LOG_2 - math.log1p(math.exp(-size)) - size / (1.0 + math.exp(size))
