"""The norm that DeepSeek puts on the latent, made harmless: a functional of the inputs near to one, and a weight.

The norm divides a token's keys and values by 1 + d, with d small where the functional is near to one. What that does to
the attention's output is d^2 times what the token's keys and values weigh there, and a few tokens weigh nearly all: the
first of a text, at which heads look that look for nothing, has keys unlike any other's. So half of the weight that a
token has in the fit is its share of that, and the other half is the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from burnish.arch import HiddenStates
from burnish.convert.maths.latent import near_constant

if TYPE_CHECKING:
    from burnish.convert.latent_layer import LatentWeights, Rest
    from burnish.convert.moments import Attention

RIDGE = 1e-3
"""Of the functional, in mean second moments of an input."""

NOTHING = 1e-9
"""Size of a latent, in that of the largest, that is zero but for rounding."""


class Steadied(NamedTuple):
    """What the norm is given, and what is left of it.

    Attributes:
        weight: of the norm, which undoes it on average.
        variation: standard deviation over mean of what it should undo.
        error: what it does to the attention's output, in squared size, for keys and values of full rank.
    """

    weight: float
    variation: float
    error: float


def inputs_of(attention: Attention, text: Sequence[HiddenStates]) -> Iterator[Float64[Tensor, "tokens hidden"]]:
    """What the projections of a layer read, a batch of windows at a time."""
    for states in text:
        yield attention.inputs(states).flatten(0, 1).to("cpu", torch.float64)


def token_costs(rest: Rest, attention: Attention, text: Sequence[HiddenStates]) -> Float64[Tensor, " tokens"]:
    """What a relative error of one token's keys and values would do to the attention's output, in squared size.

    Their sum is what an error of all of them would, each on its own; the scale is that of `Rest.error`.
    """
    moments, weights = rest.layer.moments, rest.layer.weights
    project, cost = rest.map @ torch.cat([weights.k, weights.v]), rest.cost("attention")
    sizes = []
    for inputs in inputs_of(attention, text):
        outputs = inputs @ project.mT
        sizes.append(((outputs @ cost) * outputs).sum(1))
    return torch.cat(sizes) * moments.seen / moments.seen.sum()


def shares(costs: Float64[Tensor, " tokens"]) -> Float64[Tensor, " tokens"]:
    """Of every token, half by what it costs and half alike."""
    return 0.5 * costs / costs.sum().clamp(min=1e-300) + 0.5 / len(costs)


def nearly_one(
    attention: Attention, text: Sequence[HiddenStates], weights: Float64[Tensor, " tokens"]
) -> Float64[Tensor, " hidden"]:
    """The functional of a layer's inputs that is nearest to one.

    Args:
        attention, text: of the layer, as for `token_costs`.
        weights: of the tokens; their sum is one.
    """
    moment, mean = torch.zeros(2, dtype=torch.float64)
    start = 0
    for inputs in inputs_of(attention, text):
        weighted = inputs * weights[start : start + len(inputs), None]
        moment, mean, start = moment + weighted.mT @ inputs, mean + weighted.sum(0), start + len(inputs)
    return near_constant(moment, mean, RIDGE)


def steadied(
    made: LatentWeights,
    attention: Attention,
    text: Sequence[HiddenStates],
    costs: Float64[Tensor, " tokens"],
    weights: Float64[Tensor, " tokens"],
) -> Steadied:
    """The norm of a layer that is made.

    Args:
        made: its projections.
        attention, text: as for `token_costs`.
        costs, weights: of the tokens.
    """
    rank = made.kv_b.shape[1]
    bias = 0.0 if made.bias is None else made.bias[:rank]
    latent = [inputs @ made.kv_a[:rank].mT + bias for inputs in inputs_of(attention, text)]
    sizes = torch.cat([part.square().mean(1).sqrt() for part in latent])
    # A token whose embedding is zero, as one that pads may have, has a latent of zero, and that no norm changes.
    some = sizes > NOTHING * sizes.max()
    sizes, weights, costs = sizes[some], weights[some], costs[some]
    weight = float(weights.sum() / (weights / sizes).sum())
    left = weight / sizes - 1
    return Steadied(weight, float(sizes.std() / sizes.mean()), float((costs * left.square()).sum()))
