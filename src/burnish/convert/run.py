"""What the stages of this room do: `Upcycle` and `LatentAttention` in memory, `Unpack` from file to file."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from burnish.calibrate import Calibration
from burnish.calibrate.from_disk import to_be_streamed
from burnish.calibrate.windows import BATCH_TOKENS
from burnish.convert.ladder import chosen_layers, ladder
from burnish.convert.latent_config import cached_numbers, check_widths
from burnish.convert.latent_from_disk import Source, deferred
from burnish.convert.latent_network import cache_rows
from burnish.convert.mla import Conversion
from burnish.convert.own_network import own_model
from burnish.convert.swiftkv import swiftkv
from burnish.convert.upcycle import mixtral_config, upcycle
from burnish.core.checkpoint import DeferredModel, Model, cast, compute_dtype, load_config, move, working_copy
from burnish.core.checkpoint.adapter import merged
from burnish.core.checkpoint.packed_integers import FORMATS, formats_of
from burnish.core.checkpoint.skeleton import without_weights
from burnish.core.errors import CheckpointError, DataError
from burnish.core.kinds import STREAMED, packing
from burnish.core.stage import Context

if TYPE_CHECKING:
    from torch import Tensor

    from burnish.convert.stage import LadderResidual, LatentAttention, SwiftKV, Unpack, Upcycle


def run(settings: Upcycle, model: Model, ctx: Context) -> Model:
    """The mixture; the input stays as it is."""
    config = mixtral_config(
        model.config,
        num_experts=settings.num_experts,
        top_k=settings.top_k,
        router_aux_loss_coef=settings.router_aux_loss_coef,
    )
    return model.derive(module=upcycle(model.module, config, noise=settings.noise, generator=ctx.generator))


def run_unpack(settings: Unpack, model: Model, ctx: Context) -> Model:
    """The dense model; it is made while it is saved, unless only the stock loader can read the packed one."""
    from burnish.convert.unpack import Unpacking, UnpackingIntegers

    dtype = getattr(torch, settings.dtype)
    if model.adapter is not None:  # added in float32: what it adds is less than a bfloat16 weight tells apart
        return model.derive(module=cast(merged(working_copy(model, torch.float32, "cpu")), dtype))
    # The stock loader takes its packing out of the configuration of a network that it has made dense.
    config = model.config if model.path is None else load_config(model.path)
    by_blocks = packing_of(config) in STREAMED
    if not by_blocks and (model.packed or model.path is None or not is_streamed(config)):
        return model.derive(module=cast(copy.deepcopy(model.module), dtype))
    if model.path is None:
        raise CheckpointError("exists in memory only, and packed weights are unpacked from files", fix="save it first")
    unpacking = Unpacking(model.path, packing(config), dtype) if by_blocks else UnpackingIntegers(model.path, dtype)
    bare = Model(path=model.path, lineage=model.lineage)
    bare.config = dense_config(config)
    total = len(unpacking.layout)

    def tensors(_: Any) -> Any:
        with ctx.progress.task("unpacking", total=total, unit="tensors") as task:
            for named in unpacking.tensors():
                yield named
                task.advance()

    return DeferredModel(model, without_weights(bare), unpacking.layout, tensors, stored_dtype=dtype)


def is_streamed(config: Any) -> bool:
    """Whether weights are unpacked a tensor at a time, and not by the stock loader in memory."""
    return packing_of(config) in STREAMED or formats_of(packing(config)) <= FORMATS


def packing_of(config: Any) -> str:
    """How weights are packed: fp8, mxfp4 or compressed-tensors.

    Raises:
        CheckpointError: in a way that is not known here.
    """
    method = str(packing(config).get("quant_method"))
    if method not in (*STREAMED, "compressed-tensors"):
        raise CheckpointError(
            f"its weights are packed as {method!r}, and unpack knows {', '.join(STREAMED)} and compressed-tensors",
            fix="name the dense original",
        )
    return method


def dense_config(config: Any) -> Any:
    """A copy that says nothing of packing."""
    dense = copy.deepcopy(config)
    if hasattr(dense, "quantization_config"):
        del dense.quantization_config
    return dense


@torch.no_grad()
def run_mla(settings: LatentAttention, model: Model, ctx: Context) -> Model:
    """The converted model; the input stays as it is."""
    stored = model.stored_dtype  # text goes through it so on a GPU, on a CPU in float32 or float64
    wide = ctx.device.startswith("cuda") or stored is torch.float64
    on_disk = to_be_streamed(model, settings.stream, ctx.device)
    module = on_disk.module if on_disk else working_copy(model, stored if wide else torch.float32, ctx.device)
    text = calibration_text(settings, model, ctx)
    key = {"model": model.identity, "calibration text": text.hash, "dtype": str(module.dtype)}
    work = Conversion(settings, ctx, Source(module, on_disk), text, key, stored)
    store = work.first_pass()
    choice = work.choose(store)
    check_widths(model.config, choice.widths, extra=settings.extra, allow_larger=settings.allow_larger)
    new = work.convert(choice, store)
    ctx.ledger.table("cache", cache_rows(model, new))
    if on_disk:
        return deferred(model, on_disk, new, work.kept, stored)
    return model.derive(module=move(new, "cpu"))


def windows_of(settings: LatentAttention | LadderResidual, model: Model, ctx: Context) -> Tensor:
    """(windows, length) of the calibration data."""
    from burnish.data import calibration

    length = min(settings.length, model.config.max_position_embeddings)
    data = ctx.inputs.get("calibration", settings.calibration)
    return calibration(model.tokenizer, data, length=length, max_tokens=settings.tokens, generator=ctx.generator)


def calibration_text(settings: LatentAttention, model: Model, ctx: Context) -> Calibration:
    """Windows of the calibration data.

    Raises:
        DataError: fewer tokens than the latent has ranks.
    """
    tokens = windows_of(settings, model, ctx)
    needed = cached_numbers(model.config)
    if tokens.numel() < needed:
        raise DataError(
            f"has {tokens.numel():,} tokens, but second moments of {needed} keys and values need at least as many",
            where="calibration text",
            fix="use a longer text or more --tokens",
        )
    if (settings.refit or settings.heal_tokens) and tokens.numel() <= BATCH_TOKENS:
        raise DataError(
            f"has {tokens.numel():,} tokens, and to refit or heal a part of more than {BATCH_TOKENS:,} is held out",
            where="calibration text",
            fix="use a longer text or more --tokens, or leave refit and heal_tokens out",
        )
    return Calibration(tokens, num_folds=1)


def run_ladder(settings: LadderResidual, model: Model, ctx: Context) -> Model:
    """The model with ladders; the input stays as it is."""
    network = move(cast(ladder(model.module, []), compute_dtype(ctx.device)), ctx.device)
    tokens = windows_of(settings, model, ctx).to(ctx.device)
    return own_model(model, ladder(model.module, chosen_layers(settings.layers, network, tokens, ctx)))


def run_swiftkv(settings: SwiftKV, model: Model) -> Model:
    """The model whose later layers have keys and values of an earlier one's output; the input stays as it is."""
    return own_model(model, swiftkv(model.module, settings.from_layer))
