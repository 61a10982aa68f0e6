"""GPTQ with statistics of the model as quantized so far, layer by layer, as GPTQ packages do it.

A layer's inputs are then the outputs of layers that are already rounded, so that it can make good part of their error.
Every layer runs twice: with its own weights, to collect, and with rounded ones, to hand its outputs on.

Source: GPTQ (2022, arXiv:2210.17323).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from burnish.arch import HiddenStates, MatrixView, capture, first_inputs, layers
from burnish.core.progress import Progress
from burnish.quantize.collect import BATCH_TOKENS, PRODUCTS, Accumulator, product_precision
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
                    with capture(module, own) as captured, torch.no_grad(), product_precision(PRODUCTS):
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
            with torch.no_grad(), product_precision(PRODUCTS):
                for batch in (batch for fold in batches for batch in fold):
                    batch.hidden = batch.through(number, layer)
            task.advance()
    return result


def hidden_batches(module: PreTrainedModel, calibration: Calibration) -> list[list[HiddenStates]]:
    """Inputs of the first layer, fold by fold, with each layer's other arguments (masks, positions)."""
    folds: list[list[HiddenStates]] = []
    length = calibration.tokens.shape[1]
    size = max(BATCH_TOKENS // length, 1)
    for number in range(calibration.num_folds):
        windows = list(calibration.fold(number))
        folds.append([])
        for start in range(0, len(windows), size):
            some = windows[start : start + size]
            mask = None if calibration.mask is None else calibration.mask[some].to(module.device)
            folds[-1].append(first_inputs(module, calibration.tokens[some].to(module.device), mask))
    return folds
