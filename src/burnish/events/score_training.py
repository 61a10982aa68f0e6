"""The score objectives on a hazard head: denoise the gap, in log time or (as published) in the gap itself.

    u = log s, u~ = u + sigma e:      psi_u(u~) = 1 + s~ psi(s~),   loss (psi_u^2)/2 + psi_u e / sigma     (log time)
    s~ = s + sigma e, kept where s~ > 0:   psi(s~),                 loss (psi^2)/2 + psi e / sigma         (raw gap)

The second is biased for a point process, whose density is positive at s = 0 (see maths/score.py).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from burnish.events.heads import Condition
from burnish.events.maths.quadrature import gauss_legendre
from burnish.events.maths.score import antithetic_noise, centred_denoising_loss, log_time_score, mass_loss
from burnish.events.model import EventModel, Objective

GapScore = Callable[[Tensor], Tensor]
"""psi(s) at gaps of shape (S, noise)."""


def denoising_time_loss(
    gap: Float[Tensor, " S"], score: GapScore, objective: Objective, generator: torch.Generator
) -> tuple[Float[Tensor, " S"], Float[Tensor, "S noise"]]:
    """The score loss of every event, and the noised gaps that it was taken at."""
    noise = antithetic_noise((len(gap),), objective.num_noise, generator, gap)
    if objective.time_coordinate == "log":
        noised = gap.clamp_min(1e-9).unsqueeze(-1) * torch.exp(objective.sigma * noise)
        value = log_time_score(noised, score(noised))
        return centred_denoising_loss(value, noise, objective.sigma).mean(-1), noised
    noised = gap.unsqueeze(-1) + objective.sigma * noise
    inside = noised > 0
    safe = torch.where(inside, noised, gap.unsqueeze(-1))
    loss = centred_denoising_loss(score(safe), noise, objective.sigma)
    return torch.where(inside, loss, 0.0).mean(-1), safe


def horizon_mass_loss(model: EventModel, condition: Condition, gap: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
    """The mass term at the horizons of the training data; four quadrature nodes between neighbouring horizons."""
    horizons = torch.tensor(model.statistics.horizons, dtype=gap.dtype, device=gap.device)
    nodes, weights = gauss_legendre(4, gap)
    left = torch.cat([torch.zeros_like(horizons[:1]), horizons[:-1]])
    width = (horizons - left).unsqueeze(-1)
    at = (left.unsqueeze(-1) + width * nodes).flatten()
    values = model.hazard(condition, at.expand(len(gap), -1)).unflatten(-1, (len(horizons), 4))
    compensator = ((values @ weights) * width.squeeze(-1)).cumsum(-1)
    return mass_loss(compensator, gap, horizons)
