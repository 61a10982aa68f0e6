"""What a layer's attention does with calibration text, added up: second moments of its queries, keys and values.

Nothing of the size of the hidden state squared is kept; what is kept of a layer is as large as its keys and values
together, squared, so that all layers of a model fit into memory while one choice is made for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Float64
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from burnish.arch import HiddenStates, describe, matrices, vectors
from burnish.convert.maths.latent import attention_sums
from burnish.core.errors import NumericalError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "moments.safetensors"


@dataclass(frozen=True)
class LayerMoments:
    """Means over the calibration tokens of one layer; keys and values are stacked, keys first, before any rotation.

    Attributes:
        stacked: second moment of keys and values.
        attended: the same, each token weighed by how much attention it gets (sum of squared probabilities).
        attended_mean: their mean, weighed alike.
        seen: attention that each token gets, the sum of squared probabilities.
        queries: second moment of every query head.
        squares: sum of squared probabilities of a query, by head.
        leverage: what a unit change of every score does to the squared output, by head.
        distances: attention at each distance, by head.
        output: squared size of the attention's output.
    """

    stacked: Float64[Tensor, "outputs outputs"]
    attended: Float64[Tensor, "outputs outputs"]
    attended_mean: Float64[Tensor, " outputs"]
    seen: Float64[Tensor, " tokens"]
    queries: Float64[Tensor, "heads width width"]
    squares: Float64[Tensor, " heads"]
    leverage: Float64[Tensor, " heads"]
    distances: Float64[Tensor, "heads length"]
    output: Float64[Tensor, ""]

    def write(self, directory: Path) -> None:
        save_file({part.name: getattr(self, part.name).contiguous() for part in fields(self)}, directory / FILE)

    @classmethod
    def read(cls, directory: Path) -> LayerMoments:
        return cls(**load_file(directory / FILE))


class Attention:
    """The attention of one layer of a Llama-type model: its weights, and what goes into them.

    Attributes:
        number: of the layer.
        num_heads, num_key_value_heads, width: of its heads.
        weights: {"q": ..., "k": ..., "v": ..., "o": ...}, live.
    """

    def __init__(self, module: PreTrainedModel, number: int) -> None:
        facts = describe(module)
        self.number, self.width = number, facts.head_dim
        self.num_heads, self.num_key_value_heads = facts.num_attention_heads, facts.num_key_value_heads
        own = {view.role: view for view in matrices(module) if view.layer == number and view.part == "attention"}
        self.weights = {role: view.tensor for role, view in own.items()}
        self._norm = next(vector.owner for vector in vectors(module) if vector.feeds == own["q"].reads)

    def inputs(self, states: HiddenStates) -> Float[Tensor, "windows length hidden"]:
        """What the projections read."""
        return self._norm(states.hidden)

    def heads(self, role: str, inputs: Float[Tensor, "windows length hidden"]) -> Tensor:
        """(windows, heads, length, width) of a projection."""
        return F.linear(inputs, self.weights[role]).unflatten(-1, (-1, self.width)).transpose(1, 2)

    @property
    def outputs(self) -> Float[Tensor, "heads hidden width"]:
        """The output projection of every head."""
        return self.weights["o"].unflatten(1, (self.num_heads, self.width)).transpose(0, 1)


def collect(attention: Attention, text: Sequence[HiddenStates]) -> LayerMoments:
    """Means over all windows of a text.

    Args:
        attention: of the layer.
        text: in front of the layer, with the arguments that the layer is called with.

    Raises:
        NumericalError: an activation is not finite.
    """
    total: dict[str, Tensor] = {}
    seen: list[Tensor] = []
    tokens = 0

    def add(name: str, value: Tensor) -> None:
        total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + value.to("cpu", torch.float64)

    for states in text:
        inputs = attention.inputs(states)
        queries, keys, values = (attention.heads(role, inputs) for role in ("q", "k", "v"))
        stacked = torch.cat([keys, values], 1).transpose(1, 2).flatten(0, 1).flatten(1)
        if not torch.isfinite(stacked).all():
            raise NumericalError("gives keys or values that are not finite", where=f"layer {attention.number}")
        group = attention.num_heads // attention.num_key_value_heads
        turned_queries, turned_keys = (turned(part, states.arguments[attention.number]) for part in (queries, keys))
        found = attention_sums(
            turned_queries,
            turned_keys.repeat_interleave(group, 1),
            values.repeat_interleave(group, 1),
            attention.outputs,
        )
        wide, weights = stacked.to(torch.float64), found.seen.flatten().to(torch.float64)
        seen.append(weights.cpu())
        add("stacked", wide.mT @ wide)
        add("attended", (wide * weights[:, None]).mT @ wide)
        add("attended_mean", weights @ wide)
        by_head = queries.transpose(0, 1).flatten(1, 2).to(torch.float64)
        add("queries", by_head.mT @ by_head)
        for name in ("squares", "leverage", "distances", "output"):
            add(name, getattr(found, name))
        tokens += len(wide)
    attention_paid = total["squares"].sum()
    weighed = {name: total.pop(name) / attention_paid for name in ("attended", "attended_mean")}
    return LayerMoments(seen=torch.cat(seen), **weighed, **{name: value / tokens for name, value in total.items()})


def turned(heads: Float[Tensor, "windows heads length width"], arguments: dict[str, Any]) -> Tensor:
    """Queries or keys with the rotary embedding that a layer is called with."""
    cos, sin = (part[:, None] for part in arguments["position_embeddings"])
    first, second = heads.chunk(2, -1)
    return heads * cos + torch.cat([-second, first], -1) * sin
