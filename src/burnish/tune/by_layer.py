"""Scales and norms trained layer after layer, each towards what the original's layer gives (`by_layer`).

    min over r, g of  mean over tokens of |layer(x; r, g) - y|² / |y|²

x is what the tuned layers before give, y what the original's layer gives behind its own. Every token counts by its own
size, because the norms that read the stream divide by it. The layer ends as it came where that is no nearer on
rows held out. Memory holds the packed model, one layer of the original, which is read from disk as its turn comes, and
what goes into a layer and comes out. A finished layer is an entry in the store, so an interrupted run goes on behind.

Source: BRECQ, 2021, arXiv:2102.05426, reconstructs block by block; the error is that of `quantize --method learned`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from burnish.arch import HiddenStates, layers, matrices
from burnish.calibrate.blocks import Block, blocks
from burnish.calibrate.windows import Calibration
from burnish.core.checkpoint import Model, common_vocabulary, load, move, without_memory, working_copy
from burnish.core.checkpoint.on_disk import OnDisk
from burnish.core.checkpoint.own_classes import is_own
from burnish.core.errors import CheckpointError, NumericalError, SettingsError
from burnish.core.kinds import Weights
from burnish.core.stage import Context
from burnish.core.store import Store
from burnish.train.maths.schedule import Schedule
from burnish.train.rows import on_disk
from burnish.train.run import training_rows

if TYPE_CHECKING:
    from burnish.data.packing import PackedRows
    from burnish.tune.stage import Tune

MOST_TOKENS = 32_768
"""That are trained on: what goes into a layer and comes out lies in memory for all of them."""
OF_LAYERS = ("model_type", "num_hidden_layers", "rope_parameters", "sliding_window", "layer_types")
"""What a configuration says of its layers beside their sizes, and of what they are called with."""
TABLE, FILE = "layers tuned", "trained.safetensors"


def train_by_layer(settings: Tune, model: Model, module: Any, ctx: Context) -> None:
    """Trains what a network is a function of, in place.

    Args:
        settings: how.
        model: the packed model that it was made of.
        module: the network, whose weights are functions of what is trained.
        ctx: of the stage.

    Raises:
        SettingsError: no teacher, or one of other layers or with an adapter.
        CheckpointError: the teacher has another tokenizer.
        NumericalError: the error of a layer is not finite.
    """
    original = original_of(settings, model, ctx)
    rows, held_out = training_rows(settings, model.tokenizer, on_disk(ctx))
    steps = settings.num_steps(len(rows))
    text = text_of(settings, rows, held_out, steps)
    count = math.ceil(len(text.fold(0)) / settings.batch)
    walked = streamed(original) if ctx.device == "cpu" else None
    network: Any = walked.module if walked else working_copy(original, torch.float32, ctx.device)
    views = [view for view in matrices(network) if view.layer is not None]
    move(module, ctx.device)
    masks = [batch.mask for fold in (0, 1) for batch in text.batches(fold, module.device, batch_tokens(settings))]
    store = Store(ctx.work_dir / "layers")
    key = settings.canonical() | {"model": model.identity, "teacher": original.identity, "text": text.hash}
    own, told = layers(module), []
    with ctx.progress.task("tuning layers", total=len(own), unit="layers") as task:
        for block in blocks(network, views, text, batch_tokens=batch_tokens(settings), on_disk=walked):
            _, layer = own[block.number]
            trained = {name: part for name, part in layer.named_parameters() if name.endswith(".weight.original")}
            task.advance(1)
            if not trained:  # all of it was left dense, and norms stay
                hand_over(layer, block.layer)
                continue
            layer.requires_grad_(False)
            for parameter in trained.values():
                parameter.requires_grad_(True)
            name = f"layer{block.number:03d}"
            if store.find(name, key) is None:
                errors = descend(settings, layer, list(trained.values()), block, masks, count, steps)
                kept = torch.tensor(errors, dtype=torch.float64)
                with store.writing(name, key) as place:
                    save_file({"errors": kept} | {n: p.detach().cpu() for n, p in trained.items()}, place / FILE)
            found = load_file(store.directory / name / FILE)
            before, after = found["errors"].tolist()
            with torch.no_grad():
                for part, parameter in trained.items():
                    parameter.copy_(found[part])
            where = "rows trained on" if held_out is None else "held-out rows"
            told.append({"layer": block.number, f"error before, {where}": before, f"error after, {where}": after})
            hand_over(layer, block.layer)
    ctx.ledger.table(TABLE, told)


def original_of(settings: Tune, model: Model, ctx: Context) -> Model:
    """The teacher, with the model's own tokens and layers."""
    given = ctx.inputs.get("teacher")
    if given is None:
        raise SettingsError("no teacher is named", where="teacher", fix="give teacher: CHECKPOINT, or --teacher")
    original = given if isinstance(given, Model) else load(given)
    common_vocabulary(model, original, role="teacher")
    if original.adapter is not None:
        raise SettingsError(
            "the teacher has a LoRA adapter beside its weights, and layers are compared without one",
            where="teacher",
            fix="add it to the weights first (burnish convert unpack), or leave by_layer out",
        )
    check_same_layers(model, original)
    return original


