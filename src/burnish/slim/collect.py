"""One pass over calibration text: sums for the scores of neurons, attention groups and experts, and routing counts.

Gradients, where a score needs them, are those of a loss summed over tokens, one micro-batch at a time, with the
activations of one decoder layer at a time in memory:

* `sampled`: cross-entropy on labels drawn from the model itself. Their squared gradients estimate the Fisher
  information, that is the curvature at which the divergence from the model would grow. The default.
* `text`: cross-entropy on the text.
* `teacher`: KL from another model. From a model to itself it has no gradient, and every score would be rounding noise;
  that is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from burnish.arch import MatrixView, describe, matrices, routed
from burnish.calibrate.from_disk import FromDisk, GradientsFromDisk
from burnish.calibrate.walk import Walk, WholeModel
from burnish.calibrate.windows import Calibration, WindowBatch
from burnish.core.errors import NumericalError, SettingsError
from burnish.core.progress import Progress
from burnish.slim.maths.experts import reap_terms
from burnish.slim.maths.scores import Score, group_columns, output_energy, saliency
from burnish.train.maths.divergence import forward_kl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.core.checkpoint.on_disk import OnDisk

Labels = Literal["sampled", "text", "teacher"]

SMALLEST_DIVERGENCE = 1e-6
"""Nats per token below which a teacher is taken to be the model itself: float32 logits leave about 1e-8."""


@dataclass
class ScoreSums:
    """Sums over the text, float64, on the CPU, by number of the layer.

    Attributes:
        counts: tokens routed to each expert.
        neurons: of the neurons of each routed expert.
        reap: of each expert.
        shared: of the neurons of the shared expert.
        groups: of the attention groups.
        routers: of the inputs of each router, and of their squares, feature by feature.
    """

    counts: dict[int, Int[Tensor, " experts"]]
    neurons: dict[int, Float[Tensor, "experts width"]]
    reap: dict[int, Float[Tensor, " experts"]]
    shared: dict[int, Float[Tensor, " width"]]
    groups: dict[int, Float[Tensor, " groups"]]
    routers: dict[int, Float[Tensor, "2 hidden"]]


def down_views(module: PreTrainedModel, part: str) -> list[MatrixView]:
    """The down projections of routed experts (`experts`) or of shared ones (`shared_expert`)."""
    return [view for view in matrices(module) if view.part == part and view.role == "down"]


def output_views(module: PreTrainedModel) -> list[MatrixView]:
    """The output projections of attention."""
    return [view for view in matrices(module) if view.part == "attention" and view.role == "o"]


def collect(
    module: PreTrainedModel,
    tokens: Int[Tensor, "windows length"],
    score: Score,
    *,
    shared: bool = False,
    groups: bool = False,
    routers: bool = False,
    labels: Labels = "sampled",
    teacher: PreTrainedModel | None = None,
    vocabulary: int | None = None,
    generator: torch.Generator,
    progress: Progress,
    on_disk: OnDisk | None = None,
    scratch: Path | None = None,
) -> ScoreSums:
    """The sums of one score.

    Args:
        module: the model in evaluation mode; that of `on_disk`, without weights, where there is one.
        tokens: whole windows, no padding.
        score: whose `terms` are summed; None of them for a score of weights alone, whose pass only counts.
        shared, groups: whether neurons of shared experts and attention groups are scored too.
        routers: whether inputs of routers are summed too.
        labels: the loss whose gradients are taken.
        teacher: for labels `teacher`.
        vocabulary: tokens, from the first on, over which it is compared; None for all.
        generator: on the CPU, draws labels.
        progress: where to show a bar.
        on_disk: of which one layer is in memory at a time; None for a network in memory.
        scratch: directory for hidden states, where gradients come from disk.

    Raises:
        NumericalError: activations or gradients that are not finite, with the matrix's name.
        SettingsError: a teacher that computes the same as the model.
    """
    observer = _Observer(module, score)
    routed = down_views(module, "experts")
    views = [*routed]
    views += down_views(module, "shared_expert") if shared else []
    views += output_views(module) if groups else []
    views += [view for view in matrices(module) if view.role == "router"] if routers else []
    loss = _Loss(labels, teacher, vocabulary, generator) if score.needs == "gradients" else None
    walk: Walk = WholeModel(module, views, checkpointing=True)
    if on_disk is not None:
        assert scratch is not None, "hidden states have a place"
        walk = FromDisk(on_disk, views, changed=False) if loss is None else GradientsFromDisk(on_disk, views, scratch)
    passes = 1 if on_disk is None else describe(module).num_layers
    total = passes * tokens.numel()
    with noted_routing(routed, observer.routing), progress.task("scoring", total=total, unit="tokens") as task:
        for stop in walk.stops(Calibration(tokens, num_folds=1)):
            with walk.at(stop):
                for some in walk.run(stop, 0, observer, loss):
                    task.advance(some)
    if loss is not None:
        loss.check_teacher(tokens.numel())
    observer.check_finite()
    return observer.sums


class _Observer:
    """The capture's callback: adds up what each matrix saw."""

    def __init__(self, module: PreTrainedModel, score: Score) -> None:
        self.score, self.facts = score, describe(module)
        self.routing = _RoutingWeights()
        self.sums = ScoreSums({}, {}, {}, {}, {}, {})
        self.names: dict[tuple[str, int], str] = {}
        experts = self.facts.experts
        assert experts is not None, "the caller has checked that there are experts"
        for layer in experts.sparse_layers:
            self.sums.counts[layer] = torch.zeros(experts.num_experts, dtype=torch.int64)
            self.sums.reap[layer] = torch.zeros(experts.num_experts, dtype=torch.float64)
            self.sums.neurons[layer] = torch.zeros(experts.num_experts, experts.intermediate_size, dtype=torch.float64)

    def begin(self, batch: WindowBatch) -> None:
        """Sums over tokens do not ask which windows they are of."""

    def __call__(self, view: MatrixView, inputs: Tensor, gradients: Tensor | None, index: Tensor, /) -> None:
        assert view.layer is not None, "only matrices inside decoder layers are watched"
        if view.role == "router":
            rows = inputs.double()
            sums = torch.stack([rows.sum(0), rows.square().sum(0)]).cpu()
            self.sums.routers[view.layer] = self.sums.routers.get(view.layer, 0) + sums
            return
        activations, weight = inputs.double(), view.tensor.double()
        change = activations if gradients is None else saliency(activations, gradients.double(), weight)
        if view.part == "experts":
            assert view.expert is not None
            routing = self.routing.of(view).double()
            self.sums.counts[view.layer][view.expert] += len(inputs)
            self.sums.reap[view.layer][view.expert] += reap_terms(activations, routing, weight).cpu()
            if self.score.terms:
                self.sums.neurons[view.layer][view.expert] += self.score.terms(change, routing).cpu()
        elif self.score.terms is None:
            return
        elif view.part == "shared_expert":
            terms = self.score.terms(change, torch.ones_like(change[:, :1])).cpu()
            self.sums.shared[view.layer] = self.sums.shared.get(view.layer, 0) + terms
        else:
            num_groups = self.facts.num_key_value_heads
            if gradients is None:
                terms = output_energy(activations, weight, num_groups).sum(0)
            else:
                terms = self.score.terms(group_columns(change, num_groups), torch.ones_like(change[:, :1]))
            self.sums.groups[view.layer] = self.sums.groups.get(view.layer, 0) + terms.cpu()

    def check_finite(self) -> None:
        for what, by_layer in (
            ("experts", self.sums.neurons),
            ("experts", self.sums.reap),
            ("shared expert", self.sums.shared),
            ("attention", self.sums.groups),
        ):
            for layer, sums in by_layer.items():
                if not torch.isfinite(sums).all():
                    raise NumericalError(
                        f"activations or gradients of the {what} on the calibration text are not finite",
                        where=f"layer {layer}",
                        fix="check the checkpoint and its dtype",
                    )


