"""`Quantize.run`: calibration text, statistics, rounding, packing."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from burnish.arch import MatrixView, matrices
from burnish.core.checkpoint import Model, cast, move
from burnish.core.errors import DataError, SettingsError
from burnish.core.stage import Context
from burnish.quantize.collect import collect
from burnish.quantize.export import check_loadable, ignored_modules, pack_all, quantization_config
from burnish.quantize.method import Rounding, check_finite, quantize_matrices
from burnish.quantize.plan import check_propagation, select
from burnish.quantize.propagate import quantize_layer_by_layer
from burnish.quantize.schemes import scheme_of, schemes_of
from burnish.quantize.statistics import Calibration
from burnish.quantize.stream import stream, too_large, why_not, without_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.quantize.stage import Quantize


def run(settings: Quantize, model: Model, ctx: Context) -> Model:
    """The quantized model: its module holds the rounded weights, `packed` what is written in their place."""
    dtype = stored_dtype(model)
    streamed = to_be_streamed(settings, model)
    module = without_weights(model) if streamed else working_copy(model, ctx.device)
    views = select(matrices(module), settings.ignore)
    schemes = schemes_of(settings, views)
    check_loadable(views, schemes)
    check_propagation(settings)
    rounding = Rounding(
        settings.method,
        scheme_of(settings),
        dtype,
        damping=settings.damping,
        scale_search=settings.scale_search,
        overrides=schemes,
    )
    if streamed:
        calibration = None if settings.method == "rtn" else calibration_windows(settings, model, ctx, views)
        return stream(views, module, model, schemes, rounding, calibration, ctx, propagate=settings.propagate)
    check_finite(views)
    if settings.method == "rtn":
        quantized = quantize_matrices(views, rounding, None, progress=ctx.progress)
    else:
        calibration = calibration_windows(settings, model, ctx, views)
        if settings.propagate:
            quantized = quantize_layer_by_layer(module, views, calibration, rounding, ctx.work_dir, ctx.progress)
        else:
            statistics = collect(
                module,
                views,
                calibration,
                ctx.work_dir / "statistics",
                key={"model": weights_hash(model, module), "matrices": ",".join(view.name for view in views)},
                sketch=settings.sketch if settings.method == "yaqa" else None,
                memory_bytes=settings.memory,
                progress=ctx.progress,
            )
            quantized = quantize_matrices(views, rounding, statistics, progress=ctx.progress)
    ctx.ledger.table("layers", quantized.rows)
    packed = pack_all(quantized.codes, quantized.grids, views, schemes, scale_dtype=dtype)
    config = quantization_config(rounding.scheme, views, schemes, ignored_modules(module, views))
    return model.derive(module=cast(module, dtype), packed=packed, quantization_config=config)


def to_be_streamed(settings: Quantize, model: Model) -> bool:
    """Whether the model is quantized layer by layer from disk: as the settings say, or where it would fill memory.

    Raises:
        SettingsError: `stream` is true but cannot be.
    """
    if settings.stream is False or (settings.stream is None and not too_large(model)):
        return False
    reason = why_not(settings.method, model)
    if reason and settings.stream:
        raise SettingsError(f"stream is true, but {reason}", fix="leave stream out")
    return reason is None


def stored_dtype(model: Model) -> torch.dtype:
    """The dtype on disk, which the quantized checkpoint keeps for scales, norms and embeddings."""
    dtype = model.dtype or model.config.dtype or torch.get_default_dtype()
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def working_copy(model: Model, device: str) -> PreTrainedModel:
    """The network in float32 on the device, apart from the input's own, which stays as it is.

    Statistics and rounding are computed in float32: bfloat16 gradients lose the small ones, and CPUs without bfloat16
    instructions are many times slower in it.
    """
    if model.path is not None and "module" not in model.__dict__:
        return Model(path=model.path, lineage=model.lineage, dtype=torch.float32, device=device).module
    module = copy.deepcopy(model.module)
    working = torch.float64 if module.dtype is torch.float64 else torch.float32
    return move(cast(module, working), device).eval()


def weights_hash(model: Model, module: PreTrainedModel) -> str:
    """Names the weights: the checkpoint's content hash, or for a model in memory a hash of its parameters."""
    if model.path is not None and "module" not in model.__dict__:
        return model.hash
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def calibration_windows(settings: Quantize, model: Model, ctx: Context, views: Sequence[MatrixView]) -> Calibration:
    """Windows of the calibration text, drawn with the stage's seed.

    Raises:
        DataError: the text is too short for a fold each, or for the widest layer: with fewer tokens than inputs its
            statistics say nothing about most directions.
    """
    from burnish.data import calibration

    data = ctx.inputs.get("calibration", settings.calibration)
    length = min(settings.length, getattr(model.config, "max_position_embeddings", None) or settings.length)
    windows = calibration(model.tokenizer, data, length=length, max_tokens=settings.num_tokens, generator=ctx.generator)
    if len(windows) < settings.folds:
        raise DataError(
            f"gives {len(windows)} windows of {length} tokens, but at least {settings.folds} are needed",
            where=data if isinstance(data, str) else "calibration text",
            fix=f"use a longer text, --tokens {settings.folds * length} or more, or a shorter --length",
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
    return Calibration(windows, seed=settings.seed, num_folds=settings.folds)
