"""The next-token loss of a model that lets its tokens count by how well it predicts them.

    L = sum_t w_t f_t ce_t / sum_t w_t f_t,    f_t = (1 - p_t)^focal [p_t <= drop_top]

w_t are the weights that the data gives its tokens, else 1. What is to be unlearned (w_t < 0) has f_t = 1: there, being
certain is what is to be mended. drop_top begins with the second pass over the data. On held-out rows, and in their
numbers, the loss is the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from burnish.data.packing import IGNORED
from burnish.train.losses import COUNT, STEP, Batch, HeadLoss, Loss
from burnish.train.maths.prediction_weights import prediction_weights
from burnish.train.maths.stretches import in_stretches, tokens_at_once, wide


@dataclass(frozen=True)
class Focal:
    """A `LossFn`.

    Attributes:
        plain: the next-token loss that it weighs.
        focal: exponent; 0 for none.
        drop_top: the largest probability that counts; None for any.
        first_pass: steps of the first pass over the data.
    """

    plain: HeadLoss
    focal: float = 0.0
    drop_top: float | None = None
    first_pass: int = 0

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Total and weight over the tokens whose target is not -100; the plain loss in evaluation mode."""
        if not model.training:
            return self.plain(model, batch)
        output, hidden = self.plain.run(model, batch)
        counts = batch["targets"] != IGNORED
        losses = self._losses(hidden[counts], batch["targets"][counts])
        given = batch["weights"] if "weights" in batch else counts.to(losses.dtype)
        dropped = self.drop_top if int(batch[STEP]) >= self.first_pass else None
        factors = prediction_weights(losses, self.focal, dropped).masked_fill(given[counts] < 0, 1.0)
        weights = given.to(losses.dtype).masked_scatter(counts, given[counts].to(losses.dtype) * factors)
        loss = self.plain.of(output, hidden, {**batch, "weights": weights})
        learned = given[counts].clamp(min=0).to(losses.dtype)
        beside = {"unweighted": losses @ learned, "share_counted": factors @ learned}
        return Loss(loss.total, loss.weight, loss.metrics | beside | {name + COUNT: learned.sum() for name in beside})

    @torch.no_grad()
    def _losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Of each token, in nats; the head is computed once more for them."""
        head = self.plain.head
        (found,) = in_stretches(
            lambda states, ids: (nn.functional.cross_entropy(wide(head.logits(states)), ids, reduction="none"),),
            (hidden.detach(), targets),
            tokens_at_once(hidden.device, head.linear.out_features),
        )
        return found
