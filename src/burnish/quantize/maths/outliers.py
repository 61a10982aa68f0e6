"""How far a few numbers stand out: in the inputs of a layer, channel by channel and token by token, and in its weights.

A grid of 8 bits for a token reaches as far as the token's largest number, whichever channel that is in, so that its
step for all the others is the largest over 127. What is told of inputs x (tokens, channels), from sums alone:

    max over rms      max |x| / √(mean x²)
    max over median   the largest of the channels' max |x| over their median
    kurtosis          mean (x - μ)⁴ / σ⁴ - 3 over all numbers, 0 for a normal distribution
    energy            share of Σ x² in the hundredth of the channels that have most of it
    tokens            share of the tokens whose largest number is more than half of the largest of all; of these, the
                      share that begins a text
    8 bits            √(Σ (x - Q(x))² / Σ x²) where every token is rounded to its own symmetric grid

and of weights W (m, n): the median over groups of max |w| / rms (a normal group of 64 has about 2.5), kurtosis as they
are and rotated by a random Hadamard matrix along the inputs, and incoherence max |W| √(m n) / ‖W‖_F.

Sources: massive activations at first and delimiter tokens, arXiv:2402.17762; incoherence, arXiv:2307.13304.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.quantize.maths.channel_bias import rounded_by_token
from burnish.quantize.maths.rotation import random_signs, rotate

TOP = 100
"""One channel in so many, at least one, is those that have most of the energy."""


@dataclass
class InputSums:
    """Sums over tokens of one tensor that matrices read, in float64.

    Attributes:
        powers: Σ x, Σ x², Σ x³ and Σ x⁴, (4, channels).
        lowest, highest: of each channel.
        largest: max |x| of each token, in pieces as they came.
        begins: whether each of these tokens begins a text.
        error: Σ (x - Q(x))² at 8 bits.
    """

    powers: Float[Tensor, "4 channels"]
    lowest: Float[Tensor, " channels"]
    highest: Float[Tensor, " channels"]
    largest: list[Float[Tensor, " tokens"]] = field(default_factory=list)
    begins: list[Bool[Tensor, " tokens"]] = field(default_factory=list)
    error: float = 0.0

    @classmethod
    def empty(cls, channels: int) -> InputSums:
        infinite = torch.full((channels,), torch.inf, dtype=torch.float64)
        return cls(torch.zeros(4, channels, dtype=torch.float64), infinite, -infinite)

    def add(self, x: Float[Tensor, "tokens channels"], begins: Bool[Tensor, " tokens"]) -> None:
        """Adds tokens, and whether each begins a text."""
        wide = x.double()
        square = wide.square()
        sums = torch.stack([wide.sum(0), square.sum(0), (square * wide).sum(0), square.square().sum(0)])
        self.powers += sums.cpu()
        self.lowest = torch.minimum(self.lowest, wide.amin(0).cpu())
        self.highest = torch.maximum(self.highest, wide.amax(0).cpu())
        self.largest.append(wide.abs().amax(1).cpu())
        self.begins.append(begins.cpu())
        self.error += float((wide - rounded_by_token(wide)).square().sum())

    @property
    def channel_largest(self) -> Float[Tensor, " channels"]:
        return torch.maximum(self.highest, -self.lowest)

    @property
    def mean(self) -> Float[Tensor, " channels"]:
        return self.powers[0] / sum(map(len, self.largest))

    @property
    def mid_range(self) -> Float[Tensor, " channels"]:
        """(lowest + highest) / 2 of each channel."""
        return (self.lowest + self.highest) / 2

    def told(self) -> dict[str, float | int]:
        """The numbers above, and the channel of the largest one; tokens must have been added, not all of them zero."""
        largest, begins = torch.cat(self.largest), torch.cat(self.begins)
        first, second, third, fourth = self.powers.sum(1) / (len(largest) * self.powers.shape[1])
        variance = second - first**2
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        by_channel, energy = self.channel_largest, self.powers[1]
        causing = largest > largest.max() / 2
        top = energy.topk(max(1, len(energy) // TOP)).values.sum() / energy.sum()
        return {
            "max_over_rms": float(largest.max() / second.sqrt()),
            "error_8_bits": float((self.error / self.powers[1].sum()) ** 0.5),
            "max_over_median": float(by_channel.max() / by_channel.median()),
            "kurtosis": float(central / variance**2 - 3),
            "channel": int(by_channel.argmax()),
            "tokens": float(causing.double().mean()),
            "begin": float(begins[causing].double().mean()),
            "energy": float(top),
        }


def of_weights(weight: Float[Tensor, "out in"], group_size: int) -> dict[str, float]:
    """What is told of weights; a last group that is not whole is left out."""
    wide = weight.double()
    width = min(group_size, wide.shape[1])
    groups = wide[:, : wide.shape[1] // width * width].unflatten(1, (-1, width))
    ranges = groups.abs().amax(2) / groups.square().mean(2).sqrt()
    signs = random_signs(wide.shape[1], torch.Generator().manual_seed(0)).to(wide)
    return {
        "group_range": float(ranges.nanmedian()),
        "weight_kurtosis": kurtosis(wide),
        "rotated_kurtosis": kurtosis(rotate(wide, signs)),
        "incoherence": float(wide.abs().max() * wide.numel() ** 0.5 / wide.norm()),
    }


def kurtosis(x: Float[Tensor, "*any"]) -> float:
    """mean (x - μ)⁴ / σ⁴ - 3."""
    square = (x - x.mean()).square()
    return float(square.square().mean() / square.mean() ** 2 - 3)
