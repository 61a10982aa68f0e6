"""What the loop minimises: a loss function says the sum over its tokens and what to divide by.

    def loss_fn(model, batch) -> Loss: ...

The loop adds up totals and weights over all micro-batches and processes of a step and divides once, so every token of a
step counts the same however the step is cut up. Distillation, quantization-aware training and the like are loss
functions: they hold their teacher or their constraint, and the loop stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from burnish.arch import Head
from burnish.core.errors import SettingsError
from burnish.data.packing import IGNORED
from burnish.data.trajectories.kinds import KIND_NAMES
from burnish.train.maths.linear_cross_entropy import linear_cross_entropy
from burnish.train.maths.unlikelihood import signed_losses

Batch = Mapping[str, Tensor]
COUNT = " tokens"
STEP, STEPS, ROWS = "step", "steps", "rows"
"""What the loop adds to a batch, for losses that draw or change: the step, how many there are, and the numbers of its
rows in the data."""


@dataclass(frozen=True)
class Loss:
    """The loss of one micro-batch.

    Attributes:
        total: sum over tokens, with a gradient.
        weight: what the sum of all totals of a step is divided by, usually the number of tokens that count.
        metrics: further sums to report, each divided by the summed weight ({"balance": ...}), or, where there is one
            of the same name with `COUNT` behind it, by that, and left out where that is 0.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    metrics: dict[str, Float[Tensor, ""]] = field(default_factory=dict)


LossFn = Callable[[nn.Module, Batch], Loss]


class WithParameters(nn.Module):
    """A model with parameters of the loss beside it, so that one training knows both: `beside` is theirs alone."""

    def __init__(self, model: nn.Module, beside: nn.ParameterList) -> None:
        super().__init__()
        self.model, self.beside = model, beside

    def forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)


def model_inputs(batch: Batch) -> dict[str, Any]:
    """The keyword arguments of a forward pass. Pieces of a packed row are kept apart by their position ids alone."""
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
    if "position_ids" in batch:
        inputs["position_ids"] = batch["position_ids"]
    return inputs


