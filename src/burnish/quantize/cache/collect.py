"""Keys and values of a model over text, as its own cache holds them: keys after the rotary embedding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.core.errors import CheckpointError, NumericalError
from burnish.core.progress import Progress

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

KINDS = ("keys", "values")
Heads = Float[Tensor, "heads tokens dim"]


@dataclass(frozen=True)
class CacheShape:
    """Of the cache of a model: layers, key-value heads of each, and numbers of a vector."""

    num_layers: int
    num_heads: int
    head_dim: int

    def __str__(self) -> str:
        return f"{self.num_layers} layers with {self.num_heads} heads of {self.head_dim} numbers"


def cache_shape(module: PreTrainedModel) -> CacheShape:
    """The shape of a model's cache, after refusing one whose layers keep anything else than all keys and values.

    Raises:
        CheckpointError: sliding windows, chunks, states, shared layers, or keys and values of different width.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config, name = module.config.get_text_config(decoder=True), module.config.model_type
    if getattr(config, "kv_lora_rank", None) is not None:
        raise CheckpointError(f"a {name} model caches latents (kv_lora_rank), not keys and values of heads")
    layers = DynamicCache(config=module.config).layers
    others = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    if others or len(layers) != config.num_hidden_layers:
        kept = f"keeps {', '.join(others)}" if others else "shares caches between layers"
        raise CheckpointError(
            f"a {name} model {kept}, and codes are for layers that keep every key and value",
            fix="use a model with full attention in every layer",
        )
    found = _cached(module, torch.zeros(1, 1, dtype=torch.long, device=module.device)).layers
    shapes = {getattr(layer, kind).shape for layer in found for kind in KINDS}
    if len(shapes) != 1:
        raise CheckpointError(f"the keys and values of a {name} model differ in shape, or from layer to layer")
    _, heads, _, dim = shapes.pop()
    return CacheShape(len(found), heads, dim)


def collect(
    module: PreTrainedModel,
    windows: Int[Tensor, "windows length"],
    num_vectors: int,
    generator: torch.Generator,
    *,
    progress: Progress | None = None,
) -> dict[str, list[Heads]]:
    """{"keys", "values": for every layer the vectors of all heads at drawn tokens}, about `num_vectors` of each.

    Args:
        module: a causal language model whose layers keep every key and value.
        windows: of text.
        num_vectors: of a layer and kind; a shorter text gives what it has.
        generator: draws the tokens, of every window as many.

    Raises:
        NumericalError: a key or value is not finite.
    """
    shape, (num, length) = cache_shape(module), windows.shape
    per_window = min(math.ceil(num_vectors / shape.num_heads / num), length)
    found: dict[str, list[list[Tensor]]] = {kind: [[] for _ in range(shape.num_layers)] for kind in KINDS}
    with (progress or Progress(enabled=False)).task("collecting keys and values", windows.numel(), "tokens") as task:
        for window in windows:
            drawn = torch.randperm(length, generator=generator)[:per_window].sort().values.to(module.device)
            for layer, kind, vectors in cached_vectors(module, window):
                found[kind][layer].append(vectors[:, drawn].float())
            task.advance(length)
    return {kind: [torch.cat(parts, dim=1) for parts in layers] for kind, layers in found.items()}


def cached_vectors(module: PreTrainedModel, window: Int[Tensor, " length"]) -> Iterator[tuple[int, str, Heads]]:
    """(layer, "keys" or "values", vectors of all heads) over one window.

    Raises:
        NumericalError: one is not finite.
    """
    for number, layer in enumerate(_cached(module, window[None].to(module.device)).layers):
        for kind in KINDS:
            vectors = getattr(layer, kind)[0]
            if not vectors.isfinite().all():
                raise NumericalError(f"has {kind} that are not finite", where=f"layer {number}")
            yield number, kind, vectors


@torch.inference_mode()
def _cached(module: PreTrainedModel, tokens: Int[Tensor, "batch length"]) -> DynamicCache:
    from transformers import DynamicCache

    cache = DynamicCache(config=module.config)
    module.base_model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return cache
