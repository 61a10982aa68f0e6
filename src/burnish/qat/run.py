"""`Qat.run`: a copy of the model whose weights are functions of latent ones, its training, and packing."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from burnish.calibrate.collect import collect
from burnish.calibrate.windows import Calibration
from burnish.core.checkpoint import Model, cast, compute_dtype, move
from burnish.core.checkpoint.adapter import Adapter
from burnish.core.children import num_processes
from burnish.core.errors import NumericalError, SettingsError
from burnish.core.stage import Context
from burnish.distill.run import run as distill
from burnish.qat.latent import FACTOR_DTYPE, FewLevels, Ramped
from burnish.qat.maths.few_levels import TERNARY, TWO_BITS, Levels, initial_scale
from burnish.qat.maths.low_rank import fit_low_rank
from burnish.quantize.maths.grid import IntegerGrid
from burnish.quantize.packing import check_loadable, ignored_modules, pack_all, quantization_config
from burnish.quantize.plan import matrices_of, select
from burnish.quantize.schemes import scheme_of, schemes_of
from burnish.train.losses import LossFn
from burnish.train.rows import on_disk
from burnish.train.run import training_rows
from burnish.tune.run import without_parametrisations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.arch import MatrixView
    from burnish.qat.stage import Qat

FIT_TOKENS = 16_384
"""Of the data, for the inputs' covariance that a part of low rank begins with."""


def run(settings: Qat, model: Model, ctx: Context) -> Model:
    """The packed model, whose network has the weights that are written.

    Raises:
        SettingsError: several processes, nothing to quantize, or a group size that does not divide.
        NumericalError: a weight is not finite.
    """
    if num_processes() > 1:
        raise SettingsError("qat is for one process only", where="launch", fix="leave `launch` out of this node")
    dense: Any = cast(copy.deepcopy(model.module), torch.float32)
    views = whole_layers(settings, dense)
    check_finite(views)
    found = covariances(settings, model, dense, views, ctx) if settings.low_rank_fit == "activations" else {}
    layers = parametrise(settings, dense, views, found, model.stored_dtype)
    freeze_vocabulary(dense)
    given = ctx.inputs.get("teacher")
    if given is None:
        given = model.derive(module=cast(copy.deepcopy(model.module), compute_dtype(ctx.device)))
    trained = distill(
        settings,
        model.derive(module=dense),
        replace(ctx, inputs={**ctx.inputs, "teacher": given}),
        around=lambda loss, module: around(settings, loss, module),
    )
    result = packed(settings, model, trained.module, layers, ctx)
    result.lineage.continued = trained.lineage.continued
    return result


def check_finite(views: Sequence[MatrixView]) -> None:
    for view in views:
        if not layer_of(view).weight.isfinite().all():
            raise NumericalError(
                "has numbers that are not finite", where=view.disk, fix="download the checkpoint again"
            )


