"""`Slim.run`: calibration text, scores, what is kept, surgery.

A checkpoint on disk is read whole only where text goes through it and there is room; else the text takes a layer at a
time. Scores of weights alone, and the cut itself, take a matrix at a time from its files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.arch import MatrixView, describe
from burnish.core.checkpoint import Model, common_vocabulary, load
from burnish.core.checkpoint.on_disk import OnDisk
from burnish.core.errors import DataError, NumericalError
from burnish.core.stage import Context
from burnish.slim import split
from burnish.slim.behind import refit_behind
from burnish.slim.collect import ScoreSums, collect
from burnish.slim.depth import kept_layers
from burnish.slim.maths.experts import reap
from burnish.slim.maths.keep import keep_highest
from burnish.slim.maths.scores import SCORES, Score, magnitude
from burnish.slim.maths.split import common_direction, in_pieces
from burnish.slim.plan import new_config
from burnish.slim.price import COMPARABLE, WINDOWS, own_widths, say_price
from burnish.slim.refit import refit
from burnish.slim.surgery import Kept, Refitted, cut, deferred_cut
from burnish.slim.target import experts_of, router_groups
from burnish.slim.uncut import Uncut, to_be_streamed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.slim.stage import Slim

FEW_TOKENS = 4
"""An expert with fewer tokens than this many times its width is said to have seen few."""


def run(settings: Slim, model: Model, ctx: Context) -> Model:
    """The smaller model; the input stays as it is. What came from disk is cut while it is saved."""
    config, uncut = new_config(settings, model.plan()), Uncut(model)
    for view in uncut.matrices:
        if not torch.isfinite(uncut.matrix(view)).all():
            raise NumericalError("holds weights that are not finite", where=view.name, fix="check the checkpoint")
    choose = {"narrow": _narrow, "split": _split, "drop": _drop, "depth": _leave_out}[settings.method]
    # The choice holds the network that text went through; it is gone before the cut is made.
    kept, refitted, rows = choose(_Choice(settings, model, uncut, config, ctx))
    ctx.ledger.table("slim", rows)
    if uncut.files is not None:
        return deferred_cut(uncut, config, kept, refitted)
    return model.derive(module=cut(uncut, config, kept, refitted))


@dataclass
class _Choice:
    """What choosing needs.

    Attributes:
        settings, ctx: of the stage.
        model: the input.
        uncut: the same, a matrix at a time.
        config: of the smaller model.
        smaller: what was cut from `network`, once it has been refitted.
    """

    settings: Slim
    model: Model
    uncut: Uncut
    config: Any
    ctx: Context
    smaller: PreTrainedModel | None = None

    @cached_property
    def network(self) -> PreTrainedModel:
        """The model for text to go through; without weights where it is taken from disk a layer at a time."""
        return self.on_disk.module if self.on_disk else self.uncut.network(self.ctx.device)

    @cached_property
    def on_disk(self) -> OnDisk | None:
        """What a layer at a time is taken from; None where the whole network goes into memory."""
        return to_be_streamed(self.settings, self.model, self.ctx.device)

    @cached_property
    def tokens(self) -> Tensor:
        self.drawn_from = self.ctx.generator.get_state()
        return self._draw(self.settings.tokens, self.ctx.generator)

    @cached_property
    def unseen(self) -> Tensor:
        """A few windows that scores have not seen: the same draw goes on. Fewer, or none, of a short text."""
        known = set(map(tuple, self.tokens.tolist()))
        again = torch.Generator().set_state(self.drawn_from)
        more = self._draw(self.settings.tokens + WINDOWS * self.tokens.shape[1], again)
        return more[[tuple(window) not in known for window in more.tolist()]]

    def _draw(self, max_tokens: int, generator: torch.Generator) -> Tensor:
        from burnish.data import calibration

        data = self.ctx.inputs.get("calibration", self.settings.calibration)
        length = min(self.settings.length, self.model.config.get_text_config().max_position_embeddings)
        return calibration(self.model.tokenizer, data, length=length, max_tokens=max_tokens, generator=generator)

    @property
    def cuts_shared(self) -> bool:
        was, now = (experts_of(config) for config in (self.uncut.module.config, self.config))
        return was.shared_intermediate_size != now.shared_intermediate_size

    @property
    def cuts_groups(self) -> bool:
        return describe(self.uncut.module).num_key_value_heads != describe(self.config).num_key_value_heads

    def views(self, part: str, role: str = "down") -> list[MatrixView]:
        """Matrices whose inputs are neurons (down projections) or attention heads (o)."""
        return [view for view in self.uncut.matrices if view.part == part and view.role == role]


Chosen = tuple[Kept, Refitted, list[dict[str, Any]]]
"""What is kept, down projections that are refitted, and the rows of the ledger's table."""


