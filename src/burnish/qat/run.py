"""`Qat.run`: a copy of the model whose weights are functions of latent ones, its training, and packing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from burnish.core.checkpoint import Model, cast, compute_dtype
from burnish.core.children import num_processes
from burnish.core.errors import NumericalError, SettingsError
from burnish.core.stage import Context
from burnish.distill.run import run as distill
from burnish.qat.latent import FewLevels, Ramped
from burnish.qat.maths.few_levels import TERNARY, TWO_BITS, initial_scale
from burnish.quantize.maths.grid import IntegerGrid
from burnish.quantize.packing import check_loadable, ignored_modules, pack_all, quantization_config
from burnish.quantize.plan import matrices_of, select
from burnish.quantize.schemes import scheme_of, schemes_of
from burnish.train.losses import LossFn
from burnish.tune.run import without_parametrisations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.arch import MatrixView
    from burnish.qat.stage import Qat


def run(settings: Qat, model: Model, ctx: Context) -> Model:
    """The packed model, whose network has the weights that are written.

    Raises:
        SettingsError: several processes, nothing to quantize, or a group size that does not divide.
        NumericalError: a weight is not finite.
    """
    if num_processes() > 1:
        raise SettingsError("qat is for one process only", where="launch", fix="leave `launch` out of this node")
    dense: Any = cast(copy.deepcopy(model.module), torch.float32)
    layers = parametrise(settings, dense, model.stored_dtype)
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


def parametrise(settings: Qat, module: PreTrainedModel, stored: torch.dtype) -> dict[str, str]:
    """Makes the weights of linear layers functions of what is trained: {name on disk: name of the layer}."""
    levels = TERNARY if settings.bits == "ternary" else TWO_BITS
    names = {id(part): name for name, part in module.named_modules()}
    views = whole_layers(settings, module)
    for view in views:
        weight = layer_of(view).weight.detach()
        if not weight.isfinite().all():
            raise NumericalError(
                "has numbers that are not finite", where=view.disk, fix="download the checkpoint again"
            )
        scale = initial_scale(weight, settings.group_size or weight.shape[1], levels, settings.scale_init)
        parametrize.register_parametrization(view.owner, "weight", FewLevels(levels, (weight, scale), stored))
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
                fix="quantize a model without routed experts, or use burnish quantize",
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
    """Codes and scales as they are written, and the network with their products as its weights."""
    own, codes, grids, rows = scheme_of(settings.rounding), {}, {}, []
    for disk, name in layers.items():
        trained = module.get_submodule(name).parametrizations["weight"]
        trained[0].part = 1.0
        levels, scale = trained[0].written(trained.original0.detach(), trained.original1.detach())
        codes[disk] = levels.to(torch.int8)
        size = own.group_of(levels.shape[1])
        grids[disk] = IntegerGrid(own.bits, True, size, scale, torch.zeros_like(scale))
        rows.append(_row(disk, levels, scale))
    ctx.ledger.table("levels", rows)
    result = cast(without_parametrisations(module), model.module.dtype).eval().requires_grad_(True)
    views = whole_layers(settings, result)
    schemes = {view.name: own for view in views}
    codes, grids = ({view.name: parts[view.disk] for view in views} for parts in (codes, grids))
    written = pack_all(codes, grids, views, schemes, scale_dtype=model.stored_dtype)
    config = quantization_config(own, views, schemes, ignored_modules(result, views))
    return model.derive(module=result, packed=written, quantization_config=config)


def _row(disk: str, levels: torch.Tensor, scale: torch.Tensor) -> dict[str, Any]:
    """What is told of a matrix."""
    shares = {f"share of {level:+d}": float((levels == level).float().mean()) for level in range(-2, 2)}
    return {"matrix": disk.removesuffix(".weight"), "mean scale": float(scale.mean())} | shares