def covariances(
    settings: Qat, model: Model, module: PreTrainedModel, views: Sequence[MatrixView], ctx: Context
) -> dict[str, Tensor]:
    """{name on disk: E[x^T x] of the inputs} on some of the rows that are trained on; nothing without a low rank."""
    if not settings.low_rank:
        return {}
    rows, _ = training_rows(settings, model.tokenizer, on_disk(ctx))
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), max(FIT_TOKENS // rows.length, 1))).round().astype(int)
    inside = torch.from_numpy(np.arange(rows.length) < rows.used[chosen][:, None])
    text = Calibration(torch.from_numpy(rows.input_ids[chosen].astype(np.int64)), num_folds=1, mask=inside)
    directory, key = ctx.work_dir / "statistics", {"model": model.identity}
    statistics = collect(move(module, ctx.device), views, text, directory, key=key, progress=ctx.progress)
    found = {}
    for view in views:
        sums = statistics.read(view, statistics.folds)
        assert sums.covariance is not None, "it is what is collected"
        found[view.disk] = sums.covariance / sums.num_tokens
    return found


def parametrise(
    settings: Qat,
    module: PreTrainedModel,
    views: Sequence[MatrixView],
    found: Mapping[str, Tensor],
    stored: torch.dtype,
) -> dict[str, str]:
    """Makes the weights of linear layers functions of what is trained: {name on disk: name of the layer}."""
    levels = TERNARY if settings.bits == "ternary" else TWO_BITS
    names = {id(part): name for name, part in module.named_modules()}
    for view in views:
        weight = layer_of(view).weight.detach()
        scale = initial_scale(weight, settings.group_size or weight.shape[1], levels, settings.scale_init)
        start = [weight, scale]
        if settings.low_rank:
            covariance = found[view.disk].to(weight) if view.disk in found else None
            fit = fit_low_rank(weight, scale, levels, settings.low_rank, covariance=covariance)
            down, up = (factor.to(FACTOR_DTYPE).to(weight) for factor in (fit.down, fit.up))
            start = [weight - up @ down, fit.scale, down, up]
        parametrize.register_parametrization(view.owner, "weight", FewLevels(levels, start, stored))
    return {view.disk: names[id(view.owner)] for view in views}


def whole_layers(settings: Qat, module: PreTrainedModel) -> list[MatrixView]:
    """A view of every linear layer that is packed.

    Raises:
        SettingsError: a matrix is part of something else, or one that no stock loader would read.
    """
    views = select(matrices_of(module, settings.rounding), settings.ignore)
    for view in views:
        if not isinstance(view.owner, nn.Linear):
            raise SettingsError(
                "is no linear layer by itself, and qat trains such alone",
                where=view.name,
                fix="leave it dense with ignore, or use burnish quantize",
            )
        if settings.low_rank > (most := min(view.owner.weight.shape)):
            raise SettingsError(
                f"low_rank is {settings.low_rank:,}, but {view.disk} has the shape {tuple(view.owner.weight.shape)}",
                where="low_rank",
                fix=f"use 4 to 32, and {most:,} at most",
            )
    check_loadable(views, schemes_of(settings.rounding, views))
    return list({view.disk: view for view in views}.values())


def layer_of(view: MatrixView) -> nn.Linear:
    assert isinstance(view.owner, nn.Linear), "others have been refused"
    return view.owner


def freeze_vocabulary(module: Any) -> None:
    """Embeddings, and a head, stay as they are."""
    for part in (module.get_input_embeddings(), module.get_output_embeddings()):
        if part is not None:
            part.requires_grad_(False)


def around(settings: Qat, loss: LossFn, module: Any) -> Ramped:
    """The loss of weights that are rounded more from step to step."""
    return Ramped(loss, [part for part in module.modules() if isinstance(part, FewLevels)], settings.ramp)


def packed(settings: Qat, model: Model, module: Any, layers: dict[str, str], ctx: Context) -> Model:
    """Codes and scales as they are written, a network with their products as its weights, and the part of low rank as
    an adapter beside them."""
    own, codes, grids, factors, rows = scheme_of(settings.rounding), {}, {}, {}, []
    for disk, name in layers.items():
        trained = module.get_submodule(name).parametrizations["weight"]
        latent, scale, *low_rank = (tensor.detach() for tensor in trained.parameters())
        code, scale = trained[0].written(latent, scale)
        codes[disk] = code.to(torch.int8)
        grids[disk] = IntegerGrid(own.bits, True, own.group_of(code.shape[1]), scale, torch.zeros_like(scale))
        if low_rank:
            factors[name] = tuple(factor.to(FACTOR_DTYPE) for factor in low_rank)
        rows.append(_row(disk, code, scale, trained[0].levels))
    ctx.ledger.table("levels", rows)
    result: Any = without_parametrisations(module)
    for disk, name in layers.items():
        result.get_submodule(name).weight.data.copy_(grids[disk].values(codes[disk]))
    result = cast(result, model.module.dtype).eval().requires_grad_(True)
    views = whole_layers(settings, result)
    schemes = {view.name: own for view in views}
    codes, grids = ({view.name: parts[view.disk] for view in views} for parts in (codes, grids))
    written = pack_all(codes, grids, views, schemes, scale_dtype=model.stored_dtype)
    config = quantization_config(own, views, schemes, ignored_modules(result, views))
    made = model.derive(module=result, packed=written, quantization_config=config)
    return made.with_adapter(Adapter.of(factors)) if factors else made


def _row(disk: str, codes: Tensor, scale: Tensor, levels: Levels) -> dict[str, Any]:
    """What is told of a matrix."""
    shares = {f"share of {level}": float((codes == level).float().mean()) for level in range(levels[0], levels[1] + 1)}
    return {"matrix": disk.removesuffix(".weight"), "mean scale": float(scale.mean())} | shares
