"""Distillation as a loss function over the training loop.

    loss = Distillation(teacher, divergence="forward", alpha=0.9)
    fit(student, rows, loss, optimizer, ctx, loop)

Per token: α KD + (1 - α) CE, plus the load-balancing loss of a student with experts, plus hidden-state and router
terms where asked for, all times the weight that the data gives the token, where it gives one. The loss hands the loop
a sum and a weight, so cutting a step up differently changes nothing (but for the load-balancing loss, which is a mean
over its micro-batch). Where the heads of both models are known, only some tokens have logits at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from burnish.arch import AllLogits, Head
from burnish.data.packing import IGNORED
from burnish.distill.maths import weights
from burnish.distill.maths.hidden import hidden_mse, matching_layers, router_kl
from burnish.distill.offline import IDS, LOG_PROBABILITIES
from burnish.distill.on_policy import SAMPLED
from burnish.train.losses import Batch, Loss, balanced, kind_metrics, model_inputs
from burnish.train.maths.divergence import (
    entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    top_k_kl,
    top_k_targets,
)
from burnish.train.maths.stretches import in_stretches, tokens_at_once, wide

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Divergence = Literal["forward", "reverse", "jsd", "top_k"]
Weighting = Literal["token", "sequence", "turn", "certain", "uncertain", "focus"]


@dataclass(frozen=True)
class Matched:
    """Layers whose states are compared.

    Attributes:
        pairs: {layer of the student: layer of the teacher}, from 0, in order.
        num_student, num_teacher: how many layers there are. Models return the states after their layers, some those
            before the first too, so that layers are counted from the end.
    """

    pairs: Mapping[int, int]
    num_student: int
    num_teacher: int

    @classmethod
    def of(cls, num_student: int, num_teacher: int, chosen: Sequence[int] = ()) -> Matched:
        """The chosen layers of the student, from 0, or all, each with the teacher's at the same relative depth."""
        matches = matching_layers(num_student, num_teacher)
        return cls({layer: matches[layer] for layer in chosen or range(num_student)}, num_student, num_teacher)


