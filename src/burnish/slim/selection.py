"""What choosing needs, whatever it is that goes: the model, the text that goes through it, and scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.arch import MatrixView, describe
from burnish.calibrate.from_disk import to_be_streamed
from burnish.core.checkpoint import Model, common_vocabulary, load
from burnish.core.checkpoint.on_disk import OnDisk
from burnish.core.errors import DataError
from burnish.core.stage import Context
from burnish.slim.collect import ScoreSums, collect
from burnish.slim.maths.keep import keep_highest
from burnish.slim.maths.scores import Score, magnitude
from burnish.slim.price import WINDOWS, Neurons
from burnish.slim.target import experts_of, router_groups
from burnish.slim.uncut import Uncut

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.slim.stage import Slim

COMPARED = 64
"""Windows that forms are compared on: with 8 of 128 tokens the choice was the sampling's."""
FEW_TOKENS = 4
"""An expert with fewer tokens than this many times its width is said to have seen few."""


@dataclass
class Selection:
    """What choosing needs.

    Attributes:
        settings, ctx: of the stage.
        model: the input.
        uncut: the same, a matrix at a time.
        config: of the smaller model.
        smaller: what was cut from `network`, once it has been refitted.
        widths: neurons of each expert with one width and with a width for each expert, where these may be compared.
        collected: sums over the text that have been made.
    """

    settings: Slim
    model: Model
    uncut: Uncut
    config: Any
    ctx: Context
    smaller: PreTrainedModel | None = None
    widths: tuple[Neurons, Neurons] | None = None
    collected: dict[tuple[Any, ...], ScoreSums] = field(default_factory=dict)

    def another(self, settings: Slim, config: Any) -> Selection:
        """Of other sizes, from the same network, text and sums."""
        _ = self.tokens, self.network  # made before there are two of them
        other = copy.copy(self)
        other.settings, other.config, other.smaller, other.widths = settings, config, None, None
        return other

    @cached_property
    def network(self) -> PreTrainedModel:
        """The model for text to go through; without weights where it is taken from disk a layer at a time."""
        return self.on_disk.module if self.on_disk else self.uncut.network(self.ctx.device)

    @cached_property
    def on_disk(self) -> OnDisk | None:
        """What a layer at a time is taken from; None where the whole network goes into memory."""
        return to_be_streamed(self.model, self.settings.stream, self.ctx.device, self.settings.not_by_layer)

    @cached_property
    def tokens(self) -> Tensor:
        self.drawn_from = self.ctx.generator.get_state()
        return self._draw(self.settings.tokens, self.ctx.generator)

    @cached_property
    def unseen(self) -> Tensor:
        """A few windows that scores have not seen: the same draw goes on. Fewer, or none, of a short text."""
        known = set(map(tuple, self.tokens.tolist()))
        again = torch.Generator().set_state(self.drawn_from)
        windows = COMPARED if self.settings.method == "best" else WINDOWS
        more = self._draw(self.settings.tokens + windows * self.tokens.shape[1], again)
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


