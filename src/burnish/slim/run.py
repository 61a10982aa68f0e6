"""`Slim.run`: calibration text, scores, what is kept, surgery."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.arch import MatrixView, describe, matrices
from burnish.core.checkpoint import Model, cast, load, move
from burnish.core.errors import DataError, NumericalError, SettingsError
from burnish.core.stage import Context
from burnish.slim.collect import Sums, collect, down_views, grams, output_views
from burnish.slim.maths.experts import reap
from burnish.slim.maths.keep import keep_highest
from burnish.slim.maths.refit import refit_down
from burnish.slim.maths.scores import SCORES, Score, magnitude
from burnish.slim.plan import new_config
from burnish.slim.surgery import Kept, cut
from burnish.slim.target import experts_of, router_groups

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.slim.stage import Slim

FEW_TOKENS = 4
"""An expert with fewer tokens than this many times its width is said to have seen few."""


def run(settings: Slim, model: Model, ctx: Context) -> Model:
    """The smaller model, in memory; the input stays as it is."""
    config = new_config(settings, model.plan())
    dtype = _stored_dtype(model)
    module = _working_copy(model, ctx.device)
    for view in matrices(module):
        if not torch.isfinite(view.tensor).all():
            raise NumericalError("holds weights that are not finite", where=view.name, fix="check the checkpoint")
    if settings.method == "narrow":
        kept, refitted, rows = _narrow(settings, model, module, config, ctx)
    else:
        kept, rows = _drop(settings, model, module, config, ctx)
        refitted = {}
    ctx.ledger.table("slim", rows)
    return model.derive(module=cast(cut(module, config, kept, refitted), dtype))


def _narrow(
    settings: Slim, model: Model, module: PreTrainedModel, config: Any, ctx: Context
) -> tuple[Kept, dict[tuple[int, int], Tensor], list[dict[str, Any]]]:
    was, now = experts_of(module.config), experts_of(config)
    facts, after = describe(module), describe(config)
    shared = was.shared_intermediate_size != now.shared_intermediate_size
    groups = facts.num_key_value_heads != after.num_key_value_heads
    score = SCORES[settings.score_name]
    tokens = _calibration(settings, model, ctx) if score.terms or settings.refit else None
    sums = None
    if score.terms:
        sums = _collect(settings, module, tokens, score, ctx, shared=shared, groups=groups)
        _check_seen(sums, was.intermediate_size, settings, ctx)
    neurons, rows = {}, []
    by_layer: dict[int, list[MatrixView]] = {}
    for view in down_views(module, "experts"):
        assert view.layer is not None
        by_layer.setdefault(view.layer, []).append(view)
    sizes = _neuron_sizes(module)
    for layer, views in by_layer.items():
        scores = torch.stack([_neuron_scores(view, sums, score, settings, sizes, ctx) for view in views])
        neurons[layer] = keep_highest(scores, now.intermediate_size)
        share = scores.gather(1, neurons[layer]).sum() / scores.sum()
        row: dict[str, Any] = {"layer": layer, "experts": len(views), "width": now.intermediate_size}
        if sums is not None:
            counts = sums.counts[layer]
            row |= {"fewest tokens": int(counts.min()), "experts without tokens": int((counts == 0).sum())}
            row |= {"score kept": float(share)}
        rows.append(row)
    kept_shared = {}
    for view in down_views(module, "shared_expert") if shared else ():
        assert view.layer is not None
        scores = _neuron_scores(view, sums, score, settings, sizes, ctx)
        kept_shared[view.layer] = keep_highest(scores, now.shared_intermediate_size)
    kept_groups = _groups(module, sums, score, settings, after.num_key_value_heads, ctx) if groups else {}
    kept = Kept(neurons, kept_shared, {}, kept_groups)
    refitted = dict(_refit(settings, module, tokens, kept, ctx)) if settings.refit and tokens is not None else {}
    return kept, refitted, rows


def _drop(
    settings: Slim, model: Model, module: PreTrainedModel, config: Any, ctx: Context
) -> tuple[Kept, list[dict[str, Any]]]:
    facts, after = describe(module), describe(config)
    groups = facts.num_key_value_heads != after.num_key_value_heads
    name = settings.score_name
    # Attention groups are scored by what they add to the output; experts by `name`.
    group_score = SCORES[name if name in ("random", "magnitude") else "energy"]
    sums = None
    if name in ("reap", "frequency"):
        tokens = _calibration(settings, model, ctx)
        sums = _collect(settings, module, tokens, group_score, ctx, shared=False, groups=groups)
        unseen = sum(int((counts == 0).sum()) for counts in sums.counts.values())
        if unseen:
            ctx.progress.log(f"{unseen} experts saw no calibration token; they are dropped first")
    sizes = _neuron_sizes(module)
    num_groups, num_kept = router_groups(config), experts_of(config).num_experts
    experts, rows = {}, []
    for layer in experts_of(module.config).sparse_layers:
        views = [view for view in down_views(module, "experts") if view.layer == layer]
        if name == "random":
            scores = torch.rand(len(views), generator=ctx.generator, dtype=torch.float64)
        elif name == "magnitude":
            scores = torch.stack([sizes[_owner(view)].norm() for view in views])
        else:
            assert sums is not None
            counts = sums.counts[layer]
            scores = reap(sums.reap[layer], counts) if name == "reap" else counts.double()
        inside = keep_highest(scores.view(num_groups, -1), num_kept // num_groups)
        first = torch.arange(num_groups)[:, None] * (len(views) // num_groups)
        experts[layer] = (inside + first).flatten()
        rows.append({"layer": layer, "experts": num_kept, "kept": experts[layer].tolist()})
    kept_groups = _groups(module, sums, group_score, settings, after.num_key_value_heads, ctx) if groups else {}
    return Kept({}, {}, experts, kept_groups), rows


# -- scores ------------------------------------------------------------------------------------------------------------

Owner = tuple[int | None, str, int | None]


def _owner(view: MatrixView) -> Owner:
    """Names the expert (or shared expert) that a matrix belongs to."""
    return view.layer, view.part, view.expert


def _neuron_sizes(module: PreTrainedModel) -> dict[Owner, Tensor]:
    """`magnitude` of the neurons of every expert."""
    parts: dict[Owner, dict[str, Tensor]] = {}
    for view in matrices(module):
        if view.part in ("experts", "shared_expert"):
            parts.setdefault(_owner(view), {})[view.role] = view.tensor.double().cpu()
    return {owner: magnitude(part["gate"], part["up"], part["down"]) for owner, part in parts.items()}


def _neuron_scores(
    view: MatrixView, sums: Sums | None, score: Score, settings: Slim, sizes: dict[Owner, Tensor], ctx: Context
) -> Tensor:
    """Scores of the hidden neurons in front of one down projection, float64 on the CPU."""
    size = sizes[_owner(view)]
    if settings.score_name == "random":
        return torch.rand(len(size), generator=ctx.generator, dtype=torch.float64)
    if sums is None:
        return size
    assert view.layer is not None
    norms = view.tensor.double().norm(dim=0).cpu()
    if view.expert is None:
        return score.finish(sums.shared[view.layer], norms)
    if sums.counts[view.layer][view.expert] == 0:
        return size
    return score.finish(sums.neurons[view.layer][view.expert], norms)


def _groups(
    module: PreTrainedModel, sums: Sums | None, score: Score, settings: Slim, count: int, ctx: Context
) -> dict[int, Tensor]:
    """Attention groups that are kept, by layer."""
    num_groups = describe(module).num_key_value_heads
    kept = {}
    for view in output_views(module):
        assert view.layer is not None
        if settings.score_name == "random":
            scores = torch.rand(num_groups, generator=ctx.generator, dtype=torch.float64)
        elif sums is None:
            scores = view.tensor.double().cpu().unflatten(1, (num_groups, -1)).norm(dim=(0, 2))
        elif score.needs == "gradients":
            scores = score.finish(sums.groups[view.layer], torch.ones(num_groups, dtype=torch.float64))
        else:
            scores = sums.groups[view.layer]
        kept[view.layer] = keep_highest(scores, count)
    return kept


def _refit(
    settings: Slim, module: PreTrainedModel, tokens: Tensor, kept: Kept, ctx: Context
) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """New down projections, as many Gram matrices at a time as `memory` holds."""
    views = down_views(module, "experts")
    at_once = max(settings.memory // (8 * views[0].shape[1] ** 2), 1)
    for start in range(0, len(views), at_once):
        some = views[start : start + at_once]
        found = grams(module, tokens, some, progress=ctx.progress)
        for view in some:
            assert view.layer is not None and view.expert is not None
            keep = kept.neurons[view.layer][view.expert].to(module.device)
            new = refit_down(view.tensor.double(), found.pop(view.name), keep)
            yield (view.layer, view.expert), new.to(view.tensor.dtype)


def _collect(
    settings: Slim,
    module: PreTrainedModel,
    tokens: Tensor | None,
    score: Score,
    ctx: Context,
    *,
    shared: bool,
    groups: bool,
) -> Sums:
    assert tokens is not None
    teacher = None
    if settings.labels == "teacher" and score.needs == "gradients":
        given = ctx.inputs["teacher"]
        source = given if isinstance(given, Model) else load(given)
        if source.config.vocab_size != module.config.vocab_size:
            raise SettingsError(
                f"the teacher has {source.config.vocab_size:,} tokens in its vocabulary and the model "
                f"{module.config.vocab_size:,}",
                where="teacher",
                fix="use the model that the first cut was made from",
            )
        teacher = _working_copy(source, ctx.device)
    return collect(
        module,
        tokens,
        score,
        shared=shared,
        groups=groups,
        labels=settings.labels,
        teacher=teacher,
        generator=ctx.generator,
        progress=ctx.progress,
    )


def _check_seen(sums: Sums, width: int, settings: Slim, ctx: Context) -> None:
    """Refuses, or says, that experts saw no token; says how many saw few."""
    every = torch.stack(list(sums.counts.values()))
    unseen, few = int((every == 0).sum()), int((every < FEW_TOKENS * width).sum())
    if unseen and not settings.allow_unseen:
        raise DataError(
            f"{unseen} of {every.numel()} experts saw none of the {settings.tokens:,} calibration tokens, so their "
            "neurons cannot be scored",
            where="calibration text",
            fix="use a longer or more varied text and more tokens, or allow_unseen to rank those by their weights",
        )
    if unseen:
        ctx.progress.log(f"{unseen} experts saw no calibration token; their neurons are ranked by their weights")
    if few:
        ctx.progress.log(
            f"{few} of {every.numel()} experts saw fewer than {FEW_TOKENS * width:,} tokens ({FEW_TOKENS} per neuron)"
        )


# -- inputs ------------------------------------------------------------------------------------------------------------


def _calibration(settings: Slim, model: Model, ctx: Context) -> Tensor:
    from burnish.data import calibration

    data = ctx.inputs.get("calibration", settings.calibration)
    length = min(settings.length, model.config.max_position_embeddings)
    return calibration(model.tokenizer, data, length=length, max_tokens=settings.tokens, generator=ctx.generator)


def _stored_dtype(model: Model) -> torch.dtype:
    """The dtype of the input, which the smaller checkpoint keeps."""
    if "module" in model.__dict__:
        return model.module.dtype
    dtype = model.dtype or model.config.dtype or torch.get_default_dtype()
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _working_copy(model: Model, device: str) -> PreTrainedModel:
    """The network on the device: in float32 on a CPU (or float64), in its stored dtype on a GPU.

    Sums are float64 in any case. Cutting copies weights, so that those which stay are the stored ones, bit for bit.
    """
    stored = _stored_dtype(model)
    working = stored if device.startswith("cuda") or stored is torch.float64 else torch.float32
    if model.path is not None and "module" not in model.__dict__:
        return Model(path=model.path, lineage=model.lineage, dtype=working, device=device).module
    return move(cast(copy.deepcopy(model.module), working), device).eval()
