"""Distillation as a loss function over the training loop.

    loss = Distillation(teacher, divergence="forward", alpha=0.9)
    fit(student, rows, loss, optimizer, ctx, loop)

Per token: α KD + (1 - α) CE, plus the load-balancing loss of a student with experts, plus hidden-state and router
terms where asked for. The loss hands the loop a sum and a weight, so cutting a step up differently changes nothing (but
for the load-balancing loss, which is a mean over its micro-batch). Where the heads of both models are known, only some
tokens have logits at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from burnish.arch import AllLogits, Head
from burnish.data.packing import IGNORED
from burnish.distill.maths import weights
from burnish.distill.maths.divergence import (
    entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    top_k_kl,
    top_k_targets,
)
from burnish.distill.maths.hidden import hidden_mse, matching_layers, router_kl
from burnish.distill.offline import IDS, LOG_PROBABILITIES
from burnish.distill.on_policy import SAMPLED
from burnish.train.losses import Batch, Loss, balanced, model_inputs
from burnish.train.maths.stretches import in_stretches, tokens_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Divergence = Literal["forward", "reverse", "jsd", "top_k"]
Weighting = Literal["token", "sequence", "turn", "certain", "uncertain", "focus"]


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
            inputs["output_hidden_states"] = student_inputs["output_hidden_states"] = True
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
            ours, theirs = output.hidden_states[1:], wanted.hidden_states[1:]
            maps: Any = model.beside if hasattr(model, "beside") else [None] * len(ours)
            per_token = per_token + self.hidden * _mean(
                hidden_mse(ours[layer][mask].float(), theirs[match][mask].float(), maps[layer])
                for layer, match in enumerate(matching_layers(len(ours), len(theirs)))
            )
        if self.router:
            assert wanted is not None, "the stage has refused routers where there is no teacher model"
            flat = mask.flatten()
            per_token = per_token + self.router * _mean(
                router_kl(s[flat].float(), t[flat].float())
                for s, t in zip(output.router_logits, wanted.router_logits, strict=True)
            )
        counted = self._weights(mask, entropies, vocab_size, divergence, batch.get("position_ids"))[mask]
        total, weight = weights.weighted_sum(per_token, counted)
        metrics = {
            "divergence": weights.weighted_sum(divergence.detach(), counted)[0],
            "cross_entropy": weights.weighted_sum(cross.detach(), counted)[0],
        }
        loss = Loss(total, weight, metrics)
        return balanced(loss, output, self.balance) if self.balance else loss

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


def wide(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def projections(student: Any, teacher: Any, generator: torch.Generator) -> nn.ParameterList:
    """A random projection (teacher's hidden size, student's) for the states after each layer of the student.

    Args:
        student, teacher: their configurations.
        generator: on the CPU.
    """
    scale = student.hidden_size**-0.5
    shape = (teacher.hidden_size, student.hidden_size)
    drawn = (scale * torch.randn(shape, generator=generator) for _ in range(student.num_hidden_layers))
    return nn.ParameterList(nn.Parameter(matrix) for matrix in drawn)


def _mean(values: Any) -> Tensor:
    return torch.stack(list(values)).mean(0)
