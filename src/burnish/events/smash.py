"""SMASH: time, mark and place of the next event, with a score for the place.

Beyond Point Prediction: Score Matching-based Pseudolikelihood Estimation of Neural Marked Spatio-Temporal Point
Process, Li, Q. Xu, Z. Xu, Mei, Zhao, Zha, ICML 2024 (arXiv 2310.16310).

    p(s, k, x | H) = lam_k(s) exp(-Lam(s)) p(x | s, H)
    psi(s | k) = d/ds log lam_k(s) - sum_j lam_j(s),     p(k | s) = lam_k(s) / sum_j lam_j(s),     phi(x | s, H) free

Here the gap is matched in log time (or fitted by likelihood), its quantiles are exact and marks are drawn given the
gap, so score sampling remains for the place alone, where it is needed: a ladder of noise levels is trained and a
reverse diffusion draws from it. Nothing is clamped to the range of the data, padding is recognised by length, and the
checkpoint is chosen on validation data (the published code chooses it on the test set).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from burnish.events.batches import EventBatch
from burnish.events.heads import Condition, FlexibleHazard, LocationScore
from burnish.events.maths.langevin import reverse_diffusion
from burnish.events.model import OBJECTIVES, EncodedModel, Histories, Objective
from burnish.events.score_training import denoising_time_loss, horizon_mass_loss

LOWEST_SIGMA, HIGHEST_SIGMA = 0.02, 8.0
"""Noise levels of the place, in standard deviations of the training places."""


class Smash(EncodedModel):
    """Per-mark hazards and a location score over a Transformer history.

    Args:
        num_marks: types of events.
        head_size: width of the hazard network.
        location_size: width of the location score network.
        **encoder: see `EncoderSettings`.
    """

    kind: ClassVar[str] = "smash"
    objectives: ClassVar[tuple[str, ...]] = OBJECTIVES
    has_location: ClassVar[bool] = True

    def __init__(
        self,
        num_marks: int,
        *,
        head_size: int = 32,
        location_size: int = 64,
        **encoder: Any,
    ) -> None:
        super().__init__(num_marks, encoder, head_size=head_size, location_size=location_size)
        hidden_size = self.hidden_size
        self.time_head = FlexibleHazard(hidden_size, head_size, num_marks)
        self.location_head = LocationScore(hidden_size, location_size)

    def condition(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        return self.time_head.condition(hidden) | self.location_head.condition(hidden)

    def hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self.time_head.hazards(condition, gap, self.statistics.knee).sum(-1)

    def log_hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self.time_head.log_hazards(condition, gap, self.statistics.knee).logsumexp(-1)

    def mark_log_probs(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        return F.log_softmax(self.time_head.log_hazards(condition, gap, self.statistics.knee), dim=-1)

    def mark_gap_scores(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        """psi(s | k) of every mark."""
        log_hazards, slopes = self.time_head.log_hazards_and_slopes(condition, gap, self.statistics.knee)
        return slopes - log_hazards.exp().sum(-1, keepdim=True)

    def gap_score(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        """psi(s) = d/ds log sum_k lam_k(s) - sum_k lam_k(s), the score of the gap alone."""
        log_hazards, slopes = self.time_head.log_hazards_and_slopes(condition, gap, self.statistics.knee)
        slope = (F.softmax(log_hazards, dim=-1) * slopes).sum(-1)
        return slope - log_hazards.exp().sum(-1)

    # -- training ----------------------------------------------------------------------------------------------------

    def loss(self, batch: EventBatch, objective: Objective, generator: torch.Generator) -> dict[str, Tensor]:
        histories = self.histories(batch)
        terms = self._time_and_mark_loss(batch, histories, objective, generator)
        return terms | {"location": self.location_loss(histories, generator)}

    def _time_and_mark_loss(
        self, batch: EventBatch, histories: Histories, objective: Objective, generator: torch.Generator
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

    def location_loss(self, histories: Histories, generator: torch.Generator, num_noise: int = 4) -> Float[Tensor, ""]:
        """1/2 sigma^2 |phi(x + sigma e) + e/sigma|^2 averaged over noise levels that are even in log sigma."""
        assert histories.location is not None
        place = histories.location.unsqueeze(-2)
        shape = (len(place), num_noise)
        span = torch.tensor(HIGHEST_SIGMA / LOWEST_SIGMA).log()
        draw = torch.rand(shape, generator=generator).to(place)
        sigma = LOWEST_SIGMA * torch.exp(span.to(place) * draw)
        noise = torch.randn((*shape, 2), generator=generator).to(place)
        score = self.location_head.score(
            histories.condition["location_context"],
            place + sigma.unsqueeze(-1) * noise,
            histories.gap.unsqueeze(-1).expand(shape),
            sigma,
            self.statistics.knee,
        )
        error = sigma.unsqueeze(-1) * score + noise
        return 0.5 * error.square().sum(-1).mean()

    # -- sampling ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample_locations(
        self, condition: Condition, gap: Float[Tensor, "S n"], *, generator: torch.Generator, num_levels: int = 40
    ) -> Float[Tensor, "S n 2"]:
        """Places given gaps (in mean gaps), in the data's coordinates."""
        steps = torch.linspace(0, 1, num_levels, dtype=torch.float64)
        sigmas = (HIGHEST_SIGMA * (LOWEST_SIGMA / HIGHEST_SIGMA) ** steps).to(gap)
        start = HIGHEST_SIGMA * torch.randn((*gap.shape, 2), generator=generator).to(gap)
        context = condition["location_context"]

        def score(place: Tensor, sigma: Tensor) -> Tensor:
            return self.location_head.score(context, place, gap, sigma, self.statistics.knee)

        places = reverse_diffusion(score, start, sigmas, generator=generator)
        mean = torch.tensor(self.statistics.location_mean, dtype=torch.float64)
        scale = torch.tensor(self.statistics.location_scale, dtype=torch.float64)
        return places.double() * scale + mean
