"""Whole decoder layers taken out of a model whose layers are all of one kind: which ones, and what that leaves.

    influence of layer l = 1 - mean over tokens of cos(h_l, h_(l+1))        h_l, h_(l+1): before and after the layer

A layer that hardly turns its hidden states has a small influence and goes first (ShortGPT, 2024, arXiv:2403.03853).
`divergence` asks the model itself: layers go one after the other, each time the one without which the next-token
distribution is nearest to that of the whole model (forward KL), which sees that two layers may stand in for each other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.arch import describe, layers, matrices
from burnish.core.checkpoint import plan_config, without_memory
from burnish.core.errors import SettingsError
from burnish.train.maths.divergence import forward_kl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.core.progress import Progress

AT_ONCE = 1024
"""Tokens of calibration text in a forward pass."""


def shallower(config: Any, num_layers: int) -> Any:
    """A copy of the configuration with fewer decoder layers, whichever they are.

    Raises:
        SettingsError: there are not more than that, or they are not all alike.
    """
    facts = describe(config)
    if not 1 <= num_layers < facts.num_layers:
        raise SettingsError(
            f"num_layers is {num_layers}, but the {config.model_type} model has {facts.num_layers}, and slim only cuts",
            where="num_layers",
            fix=f"use 1 to {facts.num_layers - 1}",
        )
    new = copy.deepcopy(config)
    text = new.get_text_config()
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == facts.num_layers and facts.num_layers > 1:
            if any(one != value[0] for one in value):
                _refuse(config, name)
            setattr(text, name, value[:num_layers])
    shapes: dict[int, list[tuple[str, str, int | None, tuple[int, ...]]]] = {}
    for view in matrices(without_memory(config)):
        if view.layer is not None:
            shapes.setdefault(view.layer, []).append((view.part, view.role, view.expert, tuple(view.shape)))
    if any(shapes[layer] != shapes[0] for layer in shapes):
        _refuse(config, "their matrices")
    setattr(text, facts.key("num_hidden_layers"), num_layers)
    return new


def _refuse(config: Any, what: str) -> None:
    raise SettingsError(
        f"the layers of this {config.model_type} model are not all alike ({what}), so what is left would depend on "
        "which of them go",
        where="method",
        fix="quantize it, or cut a mixture by method narrow or drop",
    )


def fitting(config: Any, allowed: int) -> int:
    """The largest number of layers with at most `allowed` parameters.

    Raises:
        SettingsError: the model fits already, or one layer is too many.
    """
    num_layers = describe(config).num_layers
    if num_layers == 1:
        raise SettingsError("the model has one decoder layer, and that cannot be left out", where="method")
    full, one = plan_config(config).num_parameters, plan_config(shallower(config, 1)).num_parameters
    if full <= allowed:
        raise SettingsError(
            f"the model has {full:,} parameters and the target allows {allowed:,}, so there is nothing to cut",
            fix="choose a smaller target",
        )
    if one > allowed:
        raise SettingsError(
            f"the target allows {allowed:,} parameters, but with one layer {one:,} are left",
            fix="choose a larger target, or quantize afterwards",
        )
    return 1 + (allowed - one) * (num_layers - 1) // (full - one)


def size_of_next(config: Any, num_layers: int) -> int:
    """Parameters with one layer more."""
    more = num_layers + 1 < describe(config).num_layers
    return plan_config(shallower(config, num_layers + 1) if more else config).num_parameters


def num_passes(score: str, num_layers: int, kept: int) -> int:
    """How often the calibration text goes through about the whole model."""
    if score == "divergence":
        return sum(remaining + 1 for remaining in range(kept + 1, num_layers + 1))
    return int(score == "influence")


def kept_layers(
    score: str, network: PreTrainedModel | None, tokens: Tensor | None, sizes: tuple[int, int], ctx: Any
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Numbers of the layers that stay, ascending, and a row for each layer.

    Args:
        score: `influence`, `divergence` or `random`.
        network, tokens: the model and windows of text, on one device; None for `random`.
        sizes: layers that there are, and that stay.
        ctx: of the stage.
    """
    total, kept = sizes
    if score == "random":
        chosen = torch.randperm(total, generator=ctx.generator)[:kept].sort().values
        return chosen, [{"layer": layer, "kept": layer in chosen.tolist()} for layer in range(total)]
    assert network is not None and tokens is not None, "text goes through the model for every other score"
    if score == "influence":
        values = influences(network, tokens)
        chosen = values.topk(kept).indices.sort().values
        rows = [{"influence": float(value)} for value in values]
    else:
        order = by_divergence(network, tokens, total - kept, ctx.progress)
        gone = dict(order)
        chosen = torch.tensor([layer for layer in range(total) if layer not in gone])
        rows = [{"divergence without it and those before": gone.get(layer)} for layer in range(total)]
    return chosen, [{"layer": i, "kept": i in chosen.tolist(), **row} for i, row in enumerate(rows)]


@torch.no_grad()
def influences(network: PreTrainedModel, tokens: Tensor) -> Tensor:
    """1 - mean cosine between what goes into a layer and what comes out, for every layer, in float64."""
    parts = [layer for _, layer in layers(network)]
    sums = torch.zeros(len(parts), dtype=torch.float64)

    def note(number: int):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosines = nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
            sums[number] += float((1 - cosines).sum())

        return hook

    hooks = [part.register_forward_hook(note(i), with_kwargs=True) for i, part in enumerate(parts)]
    try:
        for ids in _batches(tokens, network):
            network(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return sums / tokens.numel()


@torch.no_grad()
def by_divergence(network: PreTrainedModel, tokens: Tensor, count: int, progress: Progress) -> list[tuple[int, float]]:
    """The layers that go, in their order, with the divergence from the whole model once each is gone, in nats."""
    parts = [layer for _, layer in layers(network)]
    gone: list[tuple[int, float]] = []
    passes = num_passes("divergence", len(parts), len(parts) - count)
    with progress.task("layers left out", total=passes * tokens.numel(), unit="tokens") as task:
        for _ in range(count):
            without = [layer for layer, _ in gone]
            sums = {layer: 0.0 for layer in range(len(parts)) if layer not in without}
            for ids in _batches(tokens, network):
                whole = network(input_ids=ids, use_cache=False).logits.float()
                for layer in sums:
                    with skipping(parts[i] for i in (*without, layer)):
                        logits = network(input_ids=ids, use_cache=False).logits.float()
                    sums[layer] += float(forward_kl(logits, whole).sum())
                task.advance((len(sums) + 1) * ids.numel())
            best = min(sums, key=lambda layer: (sums[layer], layer))
            gone.append((best, sums[best] / tokens.numel()))
    return gone


@contextmanager
def skipping(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Some decoder layers hand their input on unchanged."""
    changed = [(part, part.forward) for part in parts]

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states

    for part, _ in changed:
        part.forward = forward
    try:
        yield
    finally:
        for part, original in changed:
            part.forward = original


def _batches(tokens: Tensor, network: PreTrainedModel) -> Iterator[Tensor]:
    for ids in tokens.split(max(1, math.floor(AT_ONCE / tokens.shape[1]))):
        yield ids.to(network.device)