def check_same_layers(model: Model, original: Model) -> None:
    """Refuses a teacher whose layers cannot take the model's weights, or that calls them with other arguments.

    Raises:
        SettingsError: it has layers of another kind, other sizes or other positions.
        CheckpointError: its layers cannot be run one by one.
    """
    facts, shapes = list[dict[str, Any]](), list[dict[str, tuple[int, ...]]]()
    for one in (model, original):
        config, network = one.config.get_text_config(), without_memory(one.config)
        check_layers(network)
        facts.append({name: getattr(config, name, None) for name in OF_LAYERS})
        own = [named for path, layer in layers(network) for named in layer.named_parameters(path)]
        shapes.append({name: tuple(parameter.shape) for name, parameter in own})
    for ours, theirs in (facts, shapes):
        differs = next((name for name in ours | theirs if ours.get(name) != theirs.get(name)), None)
        if differs is not None:
            raise SettingsError(
                f"the model has {differs} {ours.get(differs)} and the teacher {theirs.get(differs)}, but "
                "by_layer compares them layer by layer",
                where="by_layer",
                fix="leave by_layer out",
            )


def check_layers(module: Any) -> None:
    """Raises `CheckpointError` for a network whose layers cannot be run one by one."""
    if is_own(module.config.model_type):
        raise CheckpointError(
            f"layers of a {module.config.model_type} cannot be run one at a time", fix="leave by_layer out"
        )
    layers(module)


def streamed(original: Model) -> OnDisk | None:
    """The original on disk, where its layers can be read one by one."""
    plain = original.lineage.weights is Weights.DENSE and original.adapter is None
    if not plain or original.path is None or original.is_loaded:
        return None
    found = OnDisk(original)
    return None if found.absent else found


def text_of(settings: Tune, rows: PackedRows, held_out: PackedRows | None, steps: int) -> Calibration:
    """As many rows as are trained on, in an order drawn from the seed, and in a fold of their own those that are
    measured on: the held-out ones, or else some of the first."""
    most = max(1, min(MOST_TOKENS // rows.length, steps * settings.batch))
    order = np.random.default_rng(settings.seed).permutation(len(rows))[:most]
    beside = rows if held_out is None else held_out.spread(settings.validation_rows)
    last = order[: settings.validation_rows] if held_out is None else np.arange(len(beside))
    parts = ((rows, order), (beside, last))
    tokens = np.concatenate([part.input_ids[chosen] for part, chosen in parts]).astype(np.int64)
    used = np.concatenate([part.used[chosen] for part, chosen in parts])
    inside = torch.from_numpy(np.arange(rows.length) < used[:, None])
    mask = None if inside.all() else inside
    return Calibration(torch.from_numpy(tokens), num_folds=2, mask=mask, fold_ends=(len(order), len(tokens)))


def batch_tokens(settings: Tune) -> int:
    return settings.batch * settings.context


def descend(
    settings: Tune,
    layer: nn.Module,
    trained: Sequence[nn.Parameter],
    block: Block,
    masks: Sequence[Tensor | None],
    count: int,
    steps: int,
) -> tuple[float, float]:
    """Trains one layer; its error on the rows that are measured on, before and after.

    Args:
        settings: rate, schedule and seed.
        layer: with weights that are functions of what is trained.
        trained: that.
        block: what goes in and what should come out, a batch at a time.
        masks: of the batches, True where there is a token.
        count: of batches that are trained on, the first ones.
        steps: of AdamW.
    """

    def error(number: int) -> Tensor:
        return token_error(block.inputs[number], block.number, layer, block.targets[number], masks[number])

    def measured() -> float:
        with torch.no_grad():
            return float(torch.stack([error(number) for number in range(count, len(masks))]).mean())

    before, start = measured(), [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=0.0)
    schedule = Schedule(settings.schedule, settings.warmup, settings.final_lr, settings.decay)
    chance = np.random.default_rng([settings.seed, block.number])
    order = np.concatenate([chance.permutation(count) for _ in range(math.ceil(steps / count))])[:steps]
    for step, number in enumerate(order.tolist()):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * schedule(step, steps)
        loss = error(number)
        if not loss.isfinite():
            raise NumericalError(f"the error is {loss.item()} at step {step}", where=block.path, fix="lower lr")
        gradients = torch.autograd.grad(loss, list(trained))
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    after = measured()
    if settings.keep_best and not after < before:
        with torch.no_grad():
            for parameter, first in zip(trained, start, strict=True):
                parameter.copy_(first)
        return before, before
    return before, after


def token_error(states: HiddenStates, number: int, layer: nn.Module, target: Tensor, mask: Tensor | None) -> Tensor:
    """|output - target|² / |target|², a mean over the tokens of a few rows."""
    errors = (states.through(number, layer) - target).square().sum(dim=2)
    relative = errors / target.square().sum(dim=2).clamp(min=torch.finfo(target.dtype).tiny)
    return relative.mean() if mask is None else relative[mask.bool()].mean()


def hand_over(layer: nn.Module, to: nn.Module) -> None:
    """Gives another network's layer the values that this one's weights have now."""
    with torch.no_grad():
        for path, part in to.named_modules():
            own = layer.get_submodule(path)
            for name, parameter in part.named_parameters(recurse=False):
                parameter.copy_(getattr(own, name))