def causal_lm_loss(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy of the next token, in nats, over the positions whose target is not -100.

    Of a batch with the marks of `burnish.data.packing.MARKS` it is sum_t w_t ce_t / sum_t w_t, with a metric for each
    kind of token and one for the tokens that open a turn, all without weights. Where w_t is below 0 the token is to be
    unlearned: |w_t| times its unlikelihood loss (`burnish.train.maths.unlikelihood`).
    """
    return batch_loss(model(**model_inputs(batch)).logits, batch)


def batch_loss(logits: Float[Tensor, "batch length vocab"], batch: Batch) -> Loss:
    """`next_token_loss`, with the marks of the batch where it has some."""
    if "kinds" not in batch:
        return next_token_loss(logits, batch["targets"])
    counts = batch["targets"] != IGNORED
    losses = nn.functional.cross_entropy(logits[counts].float(), batch["targets"][counts], reduction="none")
    weights = batch["weights"][counts].to(losses.dtype)
    total = signed_losses(losses, weights) @ weights.abs()
    return Loss(total, weights.abs().sum(), kind_metrics(losses.detach(), batch, counts))


def kind_metrics(losses: Float[Tensor, " tokens"], batch: Batch, counts: Tensor) -> dict[str, Tensor]:
    """Sums of the losses by kind, and of the tokens that open a turn, each with its count; what is to be unlearned is a
    kind of its own.
    """
    kinds, learned = batch["kinds"][counts], batch["weights"][counts] >= 0
    parts = {f"loss_{name}": (kinds == kind) & learned for kind, name in KIND_NAMES.items()}
    parts["loss_first_token"] = (batch["opens"][counts] > 0) & learned
    parts["loss_unlearned"] = ~learned
    found: dict[str, Tensor] = {}
    for name, chosen in parts.items():
        found[name] = (losses * chosen).sum()
        found[name + COUNT] = chosen.sum().to(losses.dtype)
    return found


def means(total: float, weight: float, metrics: Mapping[str, float]) -> dict[str, float]:
    """Loss and metrics of many micro-batches out of their sums; `weight` is not 0."""
    found = {"loss": total / weight}
    for name, value in metrics.items():
        count = metrics.get(name + COUNT, weight)
        if not name.endswith(COUNT) and count:
            found[name] = value / count
    return found


def next_token_loss(logits: Float[Tensor, "batch length vocab"], targets: Tensor) -> Loss:
    """The sum of cross-entropies in float32, and how many there are."""
    total = nn.functional.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return Loss(total, (targets != IGNORED).sum().to(total.dtype))


@dataclass(frozen=True)
class HeadLoss:
    """`causal_lm_loss` to rounding, or `balanced_loss`, but the logits of all tokens are never in memory at once.

    Attributes:
        head: of the model that it is called with.
        balance: coefficient of the model's own load-balancing loss; 0 for a model without experts.
    """

    head: Head
    balance: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The sum over the tokens whose target is not -100, the only ones that the head is computed for."""
        return self.of(*self.run(model, batch), batch)

    def run(self, model: nn.Module, batch: Batch) -> tuple[Any, Tensor]:
        """The model's output, and the hidden states that its head takes."""
        routers = {"output_router_logits": True} if self.balance else {}
        return self.head.last_hidden(model, **model_inputs(batch), **routers)

    def of(self, output: Any, hidden: Tensor, batch: Batch, factors: Tensor | None = None) -> Loss:
        """The loss of what `run` gave.

        Args:
            output, hidden: from there.
            batch: the same.
            factors: of the losses of the tokens that count, beside the weights that the batch may have; the sum is
                divided by the weights without them, and the mean without them is a metric.
        """
        counts = batch["targets"] != IGNORED
        linear = self.head.linear
        weights = batch["weights"][counts] if "weights" in batch else None
        total, each = linear_cross_entropy(
            hidden[counts],
            linear.weight,
            batch["targets"][counts],
            linear.bias,
            scale=self.head.scale,
            cap=self.head.cap,
            token_weights=weights if factors is None else factors if weights is None else factors * weights,
        )
        weight = (counts if weights is None else weights.abs()).sum().to(total.dtype)
        loss = Loss(total, weight, kind_metrics(each, batch, counts) if "kinds" in batch else {})
        if factors is not None:
            loss.metrics["unweighted"] = each.sum() if weights is None else each @ weights.to(each.dtype)
        return balanced(loss, output, self.balance) if self.balance else loss


def balanced_loss(coefficient: float) -> LossFn:
    """`causal_lm_loss` plus the load-balancing loss of a mixture of experts, times `coefficient`.

    The model's own auxiliary loss is used (Switch Transformers, 2021, arXiv:2101.03961). It is a mean over the tokens
    of a micro-batch and weighted by their number, so cutting a step up differently changes it slightly, unlike the
    rest.
    """

    def loss_fn(model: nn.Module, batch: Batch) -> Loss:
        outputs = model(**model_inputs(batch), output_router_logits=True)
        return balanced(batch_loss(outputs.logits, batch), outputs, coefficient)

    return loss_fn


def balance_of(outputs: Any) -> Tensor:
    """The load-balancing loss that a forward pass computed.

    Raises:
        SettingsError: none, as with classes that only have the coefficient.
    """
    if not isinstance(found := outputs.get("aux_loss"), Tensor):
        raise SettingsError(
            "transformers computes no load-balancing loss for this model, though its configuration has a coefficient",
            where="balance",
            fix="train with balance: 0",
        )
    return found


def balanced(loss: Loss, outputs: Any, coefficient: float) -> Loss:
    """The loss with the load-balancing loss of its forward pass times a coefficient, in proportion to its weight."""
    balance = balance_of(outputs).to(loss.total.device) * loss.weight
    return Loss(loss.total + coefficient * balance, loss.weight, loss.metrics | {"balance": balance.detach()})


@torch.no_grad()
def detached(loss: Loss, names: list[str]) -> Tensor:
    """Total, weight and the named metrics as one float64 vector, to be summed over micro-batches and processes."""
    metrics = [loss.metrics[name] for name in names]
    return torch.stack([value.detach().double() for value in (loss.total, loss.weight, *metrics)])