def kept_experts(selection: Selection, scores: Tensor) -> Tensor:
    """Numbers of the experts of a layer with the highest scores, equally many of each of the router's groups."""
    num_groups, num_kept = router_groups(selection.config), experts_of(selection.config).num_experts
    inside = keep_highest(scores.view(num_groups, -1), num_kept // num_groups)
    first = torch.arange(num_groups)[:, None] * (len(scores) // num_groups)
    return (inside + first).flatten()


def kept_shared(selection: Selection, sums: ScoreSums | None, score: Score) -> dict[int, Tensor]:
    """Neurons of shared experts that are kept, by layer; empty where all are."""
    width, kept = experts_of(selection.config).shared_intermediate_size, {}
    for view in selection.views("shared_expert") if selection.cuts_shared else ():
        assert view.layer is not None
        kept[view.layer] = keep_highest(neuron_scores(selection, view, sums, score), width)
    return kept


def scores_by_layer(selection: Selection, sums: ScoreSums | None, score: Score) -> Iterator[tuple[int, Tensor]]:
    """(layer, scores of the neurons of its routed experts: experts x width)."""
    by_layer: dict[int, list[MatrixView]] = {}
    for view in selection.views("experts"):
        assert view.layer is not None
        by_layer.setdefault(view.layer, []).append(view)
    for layer, views in by_layer.items():
        yield layer, torch.stack([neuron_scores(selection, view, sums, score) for view in views])


def comparable(scores: Tensor, sums: ScoreSums | None, layer: int) -> Tensor:
    """Scores of a layer's neurons to compare from expert to expert: 0 where an expert saw no token.

    There neurons are ranked by the size of their weights, which is no score of others.
    """
    return scores if sums is None else torch.where(sums.counts[layer][:, None] > 0, scores, 0)


# -- scores ------------------------------------------------------------------------------------------------------------


def neuron_sizes(uncut: Uncut, down: MatrixView) -> Tensor:
    """`magnitude` of the neurons in front of a down projection."""
    same = uncut.experts[down.layer, down.part, down.expert]
    inward = [uncut.matrix(same[role]).double() for role in ("gate", "up") if role in same]
    return magnitude(inward, uncut.matrix(same["down"]).double())


def neuron_scores(selection: Selection, view: MatrixView, sums: ScoreSums | None, score: Score) -> Tensor:
    """Scores of the hidden neurons in front of one down projection, float64 on the CPU."""
    if selection.settings.score_name == "random":
        return torch.rand(view.shape[1], generator=selection.ctx.generator, dtype=torch.float64)
    assert view.layer is not None
    unseen = sums is not None and view.expert is not None and sums.counts[view.layer][view.expert] == 0
    if sums is None or unseen:
        return neuron_sizes(selection.uncut, view)
    norms = selection.uncut.matrix(view).double().norm(dim=0)
    terms = sums.shared[view.layer] if view.expert is None else sums.neurons[view.layer][view.expert]
    return score.finish(terms, norms)


def kept_groups(selection: Selection, sums: ScoreSums | None, score: Score) -> dict[int, Tensor]:
    """Attention groups that are kept, by layer; empty where all are."""
    if not selection.cuts_groups:
        return {}
    num_groups, count = (describe(c).num_key_value_heads for c in (selection.uncut.module, selection.config))
    kept = {}
    for view in selection.views("attention", "o"):
        assert view.layer is not None
        if selection.settings.score_name == "random":
            scores = torch.rand(num_groups, generator=selection.ctx.generator, dtype=torch.float64)
        elif sums is None:
            scores = selection.uncut.matrix(view).double().unflatten(1, (num_groups, -1)).norm(dim=(0, 2))
        elif score.needs == "gradients":
            scores = score.finish(sums.groups[view.layer], torch.ones(num_groups, dtype=torch.float64))
        else:
            scores = sums.groups[view.layer]
        kept[view.layer] = keep_highest(scores, count)
    return kept


def sums_of(selection: Selection, score: Score) -> ScoreSums:
    """Of whatever is cut."""
    routers = selection.settings.method in ("split", "best")
    key = (id(score), selection.cuts_shared, selection.cuts_groups, routers)
    if key not in selection.collected:
        selection.collected[key] = _collected(selection, score, routers=routers)
    return selection.collected[key]


def _collected(selection: Selection, score: Score, *, routers: bool) -> ScoreSums:
    settings, ctx, teacher, vocabulary = selection.settings, selection.ctx, None, None
    if settings.labels == "teacher" and score.needs == "gradients":
        given = ctx.inputs["teacher"]
        source = given if isinstance(given, Model) else load(given)
        vocabulary = common_vocabulary(selection.model, source, role="teacher")
        teacher = Uncut(source).network(ctx.device)
    return collect(
        selection.network,
        selection.tokens,
        score,
        shared=selection.cuts_shared,
        groups=selection.cuts_groups,
        routers=routers,
        labels=settings.labels,
        teacher=teacher,
        vocabulary=vocabulary,
        generator=ctx.generator,
        progress=ctx.progress,
        on_disk=selection.on_disk,
        scratch=ctx.work_dir / "hidden",
    )


def check_seen(sums: ScoreSums, width: int, settings: Slim, ctx: Context) -> None:
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
