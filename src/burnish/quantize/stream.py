"""Quantizing a checkpoint that is larger than memory: one decoder layer at a time, from disk to disk.

The network is built without weights. A layer's are read, used and given back before the next layer's are; calibration
text goes through the layers in step, as hidden states. The result is bit for bit that of the whole model in memory.
"""

from __future__ import annotations

import ctypes
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.arch import MatrixView, capture, layers, matrices
from burnish.core.checkpoint import DeferredModel, Model, without_weights
from burnish.core.checkpoint.tensor_files import TensorReader
from burnish.core.stage import Context
from burnish.quantize.collect import PRODUCTS, Accumulator, product_precision
from burnish.quantize.method import Rounding, check_finite, quantize_matrices
from burnish.quantize.packing import (
    ignored_modules,
    pack_all,
    packed_shapes,
    quantization_config,
)
from burnish.quantize.propagate import hidden_batches
from burnish.quantize.scheme import Scheme
from burnish.quantize.statistics import Calibration, Statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARE_OF_FREE_MEMORY = 0.5
"""A model that would fill more than this is streamed unless the settings say otherwise."""

PART_WEIGHTS = 4_000_000
"""Weights that are rounded at a time, if one matrix does not hold more: rounding needs several times their memory."""


def too_large(num_parameters: int) -> bool:
    """Whether the float32 network would fill more than half of the free memory."""
    import psutil

    return 4 * num_parameters > SHARE_OF_FREE_MEMORY * psutil.virtual_memory().available


def why_not(model: Model) -> str | None:
    """The reason why a model cannot be streamed, None if it can."""
    if model.path is None or model.is_loaded:
        return "the model is in memory already"
    on_disk = TensorReader(model.path).meta
    skeleton = without_weights(model)
    absent = [name for name in own_parameters(skeleton) if name not in on_disk]
    return f"{absent[0]} is stored under another name or in parts" if absent else None


