"""Runs calibration text through the original model and sums what rounding needs to know of every matrix.

Per matrix: the activation covariance Σ x^T x (shared by matrices that read the same tensor) and, for two-sided
rounding, the sums of sketch A or B (`maths.kronecker`). Labels are drawn from the model's own distribution, one per
position, by a generator that depends on the seed and the number of the window alone; so a second pass, a resumed run
and another number of processes see the same labels. Drawing them from the data would estimate another matrix.

Memory is bounded: decoder layers are taken in groups whose sums fit `memory_bytes`, one pass over the text for each.
A resumed run skips the files that exist. Under torch.distributed windows go round-robin to ranks and the sums are
reduced once per fold.

Products of float32 matrices take the fast units of the machine, TF32 on GPUs and bfloat16 on CPUs that have it, and are
added up in float32: what that rounds away is far below the noise of drawn labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.arch import MatrixView, by_input, capture
from burnish.core.errors import CheckpointError, DataError, NumericalError
from burnish.core.progress import Progress
from burnish.quantize.maths.kronecker import by_sequence, covariance_sum, sketch_a_sums, sketch_b_sums
from burnish.quantize.statistics import Calibration, Statistics, pack_triangle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sketch = Literal["a", "b"]
BATCH_TOKENS = 1024
PRODUCTS = "medium"
"""Of `torch.set_float32_matmul_precision`; products in float64 are not touched by it."""


def collect(
    module: PreTrainedModel,
    views: Sequence[MatrixView],
    calibration: Calibration,
    directory: Path,
    *,
    key: dict[str, str],
    sketches: Sequence[Sketch] = (),
    memory_bytes: int = 2_000_000_000,
    batch_tokens: int = BATCH_TOKENS,
    only_folds: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Sums of every view over every fold, on disk.

    Args:
        module: the original model, in evaluation mode, on the device to use, in float32 or float64.
        views: of its matrices, all inside decoder layers.
        calibration: the text.
        directory: where files go; those of an interrupted collection with the same key are kept.
        key: what the sums depend on beside text and labels, for instance the model's content hash.
        sketches: "a" and "b", the Kronecker factors; none collects the covariance alone, without a backward pass.
        memory_bytes: bound on the sums held at once; decides the number of passes.
        batch_tokens: tokens per forward pass.
        only_folds: the folds to collect now; others may be collected by other processes into the same directory.
        progress: where to show bars.

    Raises:
        NumericalError: an activation or gradient is not finite; the layer is named.
        CheckpointError: a matrix was not reached.
        DataError: fewer windows than folds.
        CheckpointError: the directory holds sums of another model or text.
    """
    if len(calibration.tokens) < calibration.num_folds:
        raise DataError(
            f"has {len(calibration.tokens)} windows of {calibration.tokens.shape[1]} tokens, but at least "
            f"{calibration.num_folds} are needed, one for each fold",
            where="calibration text",
            fix="use a longer text, more --tokens, or a shorter --length",
        )
    full_key = key | {
        "calibration text": calibration.hash,
        "folds": str(calibration.bounds),
        "sketches": ",".join(sketches),
        "label seed": str(calibration.seed if sketches else None),
        "dtype": str(module.dtype),
    }
    statistics = Statistics(directory, full_key, range(calibration.num_folds))
    bars = progress or Progress(enabled=False)
    groups = layer_groups(views, sketches=sketches, memory_bytes=memory_bytes)
    for number, group in enumerate(groups, start=1):
        numbers = sorted({view.layer for view in group if view.layer is not None})
        wanted = range(calibration.num_folds) if only_folds is None else only_folds
        folds = [fold for fold in wanted if not all(statistics.has(number, fold) for number in numbers)]
        if not folds:
            continue
        label = f"collecting, pass {number} of {len(groups)}" if len(groups) > 1 else "collecting statistics"
        total = sum(len(calibration.fold(fold)) for fold in folds) * calibration.tokens.shape[1]
        with bars.task(label, total=total, unit="tokens") as task:
            for fold in folds:
                sums = Accumulator(group, sketches)
                for batch in _batches(calibration.fold(fold), calibration.tokens.shape[1], batch_tokens):
                    _run(module, group, calibration, batch, sums)
                    task.advance(len(batch) * calibration.tokens.shape[1])
                sums.reduce()
                sums.check()
                if _rank() == 0:
                    for layer in numbers:
                        statistics.write(layer, fold, sums.packed(layer))
        if _world_size() > 1:
            torch.distributed.barrier()
    return statistics


def layer_groups(
    views: Sequence[MatrixView], *, sketches: Sequence[Sketch], memory_bytes: int
) -> list[list[MatrixView]]:
    """Views by decoder layers, as many layers together as their sums fit into memory; at least one."""
    layers: dict[int, list[MatrixView]] = {}
    for view in views:
        assert view.layer is not None, f"{view.name} is outside the decoder layers"
        layers.setdefault(view.layer, []).append(view)
    groups: list[list[MatrixView]] = []
    room = 0
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
        if _world_size() == 1:
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


def _run(
    module: PreTrainedModel,
    views: Sequence[MatrixView],
    calibration: Calibration,
    batch: Sequence[int],
    sums: Accumulator,
) -> None:
    """One forward pass, and with a sketch one backward pass from drawn labels."""
    rows = torch.tensor(batch)
    tokens = calibration.tokens[rows].to(module.device)
    mask = None if calibration.mask is None else calibration.mask[rows].to(module.device)
    sums.num_sequences, sums.length = tokens.shape
    sums.mask = None if mask is None else mask.flatten()
    with capture(module, views, gradients=bool(sums.which)) as captured, product_precision(PRODUCTS):
        captured.callback = sums
        if not sums.which:
            with torch.no_grad():
                module.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
            return
        logits = module(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        labels = torch.stack(
            [draw_labels(row.detach(), calibration.seed, index) for row, index in zip(logits, batch, strict=True)]
        )
        if mask is not None:
            labels = labels.masked_fill(~mask, -100)
        # The sum, not the mean: a scale drops out of every factor, and small gradients would underflow.
        F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum").backward()


@contextmanager
def product_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def draw_labels(logits: Float[Tensor, "length vocab"], seed: int, window: int) -> Int[Tensor, " length"]:
    """One label per position from the model's own distribution, by inversion; the same for equal seed and window."""
    # Modulo a prime below 2^32: the generator ignores higher bits of its seed.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + window) % 4_294_967_291)
    uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64)
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    drawn = torch.searchsorted(cumulative, uniform.to(cumulative) * cumulative[:, -1:])
    return drawn.squeeze(1).clamp_(max=logits.shape[-1] - 1)


def _batches(windows: range, length: int, batch_tokens: int) -> Iterator[list[int]]:
    """Window numbers of this process, as many at a time as fit."""
    own = list(windows)[_rank() :: _world_size()]
    size = max(batch_tokens // length, 1)
    return (own[start : start + size] for start in range(0, len(own), size))


def _world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