@dataclass
class Distillation:
    """A `LossFn` that holds its teacher.

    Attributes:
        teacher: in evaluation mode, on the student's device; autograd never sees it. None where batches carry its
            top-k logits (`burnish.distill.offline`).
        divergence: of logits; `top_k` is the forward KL from the teacher's `top_k` likeliest tokens and one bucket.
        temperature: τ of both.
        top_k: for `top_k`.
        beta: for `jsd`.
        alpha: share of the divergence; the rest is cross-entropy on the text, not on what a student has sampled.
        weighting, gamma: how much each token counts, see `burnish.distill.maths.weights`.
        hidden: coefficient of the mean over the student's layers of `hidden_mse` from the teacher's layer at the same
            relative depth. With other hidden sizes `projections` are trained beside the student.
        matched: which layers `hidden` is over; None for all of the student's. No states of other layers are kept, by
            models of classes that can leave some out.
        router: coefficient of the mean over layers of `router_kl`; both must have the same experts.
        balance: coefficient of the student's own load-balancing loss.
        head, teacher_head: of the models that are called.
        vocabulary: tokens, from the first on, that the divergence is over; None for all.
    """

    teacher: PreTrainedModel | None
    divergence: Divergence = "forward"
    temperature: float = 1.0
    top_k: int = 8
    beta: float = 0.5
    alpha: float = 0.9
    weighting: Weighting = "token"
    gamma: float = 1.0
    hidden: float = 0.0
    matched: Matched | None = None
    router: float = 0.0
    balance: float = 0.0
    head: Head | AllLogits = field(default_factory=AllLogits)
    teacher_head: Head | AllLogits = field(default_factory=AllLogits)
    vocabulary: int | None = None

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The weighted sum over the tokens whose target is not -100, and the summed weights."""
        inputs = model_inputs(batch)
        student_inputs: dict[str, Any] = dict(inputs)
        if self.hidden:
            inputs["output_hidden_states"] = self.matched is None or sorted(set(self.matched.pairs.values()))
            student_inputs["output_hidden_states"] = self.matched is None or sorted(self.matched.pairs)
        if self.router:
            inputs["output_router_logits"] = True
        if self.router or self.balance:
            student_inputs["output_router_logits"] = True
        targets = batch["targets"]
        mask = targets != IGNORED
        output, states = self.head.last_hidden(model, **student_inputs)
        if self.teacher is None:
            wanted, beside = None, (batch[IDS][mask], batch[LOG_PROBABILITIES][mask])
        else:
            with torch.no_grad():
                wanted, others = self.teacher_head.last_hidden(self.teacher, **inputs)
            beside = (others[mask],)
        vocab_size = self.vocabulary or output.logits.shape[-1]
        divergence, cross, entropies = in_stretches(
            self._values, (states[mask], targets[mask], *beside), tokens_at_once(states.device, output.logits.shape[-1])
        )
        on_text = cross if SAMPLED not in batch else cross * ~batch[SAMPLED][mask]
        per_token = self.alpha * divergence + (1 - self.alpha) * on_text
        if self.hidden:
            assert wanted is not None, "the stage has refused hidden states where there is no teacher model"
            maps: Any = model.beside if hasattr(model, "beside") else None
            per_token = per_token + self.hidden * self._hidden(output.hidden_states, wanted.hidden_states, mask, maps)
        if self.router:
            assert wanted is not None, "the stage has refused routers where there is no teacher model"
            flat = mask.flatten()
            per_token = per_token + self.router * _mean(
                router_kl(wide(s[flat]), wide(t[flat]))
                for s, t in zip(output.router_logits, wanted.router_logits, strict=True)
            )
        counted = self._weights(mask, entropies, vocab_size, divergence, batch.get("position_ids"))[mask]
        if "weights" in batch:
            counted = counted * batch["weights"][mask]
        total, weight = weights.weighted_sum(per_token, counted)
        metrics = {
            "divergence": weights.weighted_sum(divergence.detach(), counted)[0],
            "cross_entropy": weights.weighted_sum(cross.detach(), counted)[0],
        }
        if "kinds" in batch and SAMPLED not in batch:
            metrics |= kind_metrics(cross.detach(), batch, mask)
        loss = Loss(total, weight, metrics)
        return balanced(loss, output, self.balance) if self.balance else loss

    def _hidden(
        self, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], mask: Tensor, maps: nn.ParameterList | None
    ) -> Tensor:
        """The mean over the chosen layers of the error of each token that counts."""
        matched = self.matched or Matched.of(len(ours) - 1, len(theirs) - 1)
        chosen = [
            (wide(ours[layer - matched.num_student][mask]), wide(theirs[match - matched.num_teacher][mask]))
            for layer, match in matched.pairs.items()
        ]
        return _mean(
            hidden_mse(*states, maps[place] if maps is not None else None) for place, states in enumerate(chosen)
        )

    def _values(self, states: Tensor, targets: Tensor, *beside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Divergence, cross-entropy and the teacher's entropy (0 where no weight asks for it) of some tokens."""
        student = wide(self.head.logits(states))
        cross = nn.functional.cross_entropy(student, targets, reduction="none")
        student = student[:, : self.vocabulary]
        if self.teacher is None:
            ids, log_probabilities = beside
            divergence = top_k_kl(student, ids, log_probabilities, temperature=self.temperature)
            return divergence, cross, torch.zeros_like(cross)
        with torch.no_grad():
            teacher = wide(self.teacher_head.logits(*beside))[:, : self.vocabulary]
            asked = self.weighting in ("certain", "uncertain")
            entropies = entropy(teacher) if asked else torch.zeros_like(cross)
        return self._divergence(student, teacher), cross, entropies

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        match self.divergence:
            case "forward":
                return forward_kl(student, teacher, self.temperature)
            case "reverse":
                return reverse_kl(student, teacher, self.temperature)
            case "jsd":
                return jensen_shannon(student, teacher, self.beta, self.temperature)
            case "top_k":
                targets = top_k_targets(teacher, self.top_k, self.temperature)
                return top_k_kl(student, *targets, temperature=self.temperature)

    def _weights(
        self, mask: Tensor, entropies: Tensor, vocab_size: int, divergence: Tensor, position_ids: Tensor | None
    ) -> Tensor:
        if self.weighting == "token":
            return weights.token_mean(mask)
        if self.weighting == "sequence":
            return weights.segment_mean(mask, weights.sequences(mask, position_ids))
        if self.weighting == "turn":
            return weights.segment_mean(mask, weights.turns(mask))
        values = torch.zeros(mask.shape, dtype=divergence.dtype, device=mask.device)
        if self.weighting == "focus":
            values[mask] = divergence.detach()
            return weights.focus(mask, values, self.gamma)
        values[mask] = entropies
        if self.weighting == "certain":
            return weights.certain(mask, values, vocab_size, self.gamma)
        return weights.uncertain(mask, values, self.gamma)


def projections(student: int, teacher: int, number: int, generator: torch.Generator) -> nn.ParameterList:
    """A random projection (teacher's hidden size, student's) for the states after each layer that is compared.

    Args:
        student, teacher: their hidden sizes.
        number: of the layers.
        generator: on the CPU.
    """
    drawn = (student**-0.5 * torch.randn((teacher, student), generator=generator) for _ in range(number))
    return nn.ParameterList(nn.Parameter(matrix) for matrix in drawn)


def _mean(values: Any) -> Tensor:
    return torch.stack(list(values)).mean(0)
