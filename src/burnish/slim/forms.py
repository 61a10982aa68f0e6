"""What goes, of each method: neurons, pieces of experts, experts or layers, by their scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from burnish.arch import describe
from burnish.core.checkpoint import Model, move
from burnish.slim import split
from burnish.slim.behind import refit_behind
from burnish.slim.depth import kept_layers
from burnish.slim.maths.experts import reap
from burnish.slim.maths.keep import keep_highest
from burnish.slim.maths.scores import SCORES
from burnish.slim.maths.split import common_direction, in_pieces, tie_breaks
from burnish.slim.price import own_widths
from burnish.slim.refit import refit
from burnish.slim.selection import (
    Selection,
    check_seen,
    comparable,
    kept_experts,
    kept_groups,
    kept_shared,
    neuron_sizes,
    scores_by_layer,
    sums_of,
)
from burnish.slim.surgery import Kept, Refitted, cut
from burnish.slim.target import experts_of
from burnish.slim.uncut import Uncut

Chosen = tuple[Kept, Refitted, list[dict[str, Any]]]
"""What is kept, down projections that are refitted, and the rows of the ledger's table."""


def by_width(selection: Selection) -> Chosen:
    """Neurons by the score; experts, where fewer are wanted too, by what the neurons that they keep add up to."""
    settings = selection.settings
    was, now = experts_of(selection.uncut.module.config), experts_of(selection.config)
    score = SCORES[settings.score_name]
    sums = None
    if score.terms:
        sums = sums_of(selection, score)
        check_seen(sums, was.intermediate_size, settings, selection.ctx)
    neurons, experts, rows, scored = {}, {}, [], {}
    for layer, scores in scores_by_layer(selection, sums, score):
        scored[layer] = comparable(scores, sums, layer)
        neurons[layer] = keep_highest(scores, now.intermediate_size)
        kept_scores = scored[layer].gather(1, neurons[layer]).sum(1)
        row: dict[str, Any] = {"layer": layer, "experts": now.num_experts, "width": now.intermediate_size}
        if now.num_experts < was.num_experts:
            experts[layer] = kept_experts(selection, kept_scores)
            kept_scores, neurons[layer] = kept_scores[experts[layer]], neurons[layer][experts[layer]]
        if sums is not None:
            counts = sums.counts[layer]
            row |= {"fewest tokens": int(counts.min()), "experts without tokens": int((counts == 0).sum())}
            row |= {"score kept": float(kept_scores.sum() / scored[layer].sum())}
        rows.append(row)
    kept = Kept(neurons, kept_shared(selection, sums, score), experts, kept_groups(selection, sums, score))
    if sums is not None and now.intermediate_size < was.intermediate_size and not experts:
        selection.widths = neurons, own_widths(scored, now.intermediate_size)
    return kept, _refit(selection, kept), rows


def by_pieces(selection: Selection) -> Chosen:
    """Pieces of experts by what the score of their neurons adds up to."""
    settings, config = selection.settings, selection.uncut.module.config
    was, now = experts_of(config), experts_of(selection.config)
    score = SCORES[settings.score_name]
    sums = sums_of(selection, score)
    check_seen(sums, was.intermediate_size, settings, selection.ctx)
    drops = now.num_experts < settings.pieces * was.num_experts
    neurons, experts, rows, scored, added = {}, {}, [], {}, {}
    for layer, scores in scores_by_layer(selection, sums, score):
        scored[layer] = comparable(scores, sums if score.terms else None, layer)
        parts = in_pieces(scores, settings.pieces)
        worth = scored[layer].gather(1, parts.flatten(1)).view(parts.shape).sum(2)
        chosen = split.kept_pieces(worth.flatten(), now.num_experts, config, settings.pieces)
        experts[layer] = chosen // settings.pieces
        part, of_part = parts.flatten(0, 1)[chosen], scores[experts[layer]]
        best = keep_highest(of_part.gather(1, part), now.intermediate_size)
        neurons[layer] = part.gather(1, best)
        if drops:
            total, squares = sums.routers[layer]
            direction = common_direction(total, squares, selection.tokens.numel())
            added[layer] = tie_breaks(chosen % settings.pieces, direction)
        held = torch.bincount(experts[layer], minlength=was.num_experts)
        rows.append(
            {"layer": layer, "pieces": now.num_experts, "width": now.intermediate_size}
            | {"pieces of an expert": f"{int(held.min())} to {int(held.max())}"}
            | {"fewest tokens": int(sums.counts[layer].min())}
            | {"score kept": float(scored[layer][experts[layer]].gather(1, neurons[layer]).sum() / scored[layer].sum())}
        )
    kept = Kept(
        neurons,
        kept_shared(selection, sums, score),
        experts,
        kept_groups(selection, sums, score),
        factor=split.factor(config, selection.config),
        correction=split.correction(config, selection.config),
        rows=added,
    )
    if drops:
        width = now.num_experts * now.intermediate_size // was.num_experts
        equal = {layer: list(keep_highest(one, width)) for layer, one in scored.items()}
        selection.widths = equal, own_widths(scored, width)
    return kept, _refit(selection, kept), rows


