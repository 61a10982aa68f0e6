"""`Quantize.run`: calibration text, statistics, rounding, packing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from burnish.arch import MatrixView, matrices
from burnish.core.checkpoint import Model, cast, move, without_weights
from burnish.core.errors import DataError, SettingsError
from burnish.core.stage import Context
from burnish.quantize.collect import collect
from burnish.quantize.method import Rounding, check_finite, quantize_matrices
from burnish.quantize.packing import check_loadable, ignored_modules, pack_all, quantization_config
from burnish.quantize.plan import check_combinations, select, sketches_of
from burnish.quantize.propagate import quantize_layer_by_layer
from burnish.quantize.rule import HELD_OUT, Strength
from burnish.quantize.rules import RULES
from burnish.quantize.schemes import scheme_of, schemes_of
from burnish.quantize.statistics import Calibration, Statistics
from burnish.quantize.stream import stream, too_large, why_not
from burnish.quantize.tuning import WINDOWS, Original, choose_strength, curve

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.quantize.stage import Quantize

CURVE_FOLDS = 8
"""Parts of the text with a curve: its smallest point, a quarter, then still has one to fit on and one held out."""


def run(settings: Quantize, model: Model, ctx: Context) -> Model:
    """The quantized model: its module holds the rounded weights, `packed` what is written in their place."""
    dtype = model.stored_dtype
    streamed = to_be_streamed(settings, model)
    module = without_weights(model) if streamed else working_copy(model, ctx.device)
    views = select(matrices(module), settings.ignore)
    schemes = schemes_of(settings, views)
    check_loadable(views, schemes)
    check_combinations(settings)
    rule = RULES[settings.method]
    rounding = Rounding(
        rule,
        scheme_of(settings),
        dtype,
        HELD_OUT if settings.damping is None else Strength(settings.damping, settings.damping),
        settings.sketch,
        scale_search=settings.scale_search,
        overrides=schemes,
    )
    if streamed:
        calibration = calibration_windows(settings, model, ctx, views)[0] if rule.needs else None
        return stream(views, module, model, schemes, rounding, calibration, ctx, propagate=settings.propagate)
    check_finite(views)
    if not rule.needs:
        quantized = quantize_matrices(views, rounding, None, progress=ctx.progress)
    else:
        calibration, unseen = calibration_windows(settings, model, ctx, views)
        if settings.propagate:
            quantized = quantize_layer_by_layer(module, views, calibration, rounding, ctx.work_dir, ctx.progress)
        else:
            statistics = collect(
                module,
                views,
                calibration,
                ctx.work_dir / "statistics",
                key={"model": model.identity, "matrices": ",".join(view.name for view in views)},
                sketches=sketches_of(settings),
                memory_bytes=settings.memory,
                progress=ctx.progress,
            )
            rounding = tuned(settings, module, views, rounding, statistics, calibration, unseen, ctx)
            quantized = quantize_matrices(views, rounding, statistics, progress=ctx.progress)
    ctx.ledger.table("layers", quantized.rows)
    packed = pack_all(quantized.codes, quantized.grids, views, schemes, scale_dtype=dtype)
    config = quantization_config(rounding.scheme, views, schemes, ignored_modules(module, views))
    return model.derive(module=cast(module, dtype), packed=packed, quantization_config=config)


def tuned(
    settings: Quantize,
    module: PreTrainedModel,
    views: Sequence[MatrixView],
    rounding: Rounding,
    statistics: Statistics,
    calibration: Calibration,
    unseen: Tensor,
    ctx: Context,
) -> Rounding:
    """The rounding with the strength that unseen windows ask for, and the tables of what was measured on them."""
    rule = rounding.rule
    compares = bool(rule.compared) and settings.damping is None
    if not len(unseen):
        if settings.curve or compares:
            ctx.progress.log("the calibration text has no window left to measure on: shrinkage is chosen by proxies")
        return rounding
    if compares:
        original = Original(module, unseen)
        strength, rows = choose_strength(
            views, rounding, statistics, original, strengths=rule.compared, progress=ctx.progress
        )
        rounding = replace(rounding, strength=strength)
        ctx.ledger.table("shrinkage", rows)
        if strength.is_one_sided:
            ctx.progress.log(f"at {calibration.tokens.numel():,} tokens one-sided rounding preserves the model better")
    if settings.curve:
        roundings = {settings.method: rounding}
        if rule.baseline:
            roundings[rule.baseline] = replace(rounding, rule=RULES[rule.baseline], strength=HELD_OUT)
        length = calibration.tokens.shape[1]
        tokens = [length * len(calibration.fold(number)) for number in range(calibration.num_folds)]
        rows = curve(views, roundings, statistics, Original(module, unseen), tokens_of_fold=tokens)
        ctx.ledger.table("calibration", rows)
    return rounding


def to_be_streamed(settings: Quantize, model: Model) -> bool:
    """Whether the model is quantized layer by layer from disk: as the settings say, or where it would fill memory.

    Raises:
        SettingsError: `stream` is true but cannot be.
    """
    if settings.stream is False or settings.curve:
        return False
    if settings.stream is None and not too_large(model.plan().num_parameters):
        return False
    reason = RULES[settings.method].not_by_layer or why_not(model)
    if reason and settings.stream:
        raise SettingsError(f"stream is true, but {reason}", fix="leave stream out")
    return reason is None


def working_copy(model: Model, device: str) -> PreTrainedModel:
    """The network in float32 on the device, apart from the input's own, which stays as it is.

    Statistics and rounding are computed in float32: bfloat16 gradients lose the small ones, and CPUs without bfloat16
    instructions are many times slower in it.
    """
    if model.path is not None and not model.is_loaded:
        return Model(path=model.path, lineage=model.lineage, dtype=torch.float32, device=device).module
    module = copy.deepcopy(model.module)
    working = torch.float64 if module.dtype is torch.float64 else torch.float32
    return move(cast(module, working), device).eval()


def calibration_windows(
    settings: Quantize, model: Model, ctx: Context, views: Sequence[MatrixView]
) -> tuple[Calibration, Tensor]:
    """Windows of the calibration text, drawn with the stage's seed: to collect from, and a few others to measure on.

    Raises:
        DataError: the text is too short for a fold each, or for the widest layer: with fewer tokens than inputs its
            statistics say nothing about most directions.
    """
    from burnish.data import calibration

    data = ctx.inputs.get("calibration", settings.calibration)
    length = min(settings.length, getattr(model.config, "max_position_embeddings", None) or settings.length)
    wanted = max(settings.num_tokens // length, 1)
    extra = WINDOWS * length if RULES[settings.method].compared or settings.curve else 0
    drawn = calibration(
        model.tokenizer, data, length=length, max_tokens=settings.num_tokens + extra, generator=ctx.generator
    )
    # Spread over the text; of a text that is too short for both a sixteenth.
    num_kept_back = max(len(drawn) - wanted, len(drawn) // WINDOWS) if extra else 0
    kept_back = torch.linspace(0, len(drawn) - 1, num_kept_back + 2)[1:-1].round().long()
    unseen = drawn[kept_back]
    remaining = torch.ones(len(drawn), dtype=torch.bool)
    remaining[kept_back] = False
    windows = drawn[remaining]
    num_folds = max(settings.folds, CURVE_FOLDS) if settings.curve else settings.folds
    if len(windows) < num_folds:
        raise DataError(
            f"gives {len(windows)} windows of {length} tokens, but at least {num_folds} are needed",
            where=data if isinstance(data, str) else "calibration text",
            fix=f"use a longer text, --tokens {num_folds * length} or more, or a shorter --length",
        )
    widest = max(view.shape[1] for view in views if view.expert is None)
    if windows.numel() < widest:
        raise DataError(
            f"gives {windows.numel():,} tokens, but the widest layer has {widest:,} inputs",
            where=data if isinstance(data, str) else "calibration text",
            fix=f"use a longer text and --tokens {4 * widest} or more, or method rtn, which needs none",
        )
    if windows.numel() < settings.num_tokens - length:
        ctx.progress.log(
            f"the calibration text has only {windows.numel():,} of the {settings.num_tokens:,} tokens asked for"
        )
    return Calibration(windows, seed=settings.seed, num_folds=num_folds), unseen
