"""Sums over calibration text of what rounding needs to know of every matrix, while they grow.

Per matrix: the activation covariance Σ x^T x (shared by matrices that read the same tensor) and, for two-sided
rounding, the sums of sketch A or B (`maths.kronecker`), in float32 or float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.arch import MatrixView, by_input
from burnish.calibrate.maths.kronecker import by_sequence, covariance_sum, pack_triangle, sketch_a_sums, sketch_b_sums
from burnish.calibrate.windows import WindowBatch, world_size
from burnish.core.errors import CheckpointError, NumericalError

Sketch = Literal["a", "b"]


@dataclass
class Accumulator:
    """Running sums of one group of layers over one fold."""

    views: Sequence[MatrixView]
    which: Sequence[Sketch] = ()
    num_sequences: int = 0
    length: int = 0
    mask: Bool[Tensor, " rows"] | None = None
    covariances: dict[str, Tensor] = field(default_factory=dict)
    sketches: dict[tuple[str, Sketch], tuple[Tensor, Tensor]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.leaders = {group[0].name: name for name, group in by_input(self.views).items()}

    def begin(self, batch: WindowBatch) -> None:
        """What comes next is of these windows."""
        self.num_sequences, self.length = batch.tokens.shape
        self.mask = None if batch.mask is None else batch.mask.flatten()

    def __call__(
        self,
        view: MatrixView,
        inputs: Float[Tensor, "rows in"],
        gradients: Float[Tensor, "rows out"] | None,
        token_index: Int[Tensor, " rows"],
    ) -> None:
        dtype = torch.float64 if inputs.dtype is torch.float64 else torch.float32
        inputs = inputs.to(dtype)
        if self.mask is not None:
            kept = self.mask[token_index]
            inputs, token_index = inputs[kept], token_index[kept]
            gradients = None if gradients is None else gradients[kept]
        self.counts[view.name] = self.counts.get(view.name, 0) + len(inputs)
        group = self.leaders.get(view.name)
        if group is not None:
            self.covariances[group] = covariance_sum(inputs, self.covariances.get(group))
        if gradients is None:
            return
        gradients = gradients.to(dtype)
        for sketch in self.which:
            into = self.sketches.get((view.name, sketch))
            if sketch == "a":
                result = sketch_a_sums(inputs, gradients, into=into)
            else:
                result = sketch_b_sums(*self._by_sequence(inputs, gradients, token_index), into=into)
            self.sketches[view.name, sketch] = result

    def _by_sequence(self, inputs: Tensor, gradients: Tensor, token_index: Tensor) -> tuple[Tensor, Tensor]:
        if len(inputs) == self.num_sequences * self.length:  # whole sequences, in order
            shape = (self.num_sequences, self.length)
            return inputs.unflatten(0, shape), gradients.unflatten(0, shape)
        sequence = token_index // self.length
        return (
            by_sequence(inputs, sequence, self.num_sequences),
            by_sequence(gradients, sequence, self.num_sequences),
        )

    def tensors(self, layer: int | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, lower triangle) of every sum, of one layer or of all; sums that saw nothing are zeros."""
        for view in self.views:
            if layer is not None and view.layer != layer:
                continue
            out_features, in_features = view.shape
            like = view.tensor
            dtype = torch.float64 if like.dtype is torch.float64 else torch.float32
            empty = torch.zeros(0, dtype=dtype, device=like.device)
            group = self.leaders.get(view.name)
            if group is not None:
                if group not in self.covariances:
                    self.covariances[group] = empty.new_zeros(in_features, in_features)
                yield f"{group}|covariance", self.covariances[group]
            for sketch in self.which:
                if (view.name, sketch) not in self.sketches:
                    self.sketches[view.name, sketch] = (
                        empty.new_zeros(in_features, in_features),
                        empty.new_zeros(out_features, out_features),
                    )
                input_side, output_side = self.sketches[view.name, sketch]
                yield f"{view.name}|{sketch}|input_side", input_side
                yield f"{view.name}|{sketch}|output_side", output_side

    def packed(self, layer: int) -> dict[str, Tensor]:
        """What goes to disk for one layer."""
        result = {name: pack_triangle(tensor).cpu() for name, tensor in self.tensors(layer)}
        for view in self.views:
            if view.layer == layer:
                result[f"{view.name}|num_tokens"] = torch.tensor(self.counts.get(view.name, 0))
        return result

    def reduce(self) -> None:
        """Adds up over processes; afterwards every rank has the totals."""
        if world_size() == 1:
            return
        for _, tensor in self.tensors():
            torch.distributed.all_reduce(tensor)
        counts = torch.tensor([self.counts.get(view.name, 0) for view in self.views])
        torch.distributed.all_reduce(counts)
        self.counts = {view.name: int(n) for view, n in zip(self.views, counts, strict=True)}

    def check(self) -> None:
        """Refuses matrices that no token reached (experts may be left out by their router) and sums that overflowed."""
        for view in self.views:
            if view.expert is None and not self.counts.get(view.name):
                raise CheckpointError(
                    "was not reached when the calibration text ran through the model",
                    where=view.name,
                    fix="leave it dense with ignore",
                )
        for name, tensor in self.tensors():
            if not torch.isfinite(tensor.diagonal()).all():
                what = "inputs" if name.endswith("covariance") else "output gradients"
                raise NumericalError(
                    f"the {what} on the calibration text are not finite",
                    where=name.partition("|")[0],
                    fix="check the checkpoint, or load it in float32",
                )


def layer_groups(
    views: Sequence[MatrixView], *, sketches: Sequence[Sketch], memory_bytes: float
) -> list[list[MatrixView]]:
    """Views by decoder layers, as many layers together as their sums fit into memory; at least one."""
    layers: dict[int, list[MatrixView]] = {}
    for view in views:
        assert view.layer is not None, f"{view.name} is outside the decoder layers"
        layers.setdefault(view.layer, []).append(view)
    groups: list[list[MatrixView]] = []
    room = 0.0
    for layer in sorted(layers):
        needed = sums_bytes(layers[layer], sketches)
        if not groups or needed > room:
            groups.append([])
            room = memory_bytes
        groups[-1] += layers[layer]
        room -= needed
    return groups


def sums_bytes(views: Sequence[MatrixView], sketches: Sequence[Sketch]) -> int:
    """Bytes of the float32 sums of some matrices while they are collected."""
    covariances = sum(group[0].shape[1] ** 2 for group in by_input(views).values())
    sides = sum(view.shape[0] ** 2 + view.shape[1] ** 2 for view in views)
    return 4 * (covariances + len(sketches) * sides)
