"""The output projection of a converted layer, fitted so that attention gives what the original's gave.

What it is fitted to is the attention output of the original model on its own activations; what it is given comes from
the converted layers before it, so that it also takes back a part of what those have lost. Every fourth batch of the
text is held out to choose how far to go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from burnish.arch import HiddenStates, capture, layers, matrices
from burnish.convert.maths.refit import RegressionSums, chosen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_OUT = 4
"""Every so many-th batch."""


def refit(
    source: PreTrainedModel,
    new: PreTrainedModel,
    number: int,
    original: Sequence[HiddenStates],
    text: Sequence[HiddenStates],
) -> tuple[Float64[Tensor, "hidden heads"], float, float]:
    """The output projection of a layer, and its relative error on held-out text before and after.

    Args:
        source, new: the networks, of which the new one is converted up to this layer.
        number: of the layer.
        original: at least two batches, in front of the source's layer.
        text: the same, in front of the new one's.
    """
    view = next(view for view in matrices(source) if view.layer == number and view.role == "o")
    weight = view.tensor
    sums: dict[bool, RegressionSums] = {}
    for place, (before, states) in enumerate(zip(original, text, strict=True)):
        wanted = heads(source, number, before) @ weight.mT
        pairs = RegressionSums.of(heads(new, number, states), wanted)
        use = is_held_out(place, len(text))
        sums[use] = sums[use] + pairs if use in sums else pairs
    return chosen(weight.to("cpu", torch.float64), sums[False], sums[True])


def is_held_out(place: int, num_batches: int) -> bool:
    """Whether a batch is not fitted to, but chooses how far to go."""
    return place % HELD_OUT == HELD_OUT - 1 or (num_batches < HELD_OUT and place == num_batches - 1)


def heads(module: PreTrainedModel, number: int, states: HiddenStates) -> Float[Tensor, "tokens heads"]:
    """What the output projection of a layer is given."""
    view = next(view for view in matrices(module) if view.layer == number and view.role == "o")
    seen: list[Tensor] = []
    with capture(module, [view]) as captured:
        captured.callback = lambda view, inputs, gradients, token_index: seen.append(inputs)
        states.through(number, layers(module)[number][1])
    return seen[0]
