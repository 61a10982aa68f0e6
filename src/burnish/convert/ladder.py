"""Ladder residuals: layers whose sub-blocks read the stream of one sub-block earlier, with the weights that they had.

    standard:  x_i = x_(i-1) + h_i(x_(i-1))          ladder:  x_i = x_(i-1) + h_i(x_(i-2))

So an all-reduce of tensor parallelism need not have arrived when the next sub-block begins. What a model was trained to
read is one sub-block younger than what it reads then, so the conversion costs quality and is the start of a training.
The forward pass itself is `burnish.core.checkpoint.modeling_ladder`, which lies beside the weights of what is made.

Source: Ladder-Residual (2025, arXiv:2501.06589).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.arch import describe
from burnish.arch.row import LayerPart, NormPart, VectorPart
from burnish.convert.own_network import check_residuals, own_config, own_network, own_plan
from burnish.core.checkpoint.modeling_ladder import BY_COLUMNS, BY_ROWS
from burnish.core.checkpoint.own_classes import LADDER
from burnish.core.errors import SettingsError
from burnish.train.maths.divergence import forward_kl

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from burnish.convert.stage import LadderResidual
    from burnish.core.kinds import Plan
    from burnish.core.progress import Progress
    from burnish.core.stage import Context

AT_ONCE = 512
"""Tokens of text in a forward pass."""


def check_source(config: PretrainedConfig) -> None:
    """Refuses what `modeling_ladder` has no form for.

    Raises:
        SettingsError: layers that are not attention and MLP, each with its norm in front, added as they are.
    """
    parts, what = describe(config).row.parts, f"there is no ladder for a {config.model_type} model"
    check_residuals(config, what)
    known = {*BY_ROWS, *BY_COLUMNS}
    strange = [_place(part) for part in parts if not isinstance(part, NormPart) and _place(part) not in known]
    if strange:
        raise SettingsError(f"{what}: nothing is known of how ranks would share its {strange[0]}")


def _place(part: LayerPart) -> str:
    return part.parameter if isinstance(part, VectorPart) else part.module


def ladder_config(config: PretrainedConfig, numbers: Sequence[int]) -> Any:
    """The configuration with these layers in ladders.

    Args:
        config: of the source.
        numbers: of layers, from 0.

    Raises:
        SettingsError: there is no ladder for this type of model.
    """
    check_source(config)
    return own_config(config, LADDER, ladder_layers=list(numbers))


def ladder(module: PreTrainedModel, numbers: Sequence[int]) -> Any:
    """The network with these layers in ladders, in evaluation mode, sharing no memory with the module."""
    return own_network(module, ladder_config(module.config, numbers))


def places(layers: str, num_layers: int) -> list[list[int]]:
    """The runs of neighbouring layers that `last:N` and `auto:N` choose among, by their numbers.

    Raises:
        SettingsError: more than there are.
    """
    how, _, number = layers.partition(":")
    last = num_layers - int(number)
    if last < 0:
        raise SettingsError(f"layers is {layers}, but the model has {num_layers}", where="layers")
    return [list(range(first, first + int(number))) for first in range(0 if how == "auto" else last, last + 1)]


@torch.no_grad()
def costs(network: Any, runs: Iterable[Sequence[int]], tokens: Tensor, progress: Progress, what: str) -> list[float]:
    """Divergence KL(standard || ladder) in nats a token with each of these runs of layers in a ladder, and no others.

    Args:
        network: from `ladder`; its ladders are others afterwards.
        runs: numbers of layers.
        tokens: (windows, length), on its device.
        progress, what: where and how it is said.
    """
    runs = list(runs)
    sums = [0.0] * len(runs)
    with progress.task(what, total=(len(runs) + 1) * tokens.numel(), unit="tokens") as task:
        for ids in tokens.split(max(1, AT_ONCE // tokens.shape[1])):
            network.set_ladder([])
            whole = network(input_ids=ids, use_cache=False).logits.float()
            task.advance(ids.numel())
            for place, run in enumerate(runs):
                network.set_ladder(list(run))
                sums[place] += float(forward_kl(network(input_ids=ids, use_cache=False).logits.float(), whole).sum())
                task.advance(ids.numel())
    return [total / tokens.numel() for total in sums]


def chosen_layers(layers: str, network: Any, tokens: Tensor, ctx: Context) -> list[int]:
    """The layers that `last:N` or `auto:N` mean, with tables of what they cost.

    Args:
        layers: as above.
        network: from `ladder`; its ladders are others afterwards.
        tokens: (windows, length), on its device.
        ctx: of the stage.
    """
    runs = places(layers, describe(network).num_layers)
    chosen, number = runs[-1], len(runs[-1])
    if len(runs) > 1:
        found = costs(network, runs, tokens, ctx.progress, "ladders at every place")
        chosen = runs[min(range(len(runs)), key=found.__getitem__)]
        rows = [
            {"first layer": run[0], "last layer": run[-1], "divergence": value, "chosen": run == chosen}
            for run, value in zip(runs, found, strict=True)
        ]
        ctx.ledger.table("ladder_places", rows)
        ctx.progress.log(f"layers {chosen[0]} to {chosen[-1]}, {min(found):.3f} nats a token on the calibration text")
    alone, behind = [[layer] for layer in chosen], [chosen[place:] for place in range(number)]
    found = costs(network, alone + behind, tokens, ctx.progress, "ladders layer by layer")
    rows = [
        {"layer": layer, "divergence alone": found[place], "divergence with those behind it": found[number + place]}
        for place, layer in enumerate(chosen)
    ]
    ctx.ledger.table("ladder_layers", rows)
    return chosen


def plan(settings: LadderResidual, before: Plan) -> Plan:
    """Sizes stay; what is made is of a class of its own.

    Raises:
        SettingsError: nobody said that this is wanted, or the model has no ladder or fewer layers.
    """
    config = ladder_config(before.config, [])
    number = len(places(settings.layers, describe(before.config).num_layers)[0])
    return own_plan(
        before,
        config,
        custom_code=settings.custom_code,
        peak_memory_bytes=3 * before.num_bytes + 4 * before.num_parameters + 1_000_000_000,
        note=f"{number} layers in a ladder",
    )
