"""`Tune.run`: a packed model whose weights are functions of their scales, the training of those, and packing again."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from burnish.core.checkpoint import Model, cast, load
from burnish.core.checkpoint.packed_integers import (
    SCALE,
    check_whole_numbers,
    packed_tensors,
    packed_weights,
    quantization_config,
)
from burnish.core.children import num_processes
from burnish.core.errors import CheckpointError, SettingsError
from burnish.core.stage import Context
from burnish.distill.run import run as distill
from burnish.tune.by_layer import train_by_layer
from burnish.tune.maths.rescaled import RelativeGain, Rescaled
from burnish.tune.packed import layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.tune.stage import Tune

TRAINED = "*.parametrizations.weight.original"


def run(settings: Tune, model: Model, ctx: Context) -> Model:
    """The packed model with other scales and norms; its codes are those of the input.

    Raises:
        SettingsError: no weight can be tuned, or several processes.
        CheckpointError: stock loading reads other weights than scales times codes.
    """
    if num_processes() > 1:
        raise SettingsError("tune is for one process only", fix="leave `launch` out of this node")
    check_whole_numbers(quantization_config(model), purpose="scales are tuned of")
    if is_another(ctx.inputs.get("teacher"), model):
        ctx.progress.log("the teacher is another model than the one that this was quantized from")
    dense = cast(copy.deepcopy(model.module), torch.float32)
    scales = _Scales(model)
    if settings.scales:
        scales.put_into(dense, ctx)
    if settings.norms:
        regain(dense, model.module)
    result, continued = dense, list[dict[str, Any]]()
    if settings.by_layer:
        train_by_layer(settings, model, dense, ctx)
    else:
        start = model.derive(module=dense, packed={}, quantization_config=None)
        trained = distill(settings.model_copy(update={"only": TRAINED}), start, ctx)
        result, continued = trained.module, trained.lineage.continued
    written, rows = scales.taken_from(result)
    if rows:
        ctx.ledger.table("scales", rows)
    result = cast(without_parametrisations(result), model.module.dtype).eval()
    made = model.derive(module=result, packed=written, quantization_config=quantization_config(model))
    made.lineage.continued = continued
    return made


def is_another(teacher: Model | str | None, model: Model) -> bool:
    """Whether a model's files say that it was quantized from another one than the teacher's."""
    made_of = model.lineage.parents.get("model") if model.lineage.stage == "quantize" else None
    given = load(teacher) if isinstance(teacher, str) else teacher
    return bool(made_of and given is not None and given.path is not None and given.hash != made_of)


class _Scales:
    """The packed weights of a model, and the layers of a network that are functions of them."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.layers: dict[str, str] = {}  # name of the layer by name on disk of its weight

    def put_into(self, module: Any, ctx: Context) -> None:
        """Makes weights functions of their scales, and says which stay as they are."""
        layers, stay = layers_of(module), list[str]()
        for disk, weight in packed_weights(self.model):
            name, layer = layers.get(disk, ("", None))
            if layer is None or layer.weight.shape != weight.levels.shape:
                stay.append(disk)
                continue
            before = layer.weight.detach().clone()
            parametrize.register_parametrization(layer, "weight", Rescaled(weight.levels, weight.scale))
            if not torch.equal(layer.weight, before):
                raise CheckpointError(
                    "stock loading reads other weights than scales times codes",
                    where=disk,
                    fix="quantize the original again",
                )
            self.layers[disk] = name
        if not self.layers:
            what = f"no packed weight is all of a linear layer, the first is {stay[0]}"
            raise SettingsError(what, where="scales", fix="tune norms alone: scales: false")
        if stay:
            ctx.progress.log(
                f"{len(stay)} packed weights keep their scales (experts in one tensor, an embedding): {stay[0]} ..."
            )

    def taken_from(self, module: nn.Module) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
        """`Model.packed` with the scales that were trained, and how far they moved."""
        packed, rows = {}, []
        for disk, tensors in packed_tensors(self.model):
            if disk in self.layers:
                own: Any = module.get_submodule(self.layers[disk]).parametrizations
                relative = own["weight"].original.detach()
                tensors[disk.removesuffix("weight") + SCALE] = own["weight"][0].scales(relative).contiguous()
                rows.append({"matrix": disk.removesuffix(".weight")} | _moved(relative))
            packed[disk] = tensors
        return packed, rows


def _moved(relative: Tensor) -> dict[str, float]:
    """How far relative scales went from 1."""
    moved = relative - 1
    return {
        "groups": moved.numel(),
        "mean change": float(moved.mean()),
        "rms change": float(moved.square().mean().sqrt()),
        "largest change": float(moved.abs().max()),
    }


def regain(module: nn.Module, stored: nn.Module) -> None:
    """Makes the gains of all norms functions of relative ones."""
    for name, part in module.named_modules():
        gain = getattr(part, "weight", None)
        if "norm" in type(part).__name__.lower() and isinstance(gain, nn.Parameter) and gain.ndim == 1:
            own = stored.get_submodule(name).weight
            assert isinstance(own, Tensor)
            parametrize.register_parametrization(part, "weight", RelativeGain(own.detach()))


def without_parametrisations(module: Any) -> PreTrainedModel:
    """The network with plain weights of the values that they have."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return module
