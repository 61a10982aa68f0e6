"""The network with latent attention: without weights at first, filled layer by layer, and what it buys."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float64
from torch import Tensor

from burnish.arch import describe, matrices, vectors
from burnish.convert.latent_config import Widths, as_list, as_yarn, cached_numbers, latent_config
from burnish.core.checkpoint import Model, allocate, hollow

if TYPE_CHECKING:
    from transformers import DeepseekV3ForCausalLM, PreTrainedModel

    from burnish.convert.stage import LatentAttention


@dataclass(frozen=True)
class Choice:
    """What all layers share.

    Attributes:
        widths: of the cache.
        slots: rotary frequencies.
        base: of the grid that the slots are, None for a list.
    """

    widths: Widths
    slots: Float64[Tensor, " slots"]
    base: float | None


def rope_parameters(config: Any, choice: Choice, settings: LatentAttention) -> dict[str, Any]:
    """As the engine reads them."""
    if settings.engine == "vllm":
        assert choice.base is not None, "a list of frequencies is refused for vLLM"
        return as_yarn(config, choice.base)
    return as_list(config, choice.slots.tolist())


def network(source: PreTrainedModel, choice: Choice, settings: LatentAttention) -> DeepseekV3ForCausalLM:
    """DeepSeek's network, without weights but able to turn positions."""
    from transformers import DeepseekV3ForCausalLM

    config = latent_config(
        source.config,
        choice.widths,
        rope_parameters(source.config, choice, settings),
        engine=settings.engine,
        biases=settings.norm == "bias",
    )
    new = hollow(DeepseekV3ForCausalLM, config, source)
    own: Any = source.base_model.rotary_emb
    new.model.rotary_emb = type(new.model.rotary_emb)(config).to(own.inv_freq.device)
    return new


def take_rest(new: PreTrainedModel, source: PreTrainedModel, number: int | None) -> None:
    """Copies what a layer has besides attention, or, with None, what lies around the layers."""
    given = {(view.layer, view.role): view for view in matrices(source)}
    for view in matrices(new):
        if view.layer == number and view.part != "attention":
            same = given.get((view.layer, view.role), given[None, "embedding"])
            view.write_(same.tensor)
    norms = {vector.parameter: vector.tensor for vector in vectors(source)}
    for vector in vectors(new):
        if vector.layer == number and vector.parameter in norms:
            vector.tensor.copy_(norms[vector.parameter])


def fill(new: PreTrainedModel, number: int, tensors: dict[str, Tensor]) -> None:
    """Writes a layer's attention, by role."""
    for view in matrices(new):
        if view.layer == number and view.part == "attention":
            view.write_(tensors[view.role])
    for vector in vectors(new):
        if vector.layer != number:
            continue
        if vector.parameter.endswith("kv_a_layernorm.weight"):
            vector.tensor.copy_(tensors["norm"])
        elif vector.role == "bias":
            is_latent = vector.parameter.endswith("kv_a_proj_with_mqa.bias")
            vector.tensor.copy_(tensors["bias"] if is_latent else torch.zeros_like(vector.tensor))


def numbers_in_cache(module: PreTrainedModel, num_tokens: int = 4) -> float:
    """Numbers that a real cache holds of a token and a layer."""
    ids = torch.arange(num_tokens, device=module.device)[None] % module.config.vocab_size
    with torch.no_grad():
        cache = module(input_ids=ids, use_cache=True).past_key_values
    held = sum(part.numel() for layer in cache.layers for part in (layer.keys, layer.values))
    return held / num_tokens / len(cache.layers)


def with_its_cache_alone(new: DeepseekV3ForCausalLM) -> DeepseekV3ForCausalLM:
    """A small network whose cache has the widths of another one, which need not be in memory."""
    config = copy.deepcopy(new.config)
    config.num_hidden_layers = config.first_k_dense_replace = 1
    config.vocab_size = config.hidden_size = config.intermediate_size = 8
    config.pad_token_id = None
    small = hollow(type(new), config, new)
    small.model.rotary_emb = type(new.model.rotary_emb)(config)
    allocate(small, torch.float32)
    for parameter in small.parameters():
        parameter.data.zero_()
    return small


def cache_rows(model: Model, new: DeepseekV3ForCausalLM) -> list[dict[str, Any]]:
    """What the conversion buys: cached numbers and bytes, by ranks of tensor parallelism, and where it pays."""
    facts, size = describe(model.config), torch.finfo(model.stored_dtype).bits // 8
    num_layers = facts.num_layers
    before, after = cached_numbers(model.config), numbers_in_cache(with_its_cache_alone(new))
    weights = [model.plan().num_parameters, sum(parameter.numel() for parameter in new.parameters())]
    rows: list[dict[str, Any]] = []
    for name, numbers, parameters in (("source", before, weights[0]), ("latent", after, weights[1])):
        row: dict[str, Any] = {"attention": name, "numbers per token and layer": numbers, "parameters": parameters}
        row |= {
            f"bytes per token, {kind}": numbers * num_layers * width for kind, width in (("16 bit", 2), ("32 bit", 4))
        }
        for ranks in (2, 4, 8):  # a latent is on every rank, key heads are shared out
            shared = min(ranks, facts.num_key_value_heads) if name == "source" else 1
            row[f"numbers per rank, TP {ranks}"] = numbers / shared
        rows.append(row)
    saved = (before - after) * num_layers * size
    more = (weights[1] - weights[0]) * size
    rows[1]["pays beyond, cached tokens"] = max(more / saved, 0.0) if saved > 0 else None
    return rows
