"""GPTQ with statistics of the model as quantized so far, layer by layer, as GPTQ packages do it.

A layer's inputs are then the outputs of layers that are already rounded, so that it can make good part of their error.
Every layer runs twice: with its own weights, to collect, and with rounded ones, to hand its outputs on.

Source: GPTQ (2022, arXiv:2210.17323).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.arch import MatrixView, capture, layers
from burnish.core.progress import Progress
from burnish.quantize.collect import BATCH_TOKENS, Accumulator
from burnish.quantize.method import Quantized, Rounding, quantize_matrices
from burnish.quantize.statistics import Calibration, Statistics

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quantize_layer_by_layer(
    module: PreTrainedModel,
    views: Sequence[MatrixView],
    calibration: Calibration,
    rounding: Rounding,
    work_dir: Path,
    progress: Progress,
) -> Quantized:
    """Rounds every view in place, each layer on the outputs of the rounded layers before it.

    Args:
        module: the original model in evaluation mode; it ends with rounded weights.
        views: of its matrices, all inside decoder layers.
        calibration: the text.
        rounding: how.
        work_dir: for the sums of one layer at a time.
        progress: where to show a bar.
    """
    result = Quantized({}, {}, [])
    batches = hidden_batches(module, calibration)
    decoder_layers = layers(module)
    with progress.task("rounding layer by layer", total=len(decoder_layers), unit="layers") as task:
        for number, (_, layer) in enumerate(decoder_layers):
            own = [view for view in views if view.layer == number]
            if own:
                directory = work_dir / f"layer{number}"
                statistics = Statistics(directory, {}, range(calibration.num_folds))
                for fold in range(calibration.num_folds):
                    sums = Accumulator(own)
                    with capture(module, own) as captured, torch.no_grad():
                        captured.callback = sums
                        for batch in batches[fold]:
                            batch.through(number, layer)
                    sums.check()
                    statistics.write(number, fold, sums.packed(number))
                part = quantize_matrices(own, rounding, statistics)
                result.codes |= part.codes
                result.grids |= part.grids
                result.rows += part.rows
                shutil.rmtree(directory)
            with torch.no_grad():
                for batch in (batch for fold in batches for batch in fold):
                    batch.hidden = batch.through(number, layer)
            task.advance()
    return result


class _Batch:
    """Hidden states of some windows between two layers, and what else every layer is called with."""

    def __init__(self, hidden: Tensor, arguments: dict[int, dict[str, Any]]) -> None:
        self.hidden, self.arguments = hidden, arguments

    def through(self, number: int, layer: nn.Module) -> Tensor:
        output = layer(self.hidden, **self.arguments[number])
        return output[0] if isinstance(output, tuple) else output


def hidden_batches(module: PreTrainedModel, calibration: Calibration) -> list[list[_Batch]]:
    """Inputs of the first layer, fold by fold, with each layer's other arguments (masks, positions)."""
    folds = []
    length = calibration.tokens.shape[1]
    size = max(BATCH_TOKENS // length, 1)
    for number in range(calibration.num_folds):
        windows = list(calibration.fold(number))
        folds.append(
            [
                _first_inputs(module, calibration, windows[start : start + size])
                for start in range(0, len(windows), size)
            ]
        )
    return folds


class _Enough(Exception):
    """Ends a forward pass once every layer's arguments are known."""


def _first_inputs(module: PreTrainedModel, calibration: Calibration, windows: list[int]) -> _Batch:
    """One forward pass in which layers hand their input on unchanged, so that only the arguments are made."""
    first: list[Tensor] = []
    arguments: dict[int, dict[str, Any]] = {}
    decoder_layers = [layer for _, layer in layers(module)]
    originals = [layer.forward for layer in decoder_layers]

    def record(number: int):
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            assert not args, "decoder layers are called with keyword arguments"
            if number == 0:
                first.append(hidden_states)
            arguments[number] = kwargs
            if number == len(decoder_layers) - 1:
                raise _Enough
            return hidden_states

        return forward

    mask = None if calibration.mask is None else calibration.mask[windows].to(module.device)
    tokens = calibration.tokens[windows].to(module.device)
    try:
        for number, layer in enumerate(decoder_layers):
            layer.forward = record(number)
        with torch.no_grad():
            module.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
    except _Enough:
        pass
    finally:
        for layer, original in zip(decoder_layers, originals, strict=True):
            layer.forward = original
    return _Batch(first[0], arguments)
