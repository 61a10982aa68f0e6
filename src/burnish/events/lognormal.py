"""A mixture of log-normals for the gap: the intensity-free model that any forecaster here has to beat.

Intensity-Free Learning of Temporal Point Processes, Shchur, Bilos, Guennemann, ICLR 2020 (arXiv 1909.12127).

    p(s | H) = sum_j w_j LogNormal(s; mu_j, sigma_j),    p(k | H) = softmax(W h)

Density, survival and hence hazard are closed forms. The mark does not depend on when the event comes.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.events.batches import EventBatch
from burnish.events.heads import Condition
from burnish.events.model import EncodedModel, Objective


class LogNormalMixture(EncodedModel):
    """Log-normal mixture of the gap over a Transformer history.

    Args:
        num_marks: types of events.
        num_components: log-normals in the mixture.
        **encoder: see `EncoderSettings`.
    """

    kind: ClassVar[str] = "lognormal-mixture"
    closed_compensator: ClassVar[bool] = True

    def __init__(
        self,
        num_marks: int,
        *,
        num_components: int = 16,
        **encoder: Any,
    ) -> None:
        super().__init__(num_marks, encoder, num_components=num_components)
        hidden_size = self.hidden_size
        self.mixture_proj = nn.Linear(hidden_size, 3 * num_components)
        self.mark_proj = nn.Linear(hidden_size, num_marks)
        with torch.no_grad():  # components start spread over five decades of the gap, not on top of each other
            self.mixture_proj.bias[num_components : 2 * num_components].copy_(torch.linspace(-4, 1.5, num_components))

    def condition(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        weight, mean, log_scale = self.mixture_proj(hidden).chunk(3, dim=-1)
        return {
            "log_weight": F.log_softmax(weight, dim=-1),
            "mean": mean,
            "log_scale": log_scale.clamp(-4, 4),
            "mark_log_probs": F.log_softmax(self.mark_proj(hidden), dim=-1),
        }

    def mean_gap(self, condition: Condition) -> Float[Tensor, "*S"]:
        """sum_j w_j exp(mu_j + sigma_j^2 / 2): most of a heavy tail's mean lies beyond any table."""
        exponent = condition["log_weight"] + condition["mean"] + 0.5 * torch.exp(2 * condition["log_scale"])
        return exponent.double().logsumexp(-1).exp()

    def _standardised(self, condition: Condition, gap: Tensor) -> tuple[Tensor, Tensor]:
        log_gap = torch.log(gap.clamp_min(1e-12)).unsqueeze(-1)
        z = (log_gap - condition["mean"].unsqueeze(-2)) * torch.exp(-condition["log_scale"]).unsqueeze(-2)
        return z, log_gap.squeeze(-1)

    def _log_pdf(self, condition: Condition, gap: Tensor) -> Tensor:
        z, log_gap = self._standardised(condition, gap)
        terms = condition["log_weight"].unsqueeze(-2) - z.square() / 2 - condition["log_scale"].unsqueeze(-2)
        return terms.logsumexp(-1) - log_gap - math.log(2 * math.pi) / 2

    def compensator(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        """-log S(s)."""
        z, _ = self._standardised(condition, gap)
        log_survival = torch.special.log_ndtr(-z)
        value = -(condition["log_weight"].unsqueeze(-2) + log_survival).logsumexp(-1)
        return torch.where(gap > 0, value, 0.0)

    def log_hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self._log_pdf(condition, gap) + self.compensator(condition, gap)

    def log_density(self, condition: Condition, gap: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        return self._log_pdf(condition, gap.unsqueeze(-1)).squeeze(-1)

    def mark_log_probs(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        return condition["mark_log_probs"].unsqueeze(-2).expand(*gap.shape, -1)

    def loss(self, batch: EventBatch, objective: Objective, generator: torch.Generator) -> dict[str, Tensor]:
        return self.negative_log_likelihood(self.histories(batch))
