"""The Transformer Hawkes Process, with its likelihood done right.

Transformer Hawkes Process, Zuo, Jiang, Li, Zhao, Zha, ICML 2020 (arXiv 2002.09291).

    lam_k(s | H_i) = softplus(beta_k (a_k s + w_k.h_i + b_k)) / beta_k
    loss = -log-likelihood [+ cross-entropy of a type head + squared error of a time head]

The published code scores event i with a hidden state that has already seen it, integrates the gap with a state from
after it, and integrates one type instead of all; its "likelihood" exceeds the entropy bound. Here every term uses the
state of the events before. The slope is in mean gaps since the last event, not relative to absolute time.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.core.errors import SettingsError
from burnish.events.batches import EventBatch
from burnish.events.heads import Condition, LinearHazard
from burnish.events.maths.quadrature import gauss_legendre, softplus_integral
from burnish.events.model import EncodedModel, Histories, Objective


class THP(EncodedModel):
    """Marked Hawkes process with a Transformer history and a softplus-linear intensity.

    Args:
        num_marks: types of events.
        time_scaling: "gap" or "relative" (as published: gap divided by the time of the last event).
        heads: "detached" trains the type and time heads on states that they do not change, "joint" adds their losses
            as published, "none" leaves them out.
        **encoder: see `EncoderSettings`.
    """

    kind: ClassVar[str] = "thp"
    beside: ClassVar[tuple[str, ...]] = ("type_head", "time_head")

    def __init__(
        self,
        num_marks: int,
        *,
        time_scaling: str = "gap",
        heads: str = "detached",
        **encoder: Any,
    ) -> None:
        if time_scaling not in ("gap", "relative"):
            raise SettingsError(f"time_scaling is {time_scaling!r}, but must be gap or relative")
        if heads not in ("detached", "joint", "none"):
            raise SettingsError(f"heads is {heads!r}, but must be detached, joint or none")
        super().__init__(num_marks, encoder, time_scaling=time_scaling, heads=heads)
        hidden_size = self.hidden_size
        self.intensity = LinearHazard(hidden_size, num_marks, time_scaling)
        self.heads = heads
        self.type_head = nn.Linear(hidden_size, num_marks, bias=False)
        self.time_head = nn.Linear(hidden_size, 1, bias=False)

    def condition(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        return self.intensity.condition(hidden, last_time) | {
            "type_logits": self.type_head(hidden),
            "mean_gap": self.time_head(hidden).squeeze(-1),
        }

    def hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self.intensity.hazard(condition, gap)

    def log_hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self.intensity.log_mark_hazards(condition, gap).logsumexp(-1)

    def mark_log_probs(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        return F.log_softmax(self.intensity.log_mark_hazards(condition, gap), dim=-1)

    def compensator(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        """Twelve nodes even in s: the pre-activation is linear in s, so this is the rule with the known error."""
        nodes, weights = gauss_legendre(self.num_quadrature_nodes, gap)
        at = gap.unsqueeze(-1) * nodes
        values = self.hazard(condition, at.flatten(-2)).unflatten(-1, (-1, len(nodes)))
        return gap * (values @ weights)

    def prob_no_event(self, condition: Condition) -> Float[Tensor, "*S"]:
        """exp(-sum_k int_0^inf lam_k), positive when every slope is negative; closed form by the dilogarithm."""
        level = condition["level"].detach().double().cpu().numpy()
        slope = condition["slope"].detach().double().cpu().numpy()
        beta = self.intensity.log_beta.detach().exp().double().cpu().numpy()
        total = (softplus_integral(level, slope, np.inf) / beta).sum(-1)
        return torch.from_numpy(np.exp(-total)).to(condition["level"])

    def loss(self, batch: EventBatch, objective: Objective, generator: torch.Generator) -> dict[str, Tensor]:
        histories = self.histories(batch)
        if "tie_logit" in histories.condition:
            return self.negative_log_likelihood(histories) | self._head_losses(histories)
        # The event term and its integral need the hazards of all marks at once: one evaluation serves both parts.
        gap = histories.gap.unsqueeze(-1)
        log_hazards = self.intensity.log_mark_hazards(histories.condition, gap).squeeze(-2)
        count = max(len(gap), 1)
        happened = torch.gather(log_hazards, -1, histories.mark.unsqueeze(-1))
        terms = {"nll": (self.compensator(histories.condition, gap) - happened).sum() / count}
        return terms | self.tail_loss(histories) | self._head_losses(histories)

    def _head_losses(self, histories: Histories) -> dict[str, Tensor]:
        if self.heads == "none":
            return {}
        hidden = histories.hidden.detach() if self.heads == "detached" else histories.hidden
        error = self.time_head(hidden).squeeze(-1) - histories.gap
        return {
            "type_head": F.cross_entropy(self.type_head(hidden), histories.mark),
            "time_head": 0.01 * error.square().mean(),
        }