class _RoutingWeights:
    """The last (top_k_index, top_k_weights) that each experts module was called with."""

    def __init__(self) -> None:
        self.last: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def of(self, view: MatrixView) -> Float[Tensor, "tokens 1"]:
        """Routing weights of the tokens routed to an expert, in the order in which `capture` hands them out."""
        index, weights = self.last[view.owner]
        token, choice = torch.where(index == view.expert)
        return weights[token, choice, None]


@contextmanager
def noted_routing(views: Sequence[MatrixView], routing: _RoutingWeights) -> Iterator[None]:
    """While the block runs, notes what routers decide."""

    def note(owner: nn.Module, args: tuple[Tensor, ...]) -> None:
        _, index, weights = routed(owner, args)
        routing.last[owner] = (index.detach(), weights.detach())

    hooks = [owner.register_forward_pre_hook(note) for owner in {view.owner for view in views}]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Loss:
    """Summed over tokens, in float32; `total` over all batches so far."""

    def __init__(
        self,
        labels: Labels,
        teacher: PreTrainedModel | None,
        vocabulary: int | None,
        generator: torch.Generator,
    ) -> None:
        self.labels, self.teacher, self.vocabulary, self.generator = labels, teacher, vocabulary, generator
        self.total = 0.0

    def __call__(self, module: PreTrainedModel, batch: WindowBatch) -> Tensor:
        loss = self.of(module(input_ids=batch.tokens, use_cache=False).logits.float(), batch.tokens)
        self.total += float(loss.detach())
        return loss

    def of(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if self.labels == "teacher":
            assert self.teacher is not None, "the stage has checked that there is one"
            with torch.no_grad():
                wanted = self.teacher(input_ids=tokens, use_cache=False).logits.float()
            return forward_kl(logits[..., : self.vocabulary], wanted[..., : self.vocabulary]).sum()
        if self.labels == "text":
            return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        flat = logits.flatten(0, 1)
        drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=self.generator)[:, 0]
        return F.cross_entropy(flat, drawn.to(flat.device), reduction="sum")

    def check_teacher(self, num_tokens: int) -> None:
        """Refuses a teacher that is the model itself."""
        if self.labels == "teacher" and self.total / num_tokens < SMALLEST_DIVERGENCE:
            raise SettingsError(
                f"the teacher computes the same as the model ({self.total / num_tokens:.1e} nats per token apart), so "
                "the divergence has no gradient and every score would be rounding noise",
                fix="use labels: sampled for the first cut, and labels: teacher from the second on",
            )
