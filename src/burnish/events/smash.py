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

from burnish.events.heads import Condition, LocationScore
from burnish.events.located import LocatedModel
from burnish.events.maths.langevin import reverse_diffusion
from burnish.events.model import Histories

LOWEST_SIGMA, HIGHEST_SIGMA = 0.02, 8.0
"""Noise levels of the place, in standard deviations of the training places."""


class Smash(LocatedModel):
    """Per-mark hazards and a location score over a Transformer history.

    Args:
        num_marks: types of events.
        head_size: width of the hazard network.
        location_size: width of the location score network.
        num_decays: kernels of the Hawkes process that the hazards correct.
        **encoder: see `EncoderSettings`.
    """

    kind: ClassVar[str] = "smash"

    def __init__(
        self,
        num_marks: int,
        *,
        head_size: int = 32,
        location_size: int = 64,
        num_decays: int = 4,
        **encoder: Any,
    ) -> None:
        super().__init__(num_marks, encoder, head_size=head_size, num_decays=num_decays, location_size=location_size)
        self.location_head = LocationScore(self.hidden_size, location_size)

    def condition(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        return super().condition(hidden, last_time) | self.location_head.condition(hidden[..., : self.hidden_size])

    # -- training ----------------------------------------------------------------------------------------------------

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
        self,
        condition: Condition,
        gap: Float[Tensor, "S n"],
        *,
        generator: torch.Generator,
        num_levels: int = 40,
        **details: Any,
    ) -> Float[Tensor, "S n 2"]:
        """Places given gaps (in mean gaps), in the data's coordinates."""
        steps = torch.linspace(0, 1, num_levels, dtype=torch.float64)
        sigmas = (HIGHEST_SIGMA * (LOWEST_SIGMA / HIGHEST_SIGMA) ** steps).to(gap)
        start = HIGHEST_SIGMA * torch.randn((*gap.shape, 2), generator=generator).to(gap)
        context = condition["location_context"]

        def score(place: Tensor, sigma: Tensor) -> Tensor:
            return self.location_head.score(context, place, gap, sigma, self.statistics.knee)

        places = reverse_diffusion(score, start, sigmas, generator=generator)
        return self.in_data_units(places)