def _narrow(choice: _Choice) -> Chosen:
    """Neurons by the score; experts, where fewer are wanted too, by what the neurons that they keep add up to."""
    settings = choice.settings
    was, now = experts_of(choice.uncut.module.config), experts_of(choice.config)
    score = SCORES[settings.score_name]
    sums = None
    if score.terms:
        sums = _collect(choice, score, shared=choice.cuts_shared, groups=choice.cuts_groups)
        _check_seen(sums, was.intermediate_size, settings, choice.ctx)
    neurons, experts, rows, scored = {}, {}, [], {}
    for layer, scores in _scores_by_layer(choice, sums, score):
        scored[layer] = scores
        neurons[layer] = keep_highest(scores, now.intermediate_size)
        kept_scores = scores.gather(1, neurons[layer]).sum(1)
        row: dict[str, Any] = {"layer": layer, "experts": now.num_experts, "width": now.intermediate_size}
        if now.num_experts < was.num_experts:
            experts[layer] = _kept_experts(choice, kept_scores)
            kept_scores, neurons[layer] = kept_scores[experts[layer]], neurons[layer][experts[layer]]
        if sums is not None:
            counts = sums.counts[layer]
            row |= {"fewest tokens": int(counts.min()), "experts without tokens": int((counts == 0).sum())}
            row |= {"score kept": float(kept_scores.sum() / scores.sum())}
        rows.append(row)
    kept = Kept(neurons, _shared(choice, sums, score), experts, _groups(choice, sums, score))
    refitted = _refit(choice, kept)
    narrower = now.intermediate_size < was.intermediate_size
    if sums is not None and narrower and not experts and settings.score_name in COMPARABLE and choice.on_disk is None:
        own = own_widths(scored, now.intermediate_size)
        say_price(choice.network, choice.uncut, choice.unseen, neurons, own, choice.ctx)
    return kept, refitted, rows


def _split(choice: _Choice) -> Chosen:
    """Pieces of experts by what the score of their neurons adds up to."""
    settings, config = choice.settings, choice.uncut.module.config
    was, now = experts_of(config), experts_of(choice.config)
    score = SCORES[settings.score_name]
    sums = _collect(choice, score, shared=choice.cuts_shared, groups=choice.cuts_groups)
    _check_seen(sums, was.intermediate_size, settings, choice.ctx)
    neurons, experts, rows, scored = {}, {}, [], {}
    for layer, scores in _scores_by_layer(choice, sums, score):
        scored[layer] = scores
        parts, worth = in_pieces(scores, settings.pieces)
        if score.terms:
            worth[sums.counts[layer] == 0] = 0  # the size of weights is no score to compare with
        chosen = _kept_experts(choice, worth.flatten())
        experts[layer] = chosen // settings.pieces
        part, of_part = parts.flatten(0, 1)[chosen], scores[experts[layer]]
        best = keep_highest(of_part.gather(1, part), now.intermediate_size)
        neurons[layer] = part.gather(1, best)
        held = torch.bincount(experts[layer], minlength=was.num_experts)
        rows.append(
            {"layer": layer, "pieces": now.num_experts, "width": now.intermediate_size}
            | {"pieces of an expert": f"{int(held.min())} to {int(held.max())}"}
            | {"fewest tokens": int(sums.counts[layer].min())}
            | {"score kept": float(of_part.gather(1, neurons[layer]).sum() / scores.sum())}
        )
    directions = {}
    if now.num_experts < settings.pieces * was.num_experts:
        for layer, (total, squares) in sums.routers.items():
            directions[layer] = common_direction(total, squares, choice.tokens.numel())
    kept = Kept(
        neurons,
        _shared(choice, sums, score),
        experts,
        _groups(choice, sums, score),
        factor=split.factor(config, choice.config),
        correction=split.correction(config, choice.config),
        directions=directions,
    )
    refitted = _refit(choice, kept)
    if settings.score_name in COMPARABLE and choice.on_disk is None and directions:
        width = now.num_experts * now.intermediate_size // was.num_experts
        equal = {layer: keep_highest(scores, width) for layer, scores in scored.items()}
        own = own_widths(scored, width)
        say_price(choice.network, choice.uncut, choice.unseen, equal, own, choice.ctx, choice.smaller)
    return kept, refitted, rows


