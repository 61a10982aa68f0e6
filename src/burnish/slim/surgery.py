"""Cuts a mixture of experts: a fresh module of the same class from the smaller configuration, filled with slices.

A neuron is a row of gate and up and a column of down of one expert; an attention group is a key-value head with its
query heads: rows of q, k and v with their biases, columns of o. An expert is its matrices and its row of the router.
Everything else is copied. In memory gate and up of all experts are one tensor; `arch` knows where each begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.arch import Architecture, MatrixView, describe, matrices, vectors
from burnish.core.checkpoint import quiet_transformers
from burnish.core.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Kept:
    """What stays, by number of the decoder layer; a layer that is not named keeps everything.

    Attributes:
        neurons: for each routed expert (numbered as before the cut) the neurons it keeps, ascending.
        shared: neurons of the shared expert.
        experts: routed experts.
        groups: attention groups.
    """

    neurons: Mapping[int, Int[Tensor, "experts width"]] = field(default_factory=dict)
    shared: Mapping[int, Int[Tensor, " width"]] = field(default_factory=dict)
    experts: Mapping[int, Int[Tensor, " experts"]] = field(default_factory=dict)
    groups: Mapping[int, Int[Tensor, " groups"]] = field(default_factory=dict)


Index = Tensor | None


def cut(
    module: PreTrainedModel,
    config: Any,
    kept: Kept,
    refitted: Mapping[tuple[int, int], Float[Tensor, "hidden width"]] | None = None,
) -> PreTrainedModel:
    """The smaller model, in evaluation mode, sharing no memory with `module`.

    Args:
        module: the model as it is.
        config: of the smaller one (`target.resized`).
        kept: what stays; its sizes must be those of `config`.
        refitted: {(layer, expert before the cut): down_proj to write in place of the kept columns}.
    """
    new = _empty_like(module, config)
    facts = describe(module)
    old = {_place(view, view.expert): view for view in matrices(module)}
    rows_of: dict[str, Index] = {}
    for view in matrices(new):
        source = old[_place(view, _old_expert(view, kept))]
        rows, columns = _selection(source, kept, facts)
        weights = source.tensor
        if refitted and source.expert is not None and source.role == "down" and source.layer is not None:
            replacement = refitted.get((source.layer, source.expert))
            if replacement is not None:
                weights, columns = replacement, None
        weights = weights if rows is None else weights[rows.to(weights.device)]
        view.write_(weights if columns is None else weights[:, columns.to(weights.device)])
        if view.expert is None:
            rows_of[view.parameter.rpartition(".")[0]] = rows
    old_vectors = {vector.parameter: vector for vector in vectors(module)}
    for vector in vectors(new):
        values = old_vectors[vector.parameter].tensor
        # A bias, and the router's correction, belong to the rows of the matrix beside them.
        rows = rows_of.get(vector.parameter.rpartition(".")[0])
        vector.tensor.copy_(values if rows is None else values[rows.to(values.device)])
    return new.eval()


def _place(view: MatrixView, expert: int | None) -> tuple[int | None, str, str, int | None]:
    return view.layer, view.part, view.role, expert


def _old_expert(view: MatrixView, kept: Kept) -> int | None:
    if view.expert is None or view.layer is None or view.layer not in kept.experts:
        return view.expert
    return int(kept.experts[view.layer][view.expert])


def _selection(view: MatrixView, kept: Kept, facts: Architecture) -> tuple[Index, Index]:
    """Rows and columns of a matrix that stay, None for all."""
    layer = view.layer
    if layer is None:
        return None, None
    if view.part in ("experts", "shared_expert"):
        if view.part == "shared_expert":
            neurons = kept.shared.get(layer)
        else:
            neurons = kept.neurons[layer][view.expert] if layer in kept.neurons else None
        return (None, neurons) if view.role == "down" else (neurons, None)
    if view.role == "router":
        return kept.experts.get(layer), None
    if view.part == "attention" and layer in kept.groups:
        group_size = 1 if view.role in ("k", "v") else facts.num_attention_heads // facts.num_key_value_heads
        block = group_size * facts.head_dim
        features = (kept.groups[layer][:, None] * block + torch.arange(block)).flatten()
        return (None, features) if view.role == "o" else (features, None)
    return None, None


def _empty_like(module: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A module of the same class for `config`, parameters allocated and not filled; nothing is drawn at random."""
    with torch.device("meta"), quiet_transformers():
        new: PreTrainedModel = type(module)(config)
    old_state = module.state_dict()
    state = {
        name: torch.empty(shape.shape, dtype=old_state[name].dtype, device=old_state[name].device)
        for name, shape in new.state_dict().items()
    }
    new.load_state_dict(state, assign=True)
    new.tie_weights()
    for path, part in module.named_modules():
        for (
            name
        ) in part._non_persistent_buffers_set:  # rotary frequencies, which do not depend on any width that changes
            buffer = getattr(part, name)
            new.get_submodule(path).register_buffer(name, None if buffer is None else buffer.clone(), persistent=False)
    for name, tensor in (*new.named_parameters(), *new.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(f"{type(module).__name__} keeps {name} outside its state, so it cannot be cut")
    new.set_experts_implementation(module.get_experts_implementation())
    if module.can_generate():
        new.generation_config = module.generation_config
    return new
