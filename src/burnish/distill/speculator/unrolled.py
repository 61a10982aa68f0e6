"""The loss of a draft: what the model says, one, two and more tokens on, where the draft goes on from its own state.

    loss = sum_s DECAY^(s-1) mean_i [ -sum_{x in V_h} p(x | i + s) log q_s(x | i) ]

with q_s the draft's distribution after s given tokens and p the model's, whose part outside of V_h costs nothing: its
cross-entropy with a draft that has none of it is not finite. What is reported is acceptance: sum_x min(p, q).

Source: EAGLE-3, 2025, arXiv:2503.01840 (training-time test); weights of later tokens as in its released code, 0.8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from burnish.distill.maths.draft_vocabulary import acceptance
from burnish.distill.speculator.network import DraftNetwork
from burnish.train.losses import COUNT, Batch, Loss

DECAY = 0.8
"""Weight of a token beside that before it."""


@dataclass(frozen=True)
class Unrolled:
    """A `LossFn` over `TaughtAnswers`.

    Attributes:
        embed: the model's embedding of tokens.
        tokens: that the draft has, in the order of its logits.
        steps: tokens in a row.
    """

    embed: nn.Module
    tokens: Int[Tensor, " size"]
    steps: int

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """The loss, `coverage`, and for each step `acceptance_S` and `agreement_S`, the share of positions where both
        find the same token likeliest, so that a greedy text accepts it."""
        network: DraftNetwork = model
        with torch.no_grad():
            embeddings = self.embed(batch["input_ids"]).float()
        total, metrics = embeddings.new_zeros(()), {}
        weight = embeddings.new_zeros(())
        for step, hidden in enumerate(network.unrolled(batch["states"], embeddings, self.steps), start=1):
            counts = batch["counts"][:, step:]
            log_q = network.logits(hidden[:, : counts.shape[1]][counts]).float().log_softmax(-1)
            with torch.no_grad(), torch.autocast(log_q.device.type, enabled=False):
                said = network.lm_head(batch["last"][:, step:][counts]).float()
                p = (said - batch["log_normaliser"][:, step:][counts][:, None]).exp()
            number, same = (
                counts.sum().to(p.dtype),
                self.tokens[log_q.argmax(-1)] == batch["likeliest"][:, step:][counts],
            )
            total = total - DECAY ** (step - 1) * (p * log_q).sum()
            found = {
                f"acceptance_{step}": acceptance(p, log_q.detach().exp()).sum(),
                f"agreement_{step}": same.sum().to(p.dtype),
            }
            if step == 1:
                weight, found = number, found | {"coverage": p.sum()}
            for name, value in found.items():
                metrics |= {name: value, name + COUNT: number}
        return Loss(total, weight, metrics)