def _refit(choice: _Choice, kept: Kept) -> dict[tuple[int, int | None], Tensor]:
    """Down projections that are refitted, as the settings say, in the dtype of the input."""
    name, progress = choice.settings.refit_name, choice.ctx.progress
    if name == "none":
        return {}
    if name == "alone":
        found = refit(choice.network, choice.tokens, kept, progress, choice.on_disk)
    else:
        smaller = cut(Uncut(Model(module=choice.network)), choice.config, kept).to(choice.network.device)
        found, choice.smaller = refit_behind(choice.network, smaller, choice.tokens, progress), smaller
    return {place: down.to("cpu", choice.uncut.dtype) for place, down in found}


def _drop(choice: _Choice) -> Chosen:
    """Experts by the score; neurons, where the others are to be narrower too, by their energy."""
    name, generator = choice.settings.score_name, choice.ctx.generator
    # Neurons and attention groups are scored by what they add to the output; experts by `name`.
    part_score = SCORES[name if name in ("random", "magnitude") else "energy"]
    was, now = experts_of(choice.uncut.module.config), experts_of(choice.config)
    sums = None
    if name in ("reap", "frequency"):
        sums = _collect(choice, part_score, shared=choice.cuts_shared, groups=choice.cuts_groups)
        unseen = sum(int((counts == 0).sum()) for counts in sums.counts.values())
        if unseen:
            choice.ctx.progress.log(f"{unseen} experts saw no calibration token; they are dropped first")
    experts, rows = {}, []
    for layer in was.sparse_layers:
        views = [view for view in choice.views("experts") if view.layer == layer]
        if name == "random":
            scores = torch.rand(len(views), generator=generator, dtype=torch.float64)
        elif name == "magnitude":
            scores = torch.stack([_neuron_sizes(choice.uncut, view).norm() for view in views])
        else:
            assert sums is not None
            counts = sums.counts[layer]
            scores = reap(sums.reap[layer], counts) if name == "reap" else counts.double()
        experts[layer] = _kept_experts(choice, scores)
        rows.append({"layer": layer, "experts": now.num_experts, "kept": experts[layer].tolist()})
    neurons = {}
    if now.intermediate_size < was.intermediate_size:
        for layer, scores in _scores_by_layer(choice, sums, part_score):
            neurons[layer] = keep_highest(scores[experts[layer]], now.intermediate_size)
    kept = Kept(neurons, _shared(choice, sums, part_score), experts, _groups(choice, sums, part_score))
    return kept, {}, rows


def _leave_out(choice: _Choice) -> Chosen:
    """Whole layers by the score."""
    score = choice.settings.score_name
    sizes = describe(choice.uncut.module).num_layers, describe(choice.config).num_layers
    text = (None, None) if score == "random" else (choice.network, choice.tokens)
    chosen, rows = kept_layers(score, *text, sizes, choice.ctx)
    return Kept(layers=chosen), {}, rows


