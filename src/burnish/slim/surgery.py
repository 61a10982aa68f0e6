"""Cuts a mixture of experts, or splits its experts: a fresh module of the same class, filled with slices.

A neuron is a row of gate and up and a column of down of one expert; an attention group is a key-value head with its
query heads: rows of q, k and v with their biases, columns of o. An expert is its matrices and its row of the router.
Everything else is copied. In memory gate and up of all experts are one tensor; `arch` knows where each begins.

A checkpoint on disk is cut from file to file, so that no more than a matrix of it is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.arch import Architecture, MatrixView, VectorView, describe, matrices, vectors
from burnish.core.checkpoint import DeferredModel, Model, hollow, move, unfilled
from burnish.slim.uncut import Uncut

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Kept:
    """What stays, by number of the decoder layer; a layer that is not named keeps everything.

    Attributes:
        neurons: for each routed expert of the smaller model the neurons that it has, ascending.
        shared: neurons of the shared expert.
        experts: for each routed expert of the smaller model the one that it is, or is a part of.
        groups: attention groups.
        layers: decoder layers, ascending; None for all.
        factor: what down projections of routed experts are multiplied by.
        correction: what a correction of the router's choice is multiplied by.
        rows: what is added to the router's rows of the smaller model (`maths.split.tie_breaks`).
    """

    neurons: Mapping[int, Int[Tensor, "experts width"]] = field(default_factory=dict)
    shared: Mapping[int, Int[Tensor, " width"]] = field(default_factory=dict)
    experts: Mapping[int, Int[Tensor, " experts"]] = field(default_factory=dict)
    groups: Mapping[int, Int[Tensor, " groups"]] = field(default_factory=dict)
    layers: Int[Tensor, " layers"] | None = None
    factor: float = 1.0
    correction: float = 1.0
    rows: Mapping[int, Float[Tensor, "experts hidden"]] = field(default_factory=dict)


Index = Tensor | None
View = MatrixView | VectorView


Refitted = Mapping[tuple[int, int | None], Float[Tensor, "hidden width"]]
"""{(layer, expert of the smaller model): down_proj to write in place of kept columns}; None for the shared expert."""


def cut(uncut: Uncut, config: Any, kept: Kept, refitted: Refitted | None = None) -> PreTrainedModel:
    """The smaller model in memory, in evaluation mode, sharing no memory with the one it is cut from.

    Args:
        uncut: the model as it is, in memory.
        config: of the smaller one (`target.resized`).
        kept: what stays; its sizes must be those of `config`.
        refitted: down projections that are written as they are.
    """
    new = unfilled(type(uncut.module), config, uncut.module)
    new.set_experts_implementation(uncut.module.get_experts_implementation())
    for target, tensor in _pieces(uncut, new, kept, refitted or {}):
        target.tensor.copy_(tensor)
    return new


def deferred_cut(uncut: Uncut, config: Any, kept: Kept, refitted: Refitted) -> DeferredModel:
    """The smaller model of one on disk: cut from file to file when it is saved, or in memory when it is looked at."""
    assert uncut.files is not None, "a model in memory is cut there"
    model = uncut.model
    new: PreTrainedModel = hollow(type(uncut.module), config, uncut.module)
    layout = {}
    for target, source in _pairs(uncut, new, kept):
        stored = uncut.files.meta[_on_disk(source)]
        dtype = model.dtype if model.dtype and stored.is_floating_point() else stored.dtype
        layout[_on_disk(target)] = torch.empty(target.tensor.shape, dtype=dtype, device="meta")

    def tensors(scratch: Path) -> Iterator[tuple[str, Tensor]]:
        return ((_on_disk(target), tensor) for target, tensor in _pieces(uncut, new, kept, refitted))

    def whole() -> PreTrainedModel:
        read = Model(path=model.path, lineage=model.lineage, dtype=model.dtype).module
        return move(cut(Uncut(Model(module=read)), config, kept, refitted), model.device)

    return DeferredModel(model, new, layout, tensors, stored_dtype=uncut.dtype, whole=whole)


def _on_disk(view: View) -> str:
    return view.disk if isinstance(view, MatrixView) else view.name


def _pairs(uncut: Uncut, new: PreTrainedModel, kept: Kept) -> Iterator[tuple[View, View]]:
    """What the smaller model holds, and what of the larger one each is cut from."""
    old = {_place(view, view.expert): view for view in uncut.matrices}
    for view in matrices(new):
        yield view, old[_old_layer(view, kept), view.part, view.role, _old_expert(view, kept)]
    old_vectors = {(vector.layer, _inside(vector)): vector for vector in uncut.vectors}
    for vector in vectors(new):
        yield vector, old_vectors[_old_layer(vector, kept), _inside(vector)]


def _pieces(uncut: Uncut, new: PreTrainedModel, kept: Kept, refitted: Refitted) -> Iterator[tuple[View, Tensor]]:
    """Everything that the smaller model holds, with its values, one after the other."""
    facts = describe(uncut.module)
    rows_of: dict[str, list[_Rows]] = {}
    for target, source in _pairs(uncut, new, kept):
        if isinstance(source, VectorView):
            yield target, _cut_vector(uncut.vector(source), target, source, rows_of, kept, facts)
            continue
        assert isinstance(target, MatrixView)
        rows, columns = _selection(source, target.expert, kept, facts)
        rows_of.setdefault(source.parameter, []).append((target, source, rows))
        replacement = None
        if source.role == "down" and source.layer is not None and source.part in ("experts", "shared_expert"):
            replacement = refitted.get((source.layer, target.expert))
        if replacement is not None:
            yield target, replacement
            continue
        values = uncut.matrix(source)
        values = values if rows is None else values[rows]
        values = values if columns is None else values[:, columns]
        if source.role == "down" and source.part == "experts" and kept.factor != 1:
            values = (kept.factor * values.float()).to(values.dtype)
        if source.role == "router" and source.layer is not None and source.layer in kept.rows:
            values = (values.double() + kept.rows[source.layer]).to(values.dtype)
        yield target, values


_Rows = tuple[MatrixView, MatrixView, Index]
"""A matrix of the smaller model, what it is cut from, and which rows of that it has."""


def _cut_vector(
    values: Tensor,
    target: View,
    source: VectorView,
    rows_of: Mapping[str, list[_Rows]],
    kept: Kept,
    facts: Architecture,
) -> Tensor:
    """What stays of a vector; a bias belongs to the rows of the matrix beside it."""
    layer = -1 if source.layer is None else source.layer
    if source.role == "expert_bias":
        new = torch.empty(target.tensor.shape, dtype=values.dtype)
        for small, large, rows in rows_of[source.parameter.removesuffix("_bias")]:
            block = values[large.expert, large.block]
            new[small.expert, small.block] = block if rows is None else block[rows]
        return new
    if source.role == "router_correction":
        return kept.correction * values[..., kept.experts[layer]] if layer in kept.experts else values
    if source.role == "per_head":
        return values[_of_groups(len(values), kept.groups[layer], facts)] if layer in kept.groups else values
    beside = rows_of.get(f"{source.parameter.removesuffix('.bias')}.weight")
    if source.role == "bias" and beside:
        blocks = ((values[large.block], rows) for _, large, rows in beside)
        return torch.cat([block if rows is None else block[rows] for block, rows in blocks])
    return values


def _of_groups(size: int, groups: Tensor, facts: Architecture) -> Tensor:
    """Places of what belongs to some attention groups along an axis that holds all of them, one after the other."""
    block = size // facts.num_key_value_heads
    return (groups[:, None] * block + torch.arange(block)).flatten()


def _place(view: MatrixView, expert: int | None) -> tuple[int | None, str, str, int | None]:
    return view.layer, view.part, view.role, expert


def _old_layer(view: View, kept: Kept) -> int | None:
    return view.layer if view.layer is None or kept.layers is None else int(kept.layers[view.layer])


def _inside(vector: VectorView) -> str:
    """Its parameter, without the number of its layer."""
    return vector.parameter if vector.layer is None else vector.parameter.replace(f".{vector.layer}.", ".", 1)


def _old_expert(view: MatrixView, kept: Kept) -> int | None:
    if view.expert is None or view.layer is None or view.layer not in kept.experts:
        return view.expert
    return int(kept.experts[view.layer][view.expert])


def _selection(view: MatrixView, expert: int | None, kept: Kept, facts: Architecture) -> tuple[Index, Index]:
    """Rows and columns of a matrix that stay, None for all; `expert` is its number in the smaller model."""
    layer = view.layer
    if layer is None:
        return None, None
    if view.part in ("experts", "shared_expert"):
        if view.part == "shared_expert":
            neurons = kept.shared.get(layer)
        else:
            neurons = kept.neurons[layer][expert] if layer in kept.neurons else None
        return (None, neurons) if view.role == "down" else (neurons, None)
    if view.role == "router":
        return kept.experts.get(layer), None
    if view.part == "attention" and layer in kept.groups:
        features = _of_groups(view.shape[1 if view.role == "o" else 0], kept.groups[layer], facts)
        return (None, features) if view.role == "o" else (features, None)
    return None, None
