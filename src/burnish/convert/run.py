"""What the stages of this room do: `Upcycle` in memory, `Unpack` from file to file."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from burnish.convert.upcycle import mixtral_config, upcycle
from burnish.core.checkpoint import DeferredModel, Model, cast, load_config
from burnish.core.checkpoint.skeleton import without_weights
from burnish.core.errors import CheckpointError
from burnish.core.kinds import STREAMED, packing
from burnish.core.stage import Context

if TYPE_CHECKING:
    from burnish.convert.stage import Unpack, Upcycle


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
    import torch

    from burnish.convert.unpack import Unpacking

    dtype = getattr(torch, settings.dtype)
    # The stock loader takes its packing out of the configuration of a network that it has made dense.
    config = model.config if model.path is None else load_config(model.path)
    if packing_of(config) not in STREAMED:
        return model.derive(module=cast(copy.deepcopy(model.module), dtype))
    if model.path is None:
        raise CheckpointError("exists in memory only, and packed weights are unpacked from files", fix="save it first")
    unpacking = Unpacking(model.path, packing(config), dtype)
    bare = Model(path=model.path, lineage=model.lineage)
    bare.config = dense_config(config)
    total = len(unpacking.layout)

    def tensors(_: Any) -> Any:
        with ctx.progress.task("unpacking", total=total, unit="tensors") as task:
            for named in unpacking.tensors():
                yield named
                task.advance()

    return DeferredModel(model, without_weights(bare), unpacking.layout, tensors, stored_dtype=dtype)


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
