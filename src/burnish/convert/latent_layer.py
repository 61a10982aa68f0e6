"""One attention layer with latent keys and values: which pairs turn, what the latent holds, and the weights.

The steps are those of `maths.rotary` and `maths.latent`; here they meet the moments of a real layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from burnish.convert.maths.latent import Latent, balanced_cost, factorise, key_cost, output_error, value_cost
from burnish.convert.maths.rotary import (
    Directions,
    as_channels,
    as_pairs,
    assign,
    directions,
    folded,
    interleaved,
    mean_rotation,
    pair_moment,
    standing_keys,
    turned_queries,
)
from burnish.convert.moments import LayerMoments

Objective = Literal["attention", "two-sided", "transmla", "care", "svd"]
Norm = Literal["functional", "bias", "fold"]

CONSTANT = {"functional": 100.0, "bias": 300.0}
"""How many times the latent the constant channel is, so that the norm hardly depends on the latent.

What is left of the norm is the functional's: on SmolLM2 30 gave the same as 100. Numbers of floating point lose nothing
by it, since every channel keeps its own relative precision."""


@dataclass(frozen=True)
class AttentionWeights:
    """Weights of a layer in float64, and the shape of its heads."""

    q: Float64[Tensor, "queries hidden"]
    k: Float64[Tensor, "keys hidden"]
    v: Float64[Tensor, "keys hidden"]
    o: Float64[Tensor, "hidden queries"]
    num_heads: int
    num_key_value_heads: int

    @property
    def width(self) -> int:
        return len(self.q) // self.num_heads

    @property
    def outputs(self) -> Float64[Tensor, "heads hidden width"]:
        return self.o.unflatten(1, (self.num_heads, self.width)).transpose(0, 1)


@dataclass(frozen=True)
class LatentWeights:
    """The projections of DeepSeek's attention.

    Attributes:
        q, kv_a, kv_b: weights.
        gains: of the norm, but for one factor that they all share.
        bias: that of `kv_a`, where it has one.
    """

    q: Float64[Tensor, "queries hidden"]
    kv_a: Float64[Tensor, "cached hidden"]
    kv_b: Float64[Tensor, "expanded rank"]
    gains: Float64[Tensor, " rank"]
    bias: Float64[Tensor, " cached"] | None


class LayerChoice:
    """What turns in one layer, and what is left of its keys and queries.

    Args:
        weights, moments: of the layer.
        frequencies: of the model.
        distances: attention at each distance, by head, for all distances to be served.
    """

    def __init__(
        self,
        weights: AttentionWeights,
        moments: LayerMoments,
        frequencies: Float64[Tensor, " half"],
        distances: Float64[Tensor, "heads reach"],
    ) -> None:
        self.weights, self.moments, self.frequencies, self.distances = weights, moments, frequencies, distances
        self.num_keys = len(weights.k)
        self.mean_distances = (distances / distances.sum(1, keepdim=True)).mean(0)

    @cached_property
    def found(self) -> Directions:
        """All directions, by what they do to the attention's output."""
        energy = self.moments.queries.diagonal(dim1=1, dim2=2).unflatten(1, (2, -1)).sum(1)
        # A score is the real part of a product of complex numbers, which is half of its energy.
        energy = self.moments.leverage[:, None] * energy / (2 * self.weights.width)
        energy = energy.unflatten(0, (self.weights.num_key_value_heads, -1)).sum(1).flatten()
        keys = self.moments.attended[: self.num_keys, : self.num_keys]
        return directions(pair_moment(keys, self.weights.num_key_value_heads), energy, len(self.frequencies))

    def assigned(self, slots: Float64[Tensor, " slots"]) -> tuple[Directions, float]:
        """What goes into given slots, and the predicted error of the output."""
        kept, lost = assign(self.found, self.frequencies, slots, self.mean_distances)
        return kept, float(lost)

    def folded(self, num_slots: int, fold: int) -> Directions:
        """The published choice: by the energy of the keys alone, with real factors."""
        keys = self.moments.stacked[: self.num_keys, : self.num_keys]
        moment = pair_moment(keys, self.weights.num_key_value_heads).real.to(torch.complex128)
        ones = torch.ones(len(moment), dtype=torch.float64)
        return folded(moment, ones, len(self.frequencies), num_slots=num_slots, fold=fold)[0]


