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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from burnish.arch import MatrixView, capture, describe, matrices
from burnish.core.errors import NumericalError, SettingsError
from burnish.core.progress import Progress
from burnish.slim.maths.experts import reap_terms
from burnish.slim.maths.scores import Score, group_columns, output_energy, saliency

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Labels = Literal["sampled", "text", "teacher"]
BATCH_TOKENS = 1024

SMALLEST_DIVERGENCE = 1e-6
"""Nats per token below which a teacher is taken to be the model itself: float32 logits leave about 1e-8."""


@dataclass
class Sums:
    """Sums over the text, float64, on the CPU, by number of the layer.

    Attributes:
        counts: tokens routed to each expert.
        neurons: of the neurons of each routed expert.
        reap: of each expert.
        shared: of the neurons of the shared expert.
        groups: of the attention groups.
    """

    counts: dict[int, Int[Tensor, " experts"]]
    neurons: dict[int, Float[Tensor, "experts width"]]
    reap: dict[int, Float[Tensor, " experts"]]
    shared: dict[int, Float[Tensor, " width"]]
    groups: dict[int, Float[Tensor, " groups"]]


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
    labels: Labels = "sampled",
    teacher: PreTrainedModel | None = None,
    generator: torch.Generator,
    progress: Progress,
) -> Sums:
    """The sums of one score.

    Args:
        module: the model in evaluation mode.
        tokens: whole windows, no padding.
        score: whose `terms` are summed; None of them for a score of weights alone, whose pass only counts.
        shared, groups: whether neurons of shared experts and attention groups are scored too.
        labels: the loss whose gradients are taken.
        teacher: for labels `teacher`.
        generator: on the CPU, draws labels.
        progress: where to show a bar.

    Raises:
        NumericalError: activations or gradients that are not finite, with the matrix's name.
        SettingsError: a teacher that computes the same as the model.
    """
    observer = _Observer(module, score)
    routed = down_views(module, "experts")
    views = [*routed]
    views += down_views(module, "shared_expert") if shared else []
    views += output_views(module) if groups else []
    gradients = score.needs == "gradients"
    divergence = 0.0
    with (
        capture(module, views, gradients=gradients, checkpointing=gradients) as captured,
        _routing(routed, observer.routing),
    ):
        captured.callback = observer
        with progress.task("scoring", total=len(tokens), unit="windows") as task:
            for batch in batches_of(tokens, module.device):
                if gradients:
                    loss = _loss(module, batch, labels, teacher, generator)
                    loss.backward()
                    divergence += float(loss.detach())
                else:
                    with torch.no_grad():
                        module.base_model(input_ids=batch, use_cache=False)
                task.advance(len(batch))
    if labels == "teacher" and gradients and divergence / tokens.numel() < SMALLEST_DIVERGENCE:
        raise SettingsError(
            f"the teacher computes the same as the model ({divergence / tokens.numel():.1e} nats per token apart), so "
            "the divergence has no gradient and every score would be rounding noise",
            fix="use labels: sampled for the first cut, and labels: teacher from the second on",
        )
    observer.check_finite()
    return observer.sums


class _Observer:
    """The capture's callback: adds up what each matrix saw."""

    def __init__(self, module: PreTrainedModel, score: Score) -> None:
        self.score, self.facts = score, describe(module)
        self.routing = _RoutingWeights()
        self.sums = Sums({}, {}, {}, {}, {})
        self.names: dict[tuple[str, int], str] = {}
        experts = self.facts.experts
        assert experts is not None, "the caller has checked that there are experts"
        for layer in experts.sparse_layers:
            self.sums.counts[layer] = torch.zeros(experts.num_experts, dtype=torch.int64)
            self.sums.reap[layer] = torch.zeros(experts.num_experts, dtype=torch.float64)
            self.sums.neurons[layer] = torch.zeros(experts.num_experts, experts.intermediate_size, dtype=torch.float64)

    def __call__(self, view: MatrixView, inputs: Tensor, gradients: Tensor | None, index: Tensor) -> None:
        assert view.layer is not None, "only matrices inside decoder layers are watched"
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


class _routing:
    """While the block runs, notes what routers decide."""

    def __init__(self, views: Sequence[MatrixView], routing: _RoutingWeights) -> None:
        self.owners, self.routing = {view.owner for view in views}, routing
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for owner in self.owners:
            self.hooks.append(owner.register_forward_pre_hook(self._note))

    def __exit__(self, *exception: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, owner: nn.Module, args: tuple[Tensor, ...]) -> None:
        _, index, weights = args
        self.routing.last[owner] = (index.detach(), weights.detach())


def batches_of(tokens: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Micro-batches of about a thousand tokens, on the device."""
    for batch in tokens.split(max(BATCH_TOKENS // tokens.shape[1], 1)):
        yield batch.to(device)


def _loss(
    module: PreTrainedModel,
    batch: Tensor,
    labels: Labels,
    teacher: PreTrainedModel | None,
    generator: torch.Generator,
) -> Tensor:
    """Summed over tokens, in float32."""
    logits = module(input_ids=batch, use_cache=False).logits.float()
    if labels == "teacher":
        assert teacher is not None, "the stage has checked that there is one"
        with torch.no_grad():
            wanted = teacher(input_ids=batch, use_cache=False).logits.float()
        return F.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="sum")
    if labels == "text":
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
    flat = logits.flatten(0, 1)
    drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
    return F.cross_entropy(flat, drawn.to(flat.device), reduction="sum")