def _kept_experts(choice: _Choice, scores: Tensor) -> Tensor:
    """Numbers of the experts of a layer with the highest scores, equally many of each of the router's groups."""
    num_groups, num_kept = router_groups(choice.config), experts_of(choice.config).num_experts
    inside = keep_highest(scores.view(num_groups, -1), num_kept // num_groups)
    first = torch.arange(num_groups)[:, None] * (len(scores) // num_groups)
    return (inside + first).flatten()


def _shared(choice: _Choice, sums: ScoreSums | None, score: Score) -> dict[int, Tensor]:
    """Neurons of shared experts that are kept, by layer; empty where all are."""
    width, kept = experts_of(choice.config).shared_intermediate_size, {}
    for view in choice.views("shared_expert") if choice.cuts_shared else ():
        assert view.layer is not None
        kept[view.layer] = keep_highest(_neuron_scores(choice, view, sums, score), width)
    return kept


def _scores_by_layer(choice: _Choice, sums: ScoreSums | None, score: Score) -> Iterator[tuple[int, Tensor]]:
    """(layer, scores of the neurons of its routed experts: experts x width)."""
    by_layer: dict[int, list[MatrixView]] = {}
    for view in choice.views("experts"):
        assert view.layer is not None
        by_layer.setdefault(view.layer, []).append(view)
    for layer, views in by_layer.items():
        yield layer, torch.stack([_neuron_scores(choice, view, sums, score) for view in views])


# -- scores ------------------------------------------------------------------------------------------------------------


def _neuron_sizes(uncut: Uncut, down: MatrixView) -> Tensor:
    """`magnitude` of the neurons in front of a down projection."""
    same = uncut.experts[down.layer, down.part, down.expert]
    inward = [uncut.matrix(same[role]).double() for role in ("gate", "up") if role in same]
    return magnitude(inward, uncut.matrix(same["down"]).double())


def _neuron_scores(choice: _Choice, view: MatrixView, sums: ScoreSums | None, score: Score) -> Tensor:
    """Scores of the hidden neurons in front of one down projection, float64 on the CPU."""
    if choice.settings.score_name == "random":
        return torch.rand(view.shape[1], generator=choice.ctx.generator, dtype=torch.float64)
    assert view.layer is not None
    unseen = sums is not None and view.expert is not None and sums.counts[view.layer][view.expert] == 0
    if sums is None or unseen:
        return _neuron_sizes(choice.uncut, view)
    norms = choice.uncut.matrix(view).double().norm(dim=0)
    terms = sums.shared[view.layer] if view.expert is None else sums.neurons[view.layer][view.expert]
    return score.finish(terms, norms)


def _groups(choice: _Choice, sums: ScoreSums | None, score: Score) -> dict[int, Tensor]:
    """Attention groups that are kept, by layer; empty where all are."""
    if not choice.cuts_groups:
        return {}
    num_groups, count = (describe(c).num_key_value_heads for c in (choice.uncut.module, choice.config))
    kept = {}
    for view in choice.views("attention", "o"):
        assert view.layer is not None
        if choice.settings.score_name == "random":
            scores = torch.rand(num_groups, generator=choice.ctx.generator, dtype=torch.float64)
        elif sums is None:
            scores = choice.uncut.matrix(view).double().unflatten(1, (num_groups, -1)).norm(dim=(0, 2))
        elif score.needs == "gradients":
            scores = score.finish(sums.groups[view.layer], torch.ones(num_groups, dtype=torch.float64))
        else:
            scores = sums.groups[view.layer]
        kept[view.layer] = keep_highest(scores, count)
    return kept


def _collect(choice: _Choice, score: Score, *, shared: bool, groups: bool) -> ScoreSums:
    settings, ctx, teacher, vocabulary = choice.settings, choice.ctx, None, None
    if settings.labels == "teacher" and score.needs == "gradients":
        given = ctx.inputs["teacher"]
        source = given if isinstance(given, Model) else load(given)
        vocabulary = common_vocabulary(choice.model, source, role="teacher")
        teacher = Uncut(source).network(ctx.device)
    return collect(
        choice.network,
        choice.tokens,
        score,
        shared=shared,
        groups=groups,
        routers=settings.method == "split",
        labels=settings.labels,
        teacher=teacher,
        vocabulary=vocabulary,
        generator=ctx.generator,
        progress=ctx.progress,
        on_disk=choice.on_disk,
        scratch=ctx.work_dir / "hidden",
    )


def _check_seen(sums: ScoreSums, width: int, settings: Slim, ctx: Context) -> None:
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