class Rest:
    """What is left of a layer once it is known what turns.

    Args:
        layer: the layer.
        kept: what turns.
        slots: at which frequencies.
        averaged: whether queries are multiplied by their mean rotations; the published conversions do not.
        constant: whether a channel of the latent is constant; it can carry the mean of keys and values.
    """

    def __init__(
        self,
        layer: LayerChoice,
        kept: Directions,
        slots: Float64[Tensor, " slots"],
        *,
        averaged: bool,
        constant: bool,
    ) -> None:
        self.layer, self.kept, self.constant = layer, kept, constant
        weights, frequencies = layer.weights, layer.frequencies
        half, num_slots = len(frequencies), len(slots)
        if averaged:
            still = mean_rotation(layer.distances, frequencies)
            self._rotations = mean_rotation(layer.distances, frequencies[:, None] - slots)
        else:
            still = torch.ones(weights.num_heads, half, dtype=torch.complex128)
            self._rotations = torch.ones(weights.num_heads, half, num_slots, dtype=torch.complex128)
        self._pairs = as_pairs(weights.q, weights.num_heads).unflatten(0, (weights.num_heads, half))
        self._still = still
        remaining = standing_keys(kept, weights.num_key_value_heads)
        self.map = torch.block_diag(remaining, torch.eye(len(weights.v), dtype=torch.float64))

    @property
    def queries(self) -> Float64[Tensor, "heads width hidden"]:
        """What meets the keys that stand still."""
        weights = self.layer.weights
        still = (self._pairs * self._still[..., None]).flatten(0, 1)
        return as_channels(still, weights.num_heads).unflatten(0, (weights.num_heads, -1))

    @property
    def turned_queries(self) -> Float64[Tensor, "heads channels hidden"]:
        """What meets the slots."""
        return interleaved(turned_queries(self._pairs, self.kept, self._rotations))

    @property
    def turned_keys(self) -> Float64[Tensor, "channels hidden"]:
        """The slots."""
        return interleaved(self.kept.down @ as_pairs(self.layer.weights.k, self.layer.weights.num_key_value_heads))

    @cached_property
    def query_moments(self) -> Float64[Tensor, "heads width width"]:
        """Of `queries`."""
        real, imaginary = self._still.real, self._still.imag
        turn = torch.cat(
            [
                torch.cat([torch.diag_embed(real), torch.diag_embed(-imaginary)], 2),
                torch.cat([torch.diag_embed(imaginary), torch.diag_embed(real)], 2),
            ],
            1,
        )
        return turn @ self.layer.moments.queries @ turn.mT

    def cost(self, objective: Objective) -> Float64[Tensor, "outputs outputs"]:
        """R, what an error of keys and values costs."""
        weights, moments = self.layer.weights, self.layer.moments
        groups, num_keys = weights.num_key_value_heads, self.layer.num_keys
        if objective in ("care", "svd"):
            return torch.eye(2 * num_keys, dtype=torch.float64)
        if objective == "transmla":
            return balanced_cost(self.map @ moments.stacked @ self.map.mT, num_keys)
        ones = torch.ones_like(moments.squares)
        by_attention = objective == "attention"
        keys = key_cost(self.query_moments, moments.leverage if by_attention else ones, groups)
        values = value_cost(weights.outputs, moments.squares if by_attention else ones, groups)
        return torch.block_diag(keys, values)

    def moment(self, objective: Objective) -> Float64[Tensor, "outputs outputs"]:
        """S, the second moment of keys and values that an objective looks at."""
        weights = self.layer.weights
        if objective == "svd":
            stacked = torch.cat([weights.k, weights.v])
            inner = stacked @ stacked.mT
        else:
            inner = self.layer.moments.attended if objective == "attention" else self.layer.moments.stacked
        return self.map @ inner @ self.map.mT

    def mean(self, objective: Objective) -> Float64[Tensor, " outputs"]:
        """What the constant channel carries, so that the latent holds only what differs between tokens.

        The published objectives have no such channel.
        """
        mean = self.map @ self.layer.moments.attended_mean
        return mean if self.constant and objective == "attention" else torch.zeros_like(mean)

    def factors(self, objective: Objective, rank: int) -> Latent:
        """The latent of so many ranks; with full rank, what is left over is nothing."""
        mean = self.mean(objective)
        return factorise(self.moment(objective) - mean[:, None] * mean, self.cost(objective), rank)

    def error(self, factors: Latent, objective: Objective) -> float:
        """The predicted error of the attention's output, whatever the factors were made for."""
        mean, applied = self.mean(objective), factors.up @ factors.down
        return float(output_error(applied, self.moment("attention") - mean[:, None] * mean, self.cost("attention")))

    def weights(
        self, factors: Latent, objective: Objective, norm: Norm, functional: Float64[Tensor, " hidden"] | None
    ) -> LatentWeights:
        """The projections, with channels of the latent that have a mean square of one.

        The channel that makes the norm of the latent nearly constant comes last in it. It is so much larger than the
        others in front of the norm alone: its gain takes that back, so that all weights are of the usual size, for
        whatever trains or rounds them. Read are from it the means of keys and values, as far as the rest of the latent
        does not have them.

        Args:
            factors, objective: of the latent.
            norm: what makes its norm harmless.
            functional: of the inputs, nearly one, for `norm="functional"`.
        """
        source, moments = self.layer.weights, self.layer.moments
        latent, up = factors.down @ self.map @ torch.cat([source.k, source.v]), factors.up
        size = torch.trace(factors.down @ self.map @ moments.stacked @ self.map.mT @ factors.down.mT)
        scale = float((len(latent) / size).sqrt())
        latent, up, gains = latent * scale, up / scale, latent.new_ones(len(latent))
        bias = None
        if norm != "fold":
            constant, mean = CONSTANT[norm] * len(latent) ** 0.5, self.mean(objective)
            row = latent.new_zeros(latent.shape[1]) if functional is None else constant * functional
            latent, gains = torch.cat([latent, row[None]]), torch.cat([gains, gains.new_tensor([1 / constant])])
            up = torch.cat([up, (mean - factors.up @ (factors.down @ mean))[:, None]], 1)
            if norm == "bias":
                bias = latent.new_zeros(len(latent) + 2 * len(self.kept.down))
                bias[len(latent) - 1] = constant
        kv_a = torch.cat([latent, self.turned_keys])
        keys, values = up.unflatten(0, (2, source.num_key_value_heads, -1))
        group = source.num_heads // source.num_key_value_heads
        kv_b = torch.cat([keys, values], 1).repeat_interleave(group, 0).flatten(0, 1)
        queries = torch.cat([self.queries, self.turned_queries], 1)
        # DeepSeek divides scores by the root of the joined width.
        queries = queries * (queries.shape[1] / source.width) ** 0.5
        return LatentWeights(queries.flatten(0, 1), kv_a, kv_b, gains, bias)