def _refit(selection: Selection, kept: Kept) -> dict[tuple[int, int | None], Tensor]:
    """Down projections that are refitted, as the settings say, in the dtype of the input."""
    name, progress = selection.settings.refit_name, selection.ctx.progress
    if name == "none":
        return {}
    if name == "alone":
        found = refit(selection.network, selection.tokens, kept, progress, selection.on_disk)
    else:
        smaller = cut(Uncut(Model(module=selection.network)), selection.config, kept)
        smaller = move(smaller, str(selection.network.device))
        found, selection.smaller = refit_behind(selection.network, smaller, selection.tokens, progress), smaller
    return {place: down.to("cpu", selection.uncut.dtype) for place, down in found}


def by_experts(selection: Selection) -> Chosen:
    """Experts by the score; neurons, where the others are to be narrower too, by their energy."""
    name, generator = selection.settings.score_name, selection.ctx.generator
    # Neurons and attention groups are scored by what they add to the output; experts by `name`.
    part_score = SCORES[name if name in ("random", "magnitude") else "energy"]
    was, now = experts_of(selection.uncut.module.config), experts_of(selection.config)
    sums = None
    if name in ("reap", "frequency"):
        sums = sums_of(selection, part_score)
        unseen = sum(int((counts == 0).sum()) for counts in sums.counts.values())
        if unseen:
            selection.ctx.progress.log(f"{unseen} experts saw no calibration token; they are dropped first")
    experts, rows = {}, []
    for layer in was.sparse_layers:
        views = [view for view in selection.views("experts") if view.layer == layer]
        if name == "random":
            scores = torch.rand(len(views), generator=generator, dtype=torch.float64)
        elif name == "magnitude":
            scores = torch.stack([neuron_sizes(selection.uncut, view).norm() for view in views])
        else:
            assert sums is not None
            counts = sums.counts[layer]
            scores = reap(sums.reap[layer], counts) if name == "reap" else counts.double()
        experts[layer] = kept_experts(selection, scores)
        rows.append({"layer": layer, "experts": now.num_experts, "kept": experts[layer].tolist()})
    neurons = {}
    if now.intermediate_size < was.intermediate_size:
        for layer, scores in scores_by_layer(selection, sums, part_score):
            neurons[layer] = keep_highest(scores[experts[layer]], now.intermediate_size)
    kept = Kept(neurons, kept_shared(selection, sums, part_score), experts, kept_groups(selection, sums, part_score))
    return kept, {}, rows


def by_layers(selection: Selection) -> Chosen:
    """Whole layers by the score."""
    score = selection.settings.score_name
    sizes = describe(selection.uncut.module).num_layers, describe(selection.config).num_layers
    text = (None, None) if score == "random" else (selection.network, selection.tokens)
    chosen, rows = kept_layers(score, *text, sizes, selection.ctx)
    return Kept(layers=chosen), {}, rows


FORMS: dict[str, Callable[[Selection], Chosen]] = {
    "narrow": by_width,
    "split": by_pieces,
    "drop": by_experts,
    "depth": by_layers,
}
