"""What models of time, type and place share: hazards per type over a history, and the place given the gap.

    p(s, k, x | H) = lam_k(s) exp(-Lam(s)) p(x | s, H)
    psi(s | k) = d/ds log lam_k(s) - sum_j lam_j(s),     p(k | s) = lam_k(s) / sum_j lam_j(s)

Subclasses give the law of the place: `Smash` by its score, `PlaceMixture` by its density.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from burnish.events.batches import EventBatch
from burnish.events.excitation import ExcitedModel
from burnish.events.heads import Condition
from burnish.events.model import OBJECTIVES, Histories, Objective
from burnish.events.score_training import denoising_time_loss, horizon_mass_loss


class LocatedModel(ExcitedModel):
    """Per-mark hazards over a Transformer history, and a place.

    Args:
        num_marks: types of events.
        encoder: fields of `EncoderSettings`.
        head_size: width of the hazard network.
        num_decays: kernels of the Hawkes process that it corrects.
        **settings: the subclass's own.
    """

    objectives: ClassVar[tuple[str, ...]] = OBJECTIVES
    has_location: ClassVar[bool] = True

    def __init__(
        self, num_marks: int, encoder: dict[str, Any], *, head_size: int, num_decays: int, **settings: Any
    ) -> None:
        super().__init__(
            num_marks, encoder, head_size=head_size, num_decays=num_decays, num_hazards=num_marks, **settings
        )

    def location_loss(self, histories: Histories, generator: torch.Generator) -> Float[Tensor, ""]:
        """Mean over the scored events of what is minimised for the place."""
        raise NotImplementedError

    def sample_locations(
        self, condition: Condition, gap: Float[Tensor, "S n"], *, generator: torch.Generator, **details: Any
    ) -> Float[Tensor, "S n 2"]:
        """Places given gaps (in mean gaps), in the data's coordinates."""
        raise NotImplementedError

    def mark_log_probs(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        return F.log_softmax(self.log_hazards(condition, gap), dim=-1)

    def mark_gap_scores(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        """psi(s | k) of every mark."""
        log_hazards, slopes = self.log_hazards_and_slopes(condition, gap)
        return slopes - log_hazards.exp().sum(-1, keepdim=True)

    def loss(self, batch: EventBatch, objective: Objective, generator: torch.Generator) -> dict[str, Tensor]:
        histories = self.histories(batch)
        terms = self._time_and_mark_loss(histories, objective, generator)
        return terms | {"location": self.location_loss(histories, generator)}

    def _time_and_mark_loss(
        self, histories: Histories, objective: Objective, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if objective.name == "likelihood":
            return self.negative_log_likelihood(histories)
        condition, count, mark = histories.condition, max(len(histories.gap), 1), histories.mark

        def score(gap: Tensor) -> Tensor:
            index = mark.view(-1, 1, 1).expand(-1, gap.shape[1], 1)
            return torch.gather(self.mark_gap_scores(condition, gap), -1, index).squeeze(-1)

        value, noised = denoising_time_loss(histories.gap, score, objective, generator)
        log_probs = self.mark_log_probs(condition, noised[:, :2])
        picked = torch.gather(log_probs, -1, mark.view(-1, 1, 1).expand(-1, log_probs.shape[1], 1))
        terms = {"score": objective.score_weight * value.sum() / count, "mark": -picked.mean(1).sum() / count}
        if objective.name == "score+mass":
            terms["mass"] = horizon_mass_loss(self, condition, histories.gap).sum() / count
        return terms

    def in_data_units(self, places: Float[Tensor, "*S 2"]) -> Float[Tensor, "*S 2"]:
        """Standardised places in the data's coordinates, in float64."""
        return torch.from_numpy(self.statistics.in_data_units(places.cpu().numpy()))