def give_back_freed_memory() -> None:
    """Makes glibc return freed memory to the system: large blocks from now on, what is left of small ones at once.

    By itself it raises the size from which it returns a block to that of the largest freed so far, and keeps smaller
    ones in a heap that then grows with every layer.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        mmap_threshold = -3
        libc.mallopt(mmap_threshold, 1 << 20)
        libc.malloc_trim(0)


def own_parameters(skeleton: PreTrainedModel) -> list[str]:
    """What is saved: every entry of the state dict that is not tied to another."""
    tied = skeleton.all_tied_weights_keys
    return [name for name in skeleton.state_dict() if name not in tied]


def stream(
    views: Sequence[MatrixView],
    skeleton: PreTrainedModel,
    model: Model,
    schemes: Mapping[str, Scheme],
    rounding: Rounding,
    calibration: Calibration | None,
    ctx: Context,
    *,
    propagate: bool,
) -> DeferredModel:
    """The quantized model, to be made when it is saved.

    Args:
        views: the matrices to round, of the skeleton.
        skeleton: from `without_weights`.
        model: the input, on disk.
        schemes: of every matrix, by name.
        rounding: how.
        calibration: the text; None for a rule that needs none.
        ctx: of the stage.
        propagate: whether a layer sees the outputs of rounded layers.
    """
    assert model.path is not None
    source = TensorReader(model.path)
    dtype = rounding.scale_dtype
    work = _Work(source, skeleton, views, schemes, rounding)

    def tensors(scratch: Path) -> Iterator[tuple[str, Tensor]]:
        give_back_freed_memory()
        rows: list[dict[str, Any]] = []
        folds = None if calibration is None else work.first_inputs(calibration)
        decoder_layers = layers(skeleton)
        with ctx.progress.task("quantizing layer by layer", total=len(decoder_layers), unit="layers") as task:
            for number, (path, layer) in enumerate(decoder_layers):
                own = [view for view in views if view.layer == number]
                statistics = None
                if folds is not None:
                    with work.loaded(f"{path}."):
                        statistics = work.collect(
                            number, layer, own, folds, scratch / "statistics", advance=not propagate
                        )
                rounded: dict[str, Tensor] = {}
                for part in parts_on_disk(own):
                    with work.loaded(*(view.parameter for view in part)):
                        check_finite(part)
                        result = quantize_matrices(part, rounding, statistics)
                        if propagate:
                            rounded |= work.present(part)
                    rows += result.rows
                    packed = pack_all(result.codes, result.grids, part, schemes, scale_dtype=dtype)
                    del result
                    for of_weight in packed.values():
                        yield from of_weight.items()
                    del packed
                if folds is not None and propagate:
                    with work.loaded(f"{path}.", instead=rounded), torch.no_grad(), product_precision(PRODUCTS):
                        for batch in (batch for fold in folds for batch in fold):
                            batch.hidden = batch.through(number, layer)
                give_back_freed_memory()
                task.advance()
        for name in work.kept:
            yield name, source.read(name).to(torch.float32)
        ctx.ledger.table("layers", rows)

    config = quantization_config(rounding.scheme, views, schemes, ignored_modules(skeleton, views))
    layout = work.layout(dtype)
    return DeferredModel(model, skeleton, layout, tensors, stored_dtype=dtype, quantization_config=config)


def parts_on_disk(views: Sequence[MatrixView]) -> Iterator[list[MatrixView]]:
    """Matrices in order, a few million weights at a time; those that are one tensor on disk stay together."""
    by_parameter: dict[str, list[MatrixView]] = {}
    for view in views:
        by_parameter.setdefault(view.parameter, []).append(view)
    part: list[MatrixView] = []
    for joined in by_parameter.values():
        if part and sum(math.prod(view.shape) for view in part + joined) > PART_WEIGHTS:
            yield part
            part = []
        part = part + joined
    if part:
        yield part


class _Work:
    """What the layers of one checkpoint have in common."""

    def __init__(
        self,
        source: TensorReader,
        skeleton: PreTrainedModel,
        views: Sequence[MatrixView],
        schemes: Mapping[str, Scheme],
        rounding: Rounding,
    ) -> None:
        self.source, self.skeleton, self.views, self.schemes = source, skeleton, views, schemes
        self.rounding = rounding
        rounded = {view.disk for view in views}
        self.kept = [name for name in own_parameters(skeleton) if name not in rounded]

    def layout(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """{name: shape and dtype} of what is written, as tensors on the meta device."""
        state = {name: self.source.meta[name].to(dtype) for name in self.kept}
        for view in self.views:
            state |= packed_shapes(view.disk, self.source.meta[view.disk].shape, self.schemes[view.name], dtype)
        return state

    @contextmanager
    def loaded(self, *prefixes: str, instead: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Parameters whose names start so are there inside the block, in float32; those of `instead` are taken from
        there."""
        before: list[tuple[nn.Module, str, nn.Parameter]] = []
        for path, module in self.skeleton.named_modules():
            for name, parameter in list(module._parameters.items()):
                full = f"{path}.{name}"
                if parameter is not None and full.startswith(prefixes) and full in self.source.meta:
                    before.append((module, name, parameter))
                    tensor = instead[full] if instead and full in instead else self.source.read(full).to(torch.float32)
                    module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        try:
            yield
        finally:
            for module, name, parameter in before:
                module._parameters[name] = parameter

    def present(self, views: Sequence[MatrixView]) -> dict[str, Tensor]:
        """The loaded parameters behind some matrices, by name."""
        return {view.parameter: self.skeleton.get_parameter(view.parameter).data for view in views}

    def first_inputs(self, calibration: Calibration) -> list[list[Any]]:
        """Hidden states before the first layer, with the embeddings in memory for as long as that takes."""
        embeddings = [v.parameter for v in matrices(self.skeleton) if v.part == "embedding" and v.layer is None]
        with ExitStack() as stack:
            for name in embeddings:
                stack.enter_context(self.loaded(name))
            return hidden_batches(self.skeleton, calibration)

    def collect(
        self,
        number: int,
        layer: nn.Module,
        own: Sequence[MatrixView],
        folds: Sequence[Sequence[Any]],
        scratch: Path,
        *,
        advance: bool,
    ) -> Statistics:
        """Sums of one layer's matrices, fold by fold; with `advance` the hidden states become the layer's outputs."""
        shutil.rmtree(scratch, ignore_errors=True)
        statistics = Statistics(scratch, {}, range(len(folds)))
        for fold, batches in enumerate(folds):
            sums = Accumulator(own)
            with capture(self.skeleton, own) as captured, torch.no_grad(), product_precision(PRODUCTS):
                captured.callback = sums
                for batch in batches:
                    output = batch.through(number, layer)
                    if advance:
                        batch.hidden = output
            sums.check()
            statistics.write(number, fold, sums.packed(number))
            del sums, captured  # before those of the next fold grow
        return statistics
