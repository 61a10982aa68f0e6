"""The exponential-kernel Hawkes process fitted by maximum likelihood: K^2 + K + 1 numbers and no network.

    lam_k(s | H) = mu_k + x_k exp(-b s),   x <- x exp(-b s) + A[:, k] at an event of type k

Hidden state is the excitation x, so it forecasts through the same interface as the neural models and is their honest
baseline: on data that really is Hawkes nothing beats it. The likelihood is maximised by L-BFGS over all data at once.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from burnish.events.batches import EventBatch
from burnish.events.heads import Condition
from burnish.events.model import EventModel, Objective


class ExponentialHawkes(EventModel):
    """Multivariate Hawkes process with one exponential decay.

    Args:
        num_marks: types of events.
    """

    kind: ClassVar[str] = "exponential-hawkes"
    closed_compensator: ClassVar[bool] = True

    def __init__(self, num_marks: int) -> None:
        super().__init__(num_marks)
        self.log_mu = nn.Parameter(torch.full((num_marks,), -1.0))
        self.log_jumps = nn.Parameter(torch.full((num_marks, num_marks), -2.0))
        self.log_decay = nn.Parameter(torch.zeros(()))

    def states(self, batch: EventBatch) -> Float[Tensor, "B L+1 K"]:
        jumps, decay = self.log_jumps.exp(), self.log_decay.exp()
        fade = torch.exp(-decay * batch.gaps)
        excitation = jumps.new_zeros(len(batch.gaps), self.num_marks)
        path = [excitation]
        rises = jumps.t()[batch.marks]
        for i in range(batch.gaps.shape[1]):
            excitation = excitation * fade[:, i, None] + rises[:, i]
            path.append(excitation)
        return torch.stack(path, dim=1)

    def condition(self, hidden: Float[Tensor, "*S K"], last_time: Float[Tensor, "*S"]) -> Condition:
        return {"excitation": hidden}

    def _mark_hazards(self, condition: Condition, gap: Tensor) -> Tensor:
        fade = torch.exp(-self.log_decay.exp() * gap).unsqueeze(-1)
        return self.log_mu.exp() + condition["excitation"].unsqueeze(-2) * fade

    def hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        fade = torch.exp(-self.log_decay.exp() * gap)
        return self.log_mu.exp().sum() + condition["excitation"].sum(-1, keepdim=True) * fade

    def log_hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self.hazard(condition, gap).log()

    def compensator(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        decay = self.log_decay.exp()
        excitation = condition["excitation"].sum(-1, keepdim=True)
        return self.log_mu.exp().sum() * gap - excitation / decay * torch.expm1(-decay * gap)

    def mark_log_probs(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        hazards = self._mark_hazards(condition, gap)
        return torch.log(hazards / hazards.sum(-1, keepdim=True))

    def loss(self, batch: EventBatch, objective: Objective, generator: torch.Generator) -> dict[str, Tensor]:
        return self.negative_log_likelihood(self.histories(batch))
