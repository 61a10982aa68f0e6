"""SMURF-THP: the law of the next event time as an object, not a point.

SMURF-THP: Score Matching-based Uncertainty quantification for Transformer Hawkes Process, Li, Xu, Zuo, Jiang, Zhang,
Zhao, Zha, ICML 2023 (arXiv 2310.16336).

A small network gives the hazard of the gap, another the type given the gap; here both correct a Hawkes process that is
fitted first (excitation.py), where the paper has the networks alone. The paper trains by denoising score
matching in the raw gap (biased at s = 0), computes the score's derivative without a graph (half of the gradient is
missing) and samples by Langevin dynamics. Here the score is matched in log time with the full gradient, the likelihood
is offered on the same head (in one dimension it is cheaper), and quantiles are exact.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from burnish.events.batches import EventBatch
from burnish.events.excitation import ExcitedModel
from burnish.events.heads import Condition, TimedMarks
from burnish.events.model import OBJECTIVES, Objective
from burnish.events.score_training import denoising_time_loss, horizon_mass_loss


class SmurfTHP(ExcitedModel):
    """Flexible hazard of the gap and time-dependent mark probabilities over a Transformer history.

    Args:
        num_marks: types of events.
        head_size: width of the hazard and mark networks.
        num_decays: kernels of the Hawkes process that the networks correct; 0 leaves base rates only.
        **encoder: see `EncoderSettings`.
    """

    kind: ClassVar[str] = "smurf-thp"
    objectives: ClassVar[tuple[str, ...]] = OBJECTIVES

    def __init__(
        self,
        num_marks: int,
        *,
        head_size: int = 32,
        num_decays: int = 4,
        **encoder: Any,
    ) -> None:
        super().__init__(num_marks, encoder, head_size=head_size, num_decays=num_decays, num_hazards=1)
        self.mark_head = TimedMarks(self.hidden_size, head_size, num_marks)

    def condition(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        return super().condition(hidden, last_time) | self.mark_head.condition(hidden[..., : self.hidden_size])

    def mark_log_probs(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        excited = self.excitation.hazards(condition["drive"], gap).log()
        return F.log_softmax(excited + self.mark_head.logits(condition, gap, self.statistics.knee), dim=-1)

    def loss(self, batch: EventBatch, objective: Objective, generator: torch.Generator) -> dict[str, Tensor]:
        histories = self.histories(batch)
        if objective.name == "likelihood":
            return self.negative_log_likelihood(histories)
        condition, count = histories.condition, max(len(histories.gap), 1)
        value, noised = denoising_time_loss(
            histories.gap, lambda gap: self.gap_score(condition, gap), objective, generator
        )
        log_probs = self.mark_log_probs(condition, noised[:, :2])
        picked = torch.gather(log_probs, -1, histories.mark.view(-1, 1, 1).expand(-1, log_probs.shape[1], 1))
        terms = {"score": objective.score_weight * value.sum() / count, "mark": -picked.mean(1).sum() / count}
        if objective.name == "score+mass":
            terms["mass"] = horizon_mass_loss(self, condition, histories.gap).sum() / count
        return terms
