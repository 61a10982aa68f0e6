"""The place by its likelihood: one mixture of learned places, places that recur, and the places of the last events.

    p(x | s, H) = sum_j w_j N(x; m_j, S_j)

* free      means, scales and correlations are read off the history: where a moving process goes next
* centres   fixed k-means centres of the training places, each with its own scale: where events tend to be
* pointers  the places of the last events with three shared scales: where they cluster in space and time

All weights depend on the history and the gap s, those of the pointers on their ages too. Neither kind is best on every
data set, so one mixture holds all three and the likelihood shares the weight out. Free means are those of mixture
density networks (Bishop 1994); pointers are a kernel density whose weights and bandwidths are learned.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.events.batches import EventBatch
from burnish.events.data import EventDataset
from burnish.events.heads import Condition
from burnish.events.located import LocatedModel
from burnish.events.model import Histories

SMALLEST = math.log(0.005)
"""Log of the smallest scale, in standard deviations of the training places: places may repeat exactly."""

NUM_SCALES = 3
"""Bandwidths that all pointers share."""


class PlaceMixture(LocatedModel):
    """Per-mark hazards and a density of the place over a Transformer history.

    Args:
        num_marks: types of events.
        head_size: width of the hazard network.
        place_size: width of the network of the place.
        num_free: Gaussians with means from the history.
        num_centres: k-means centres of the training places.
        num_recent: last events whose places are pointed to.
        num_decays: kernels of the Hawkes process that the hazards correct.
        **encoder: see `EncoderSettings`.
    """

    kind: ClassVar[str] = "place-mixture"
    centres: Tensor
    centre_log_scale: Tensor

    def __init__(
        self,
        num_marks: int,
        *,
        head_size: int = 32,
        place_size: int = 64,
        num_free: int = 16,
        num_centres: int = 64,
        num_recent: int = 20,
        num_decays: int = 4,
        **encoder: Any,
    ) -> None:
        super().__init__(
            num_marks,
            encoder,
            head_size=head_size,
            num_decays=num_decays,
            place_size=place_size,
            num_free=num_free,
            num_centres=num_centres,
            num_recent=num_recent,
        )
        self.state_size += 3 * num_recent
        self.num_free, self.num_centres, self.num_recent = num_free, num_centres, num_recent
        self.place_proj = nn.Linear(self.hidden_size + 2, place_size)
        self.clock_proj = nn.Linear(1, place_size, bias=False)
        self.weight_proj = nn.Linear(place_size, num_free + num_centres + num_recent + NUM_SCALES + 2)
        self.free_proj = nn.Linear(place_size, 5 * num_free)
        self.scale_proj = nn.Linear(place_size, 2 * NUM_SCALES)
        self.centre_scale_shift = nn.Parameter(torch.zeros(num_centres, 2))
        self.register_buffer("centres", torch.zeros(num_centres, 2))
        self.register_buffer("centre_log_scale", torch.zeros(num_centres, 2))
        with torch.no_grad():
            self.scale_proj.bias.copy_(torch.tensor([0.05, 0.2, 0.6]).log().repeat_interleave(2))

    def prepare(self, training: EventDataset, seed: int) -> None:
        """Puts the centres where the training places are."""
        super().prepare(training, seed)
        places = np.concatenate([s.locations for s in training.sequences if s.locations is not None])
        places = self.statistics.standardised(places)
        rng = np.random.default_rng(seed)
        some = places[rng.permutation(len(places))[:20_000]]
        count = min(self.num_centres, len(np.unique(some, axis=0)))
        centres, member = kmeans2(some, count, minit="++", iter=20, rng=rng)
        spread = np.stack([some[member == j].std(0) if (member == j).sum() > 1 else [0.0, 0.0] for j in range(count)])
        shown = np.resize(centres, (self.num_centres, 2)), np.resize(spread, (self.num_centres, 2))
        self.centres.copy_(torch.from_numpy(shown[0]))
        self.centre_log_scale.copy_(torch.from_numpy(np.log(np.maximum(shown[1], 0.02))))
        with torch.no_grad():  # the weights begin at the centres' shares
            share = np.resize(np.bincount(member, minlength=count) / len(member), self.num_centres)
            rows = slice(self.num_free, self.num_free + self.num_centres)
            self.weight_proj.bias[rows].copy_(torch.from_numpy(np.log(share + 1e-4) + 2.0))

    # -- what is known of the places before --------------------------------------------------------------------------

    def states(self, batch: EventBatch) -> Float[Tensor, "B L+1 M"]:
        """The states, and behind each the places and times of the last events (NaN where there was none)."""
        assert batch.locations is not None
        here = torch.cat([batch.locations, batch.times.unsqueeze(-1)], dim=-1)
        before = here.new_full((len(here), self.num_recent, 3), float("nan"))
        recent = torch.cat([before, here], dim=1).unfold(1, self.num_recent, 1).flip(-1)  # (B, L + 1, 3, recent)
        return torch.cat([super().states(batch), recent.flatten(-2)], dim=-1)

    def online_state(self, hidden: np.ndarray, recent: list[tuple[float, np.ndarray]]) -> np.ndarray:
        """The same for one stream, from the last events' (time, standardised place), the newest last."""
        rows = np.full((3, self.num_recent), np.nan)
        for j, (time, place) in enumerate(reversed(recent[-self.num_recent :])):
            rows[:, j] = (*place, time)
        return np.concatenate([hidden, rows.ravel()])

    def condition(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        state, rows = hidden[..., : self.hidden_size], hidden[..., self.excited_size :]
        recent = rows.unflatten(-1, (3, self.num_recent))
        known = ~torch.isnan(recent[..., 0, :])
        places = torch.nan_to_num(recent[..., :2, :]).transpose(-1, -2)
        age = torch.nan_to_num(last_time.unsqueeze(-1) - recent[..., 2, :]).clamp_min(0.0)
        return super().condition(hidden, last_time) | {
            "place_context": self.place_proj(torch.cat([state, places[..., 0, :]], dim=-1)),
            "recent_places": places,
            "recent_age": torch.log1p(self.statistics.knee * age),
            "recent_known": known,
        }

    # -- the density -------------------------------------------------------------------------------------------------

    def _components(
        self, condition: Condition, gap: Float[Tensor, "S n"]
    ) -> tuple[Float[Tensor, "S n J"], Float[Tensor, "S n J 2"], Float[Tensor, "S n J 2"], Float[Tensor, "S n J"]]:
        """log weights, means, log scales and correlations of all Gaussians."""
        free, centres, recent = self.num_free, self.num_centres, self.num_recent
        clock = torch.log1p(self.statistics.knee * gap).unsqueeze(-1)
        inner = F.silu(condition["place_context"].unsqueeze(-2) + self.clock_proj(clock))
        logits = self.weight_proj(inner)
        of_free, of_centres, of_recent, of_scale, rest = logits.split([free, centres, recent, NUM_SCALES, 2], dim=-1)
        pointers = of_recent + rest[..., :1] + rest[..., 1:] * condition["recent_age"].unsqueeze(-2)
        pointers = pointers.masked_fill(~condition["recent_known"].unsqueeze(-2), float("-inf"))
        pointers = pointers.unsqueeze(-1) + F.log_softmax(of_scale, dim=-1).unsqueeze(-2)
        log_weight = F.log_softmax(torch.cat([of_free, of_centres, pointers.flatten(-2)], dim=-1), dim=-1)

        shape = gap.shape
        drawn = self.free_proj(inner).unflatten(-1, (free, 5))
        # Free means are steps from the last place: a process that moves is then the same everywhere.
        free_mean = condition["recent_places"][..., None, :1, :] + drawn[..., :2]
        pointer_mean = condition["recent_places"][:, None, :, None, :].expand(*shape, recent, NUM_SCALES, 2)
        mean = torch.cat([free_mean, self.centres.expand(*shape, -1, -1), pointer_mean.flatten(-3, -2)], dim=-2)

        centre_scale = (self.centre_log_scale + self.centre_scale_shift).expand(*shape, -1, -1)
        pointer_scale = self.scale_proj(inner).unflatten(-1, (1, NUM_SCALES, 2)).expand(*shape, recent, -1, -1)
        log_scale = torch.cat([drawn[..., 2:4], centre_scale, pointer_scale.flatten(-3, -2)], dim=-2)
        if self.statistics.sphere:  # a degree of longitude is shorter the nearer the pole
            log_scale = torch.cat([log_scale[..., :1] + self._log_stretch(mean), log_scale[..., 1:]], dim=-1)
        correlation = F.pad(0.95 * torch.tanh(drawn[..., 4]), (0, centres + recent * NUM_SCALES))
        return log_weight, mean, log_scale.clamp(SMALLEST, 3.0), correlation

    def _log_stretch(self, mean: Float[Tensor, "*S 2"]) -> Float[Tensor, "*S 1"]:
        """log of how much longer than at the mean latitude a distance is in degrees of longitude."""
        (_, middle), (_, scale) = self.statistics.location_mean, self.statistics.location_scale
        latitude = torch.deg2rad(middle + scale * mean[..., 1:]).cos().abs().clamp_min(0.02)
        return math.log(max(math.cos(math.radians(middle)), 0.02)) - latitude.log()

    def location_log_density(
        self, condition: Condition, place: Float[Tensor, "S n 2"], gap: Float[Tensor, "S n"]
    ) -> Float[Tensor, "S n"]:
        """log p(x | s, H) of standardised places; on a sphere per area, with the images across the seam."""
        if not self.statistics.sphere:
            return self._log_density(condition, place, gap)
        (_, middle), (width, height) = self.statistics.location_mean, self.statistics.location_scale
        around = place.new_tensor([360 / width, 0.0])
        images = [self._log_density(condition, place + turn * around, gap) for turn in (-1, 0, 1)]
        latitude = torch.deg2rad(middle + height * place[..., 1])
        return torch.stack(images).logsumexp(0) - latitude.cos().clamp_min(1e-6).log()

    def _log_density(
        self, condition: Condition, place: Float[Tensor, "S n 2"], gap: Float[Tensor, "S n"]
    ) -> Float[Tensor, "S n"]:
        log_weight, mean, log_scale, correlation = self._components(condition, gap)
        z = (place.unsqueeze(-2) - mean) * torch.exp(-log_scale)
        rest = 1 - correlation.square()
        square = (z.square().sum(-1) - 2 * correlation * z.prod(-1)) / rest
        terms = log_weight - log_scale.sum(-1) - 0.5 * rest.log() - 0.5 * square
        return terms.logsumexp(-1) - math.log(2 * math.pi)

    def location_loss(self, histories: Histories, generator: torch.Generator) -> Float[Tensor, ""]:
        assert histories.location is not None
        if not len(histories.gap):
            return self.centres.new_zeros(())
        place, gap = histories.location.unsqueeze(-2), histories.gap.unsqueeze(-1)
        return -self.location_log_density(histories.condition, place, gap).mean()

    @torch.no_grad()
    def sample_locations(
        self, condition: Condition, gap: Float[Tensor, "S n"], *, generator: torch.Generator, **details: Any
    ) -> Float[Tensor, "S n 2"]:
        """Places given gaps (in mean gaps), in the data's coordinates."""
        log_weight, mean, log_scale, correlation = self._components(condition, gap)
        drawn = torch.multinomial(log_weight.flatten(0, 1).exp(), 1, generator=generator).view(*gap.shape, 1)
        pair = drawn.unsqueeze(-1).expand(-1, -1, -1, 2)
        centre, scale = torch.gather(mean, 2, pair)[:, :, 0], torch.gather(log_scale, 2, pair)[:, :, 0].exp()
        rho = torch.gather(correlation, 2, drawn)
        noise = torch.randn((*gap.shape, 2), generator=generator, dtype=torch.float64).to(gap)
        second = rho * noise[..., :1] + (1 - rho.square()).sqrt() * noise[..., 1:]
        return self.in_data_units(centre + scale * torch.cat([noise[..., :1], second], dim=-1))
