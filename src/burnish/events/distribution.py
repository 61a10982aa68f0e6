"""The law of the next event of many histories at once: quantiles, probabilities, samples, places.

Gaps go in and come out in the data's unit; one row a history. Quantiles are exact (maths/inversion.py), conditional on
the time already waited if that is given:

    F(s | e) = 1 - S(e + s)/S(e)         Q(q | e) = Lam^{-1}(Lam(e) - log(1 - q)) - e

A model of data with ties adds a point mass pi at s = 0, of which nothing is left after any wait:

    F(s) = pi + (1 - pi) F_untied(s)     Q(q) = 0 for q <= pi, else Q_untied((q - pi)/(1 - pi))

A law may end: S is zero from some wait on, of a process that stops or of a density that is known up to a horizon. Where
so long was waited already there is no further event: every quantile and draw is infinite, F is zero, and
P(no event) is one.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from burnish.core.errors import SettingsError
from burnish.events.heads import Condition
from burnish.events.maths.inversion import CompensatorTable, panel_edges, tabulate
from burnish.events.maths.langevin import langevin
from burnish.events.maths.score import log_time_score
from burnish.events.maths.sphere import mean_longitude, unwrapped
from burnish.events.model import EventModel

if TYPE_CHECKING:
    from burnish.events.located import LocatedModel

NUM_PANELS = 128
FAR = 1000.0
"""Tables reach a thousand mean gaps, or four times the longest training gap."""


class NextEvents:
    """Forecast for S histories.

    Args:
        model: a fitted model.
        condition: of the histories, from `model.condition`.
        renormalise: divide F by its value at one and a half times the longest training gap. The score objective leaves
            the mass of a density undetermined, so a score-only model needs it.
    """

    def __init__(self, model: EventModel, condition: Condition, *, renormalise: bool = False) -> None:
        self.model = model
        self.condition = {name: value.detach() for name, value in condition.items()}
        self.renormalise = renormalise
        self.unit = model.statistics.mean_gap

    def __len__(self) -> int:
        return len(next(iter(self.condition.values())))

    @cached_property
    def table(self) -> CompensatorTable:
        """Lam at the panel edges, in mean gaps."""
        statistics = self.model.statistics
        like = next(iter(self.condition.values()))
        edges = panel_edges(statistics.knee, max(FAR, 4 * statistics.longest), NUM_PANELS, like)
        return tabulate(self._hazard, edges, self._compensator if self.model.closed_compensator else None)

    @torch.no_grad()
    def _hazard(self, gap: Tensor) -> Tensor:
        return self.model.hazard(self.condition, gap)

    @torch.no_grad()
    def _compensator(self, gap: Tensor) -> Tensor:
        return self.model.compensator(self.condition, gap)

    @cached_property
    def mass(self) -> Float[Tensor, "S 1"] | None:
        """F at the renormalisation horizon, or None without renormalisation."""
        if not self.renormalise:
            return None
        horizon = torch.full((len(self), 1), 1.5 * self.model.statistics.longest).to(self.table.edges)
        return -torch.expm1(-self.table.compensator(horizon))

    @cached_property
    def prob_tie(self) -> Float[Tensor, " S"]:
        """P(the next event comes at the same time); zero where training had no ties."""
        logit = self.condition.get("tie_logit")
        return torch.zeros(len(self), dtype=self.table.edges.dtype) if logit is None else torch.sigmoid(logit)

    @cached_property
    def _never(self) -> Float[Tensor, " S"]:
        """P(no further event ever | no tie)."""
        value = None if self.renormalise else self.model.prob_no_event(self.condition)
        return torch.zeros(len(self), dtype=self.table.edges.dtype) if value is None else value

    @cached_property
    def prob_no_event(self) -> Float[Tensor, " S"]:
        """P(no further event ever)."""
        return self._never * (1 - self.prob_tie)

    def prob_none_after(self, elapsed: ArrayLike | Tensor) -> Float[Tensor, " S"]:
        """P(no further event ever | none until `elapsed`)."""
        waited = self._elapsed(elapsed)
        start = self.table.compensator(waited)
        never = (self._never.to(start).unsqueeze(-1).log() + start).exp().clamp_max(1.0)
        never = torch.where(waited > 0, never, self.prob_no_event.to(start).unsqueeze(-1))
        return torch.where(self._ended(start), 1.0, never).squeeze(-1)

    def _ended(self, start: Float[Tensor, "S 1"]) -> Tensor:
        """Whether nothing of the law is left at a compensator."""
        if self.mass is not None:
            return -torch.expm1(-start) >= self.mass
        return start >= -torch.log(self._never.to(start)).unsqueeze(-1)

    def _untied(self, level: Tensor, waited: Float[Tensor, "S 1"]) -> Tensor:
        """The level among untied gaps that belongs to a level of all; after a wait all are untied."""
        tie = torch.where(waited > 0, 0.0, self.prob_tie.unsqueeze(-1))
        return ((level - tie) / (1 - tie)).clamp_min(0.0)

    # -- probabilities -----------------------------------------------------------------------------------------------

    def survival(self, gap: ArrayLike | Tensor) -> Float[Tensor, "S q"]:
        """P(next gap > s)."""
        return self._survival(self.table.compensator(self._gaps(gap)))

    def _survival(self, compensator: Tensor) -> Tensor:
        if self.mass is None:
            return torch.exp(-compensator) * (1 - self.prob_tie).unsqueeze(-1)
        return ((self.mass + torch.expm1(-compensator)) / self.mass).clamp(0.0, 1.0)

    @cached_property
    def edge_survival(self) -> Float[Tensor, "S edges"]:
        """P(next gap > s) at the edges of the table, in float64; costs no evaluation of the head."""
        return self._survival(self.table.cumulative).double()

    def cdf(self, gap: ArrayLike | Tensor, elapsed: ArrayLike | Tensor = 0.0) -> Float[Tensor, "S q"]:
        """P(next gap <= elapsed + s | next gap > elapsed)."""
        waited = self._elapsed(elapsed)
        compensator = self.table.compensator(self._gaps(gap) + waited)
        if self.mass is None:
            tie = torch.where(waited > 0, 0.0, self.prob_tie.unsqueeze(-1))
            return tie - (1 - tie) * torch.expm1(self.table.compensator(waited) - compensator)
        start = self.table.compensator(waited)
        left = 1 - (self.mass + torch.expm1(-compensator)) / (self.mass + torch.expm1(-start))
        return torch.where(self._ended(start), 0.0, left.clamp(0.0, 1.0))

    @torch.no_grad()
    def log_density(self, gap: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """log p(s) per data unit, at one gap a history."""
        relative = gap.to(self.table.edges) / self.unit
        logit = self.condition.get("tie_logit")
        if logit is not None:
            tied = relative <= 0
            density = self.model.log_density(self.condition, torch.where(tied, 1.0, relative)) - math.log(self.unit)
            return torch.where(tied, F.logsigmoid(logit), density + F.logsigmoid(-logit))
        value = self.model.log_density(self.condition, relative) - math.log(self.unit)
        return value if self.mass is None else value - self.mass.squeeze(-1).log()

    def quantile(self, q: ArrayLike, elapsed: ArrayLike | Tensor = 0.0) -> Float[Tensor, "S q"]:
        """The residual wait that is not exceeded with probability q, given that `elapsed` has passed already.

        inf where the process may never have another event and q exceeds the probability that it does, and where so long
        was waited that the law has ended.
        """
        levels = torch.as_tensor(np.atleast_1d(np.asarray(q, np.float64)))
        if not bool(((levels >= 0) & (levels < 1)).all()):
            raise SettingsError(f"quantile level is {q}, but must be at least 0 and below 1")
        levels = levels.to(self.table.edges)
        waited = self._elapsed(elapsed)
        return (self._reached(levels, waited) - waited).clamp_min(0.0) * self.unit

    def _reached(self, levels: Tensor, waited: Float[Tensor, "S 1"]) -> Float[Tensor, "S q"]:
        """The wait from the last event, in mean gaps, that is not exceeded with each probability; inf for no event."""
        start = self.table.compensator(waited)
        if self.mass is None:
            target = start - torch.log1p(-self._untied(levels, waited))
            never = target >= -torch.log(self._never.to(target)).unsqueeze(-1)
        else:
            passed = -torch.expm1(-start)
            reached = passed + levels * (self.mass - passed)
            target = torch.maximum(-torch.log1p(-reached.clamp(0.0, 1.0)), start)
            never = self._ended(start)
        return torch.where(never, torch.inf, self.table.invert(target))

    def mean(self) -> Float[Tensor, " S"]:
        """E[gap], by its closed form or as int S(s) ds; inf for a process that may stop."""
        closed = None if self.renormalise else self.model.mean_gap(self.condition)
        if closed is not None:
            return closed * (1 - self.prob_tie) * self.unit
        edges = self.table.edges
        survival = self.edge_survival
        area = torch.trapezoid(survival, edges.double(), dim=-1)
        if self.mass is None:
            hazard = self.table.tail_hazard.squeeze(-1).double()  # the last survival holds the share of untied gaps
            last = survival[:, -1]
            area = area + torch.where(last > 0, last / hazard.clamp_min(1e-300), 0.0)
            area = torch.where(self.prob_no_event > 0, torch.inf, area)
        return area * self.unit

    def crps(self, gap: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """int_0^y F^2 + int_y^inf (1-F)^2 by the trapezoid rule on the table, split at y; inf if the process may stop.

        The table's edges are even in log time, so the relative error is below 1e-3.
        """
        edges = self.table.edges.double()
        y = (gap.double() / self.unit).clamp_max(float(edges[-1])).unsqueeze(-1)
        survival = self.edge_survival
        at_y = self.survival(y * self.unit).double()
        width = edges.diff()
        panel = (torch.searchsorted(edges, y, right=True) - 1).clamp(0, len(edges) - 2)

        def pieces(value: Tensor, here: Tensor, left: bool) -> Tensor:
            """Integral of value^2 on one side of y: whole panels and the part of the panel that holds y."""
            squares = (value[:, 1:].square() + value[:, :-1].square()) / 2 * width
            index = torch.arange(len(width)).unsqueeze(0)
            whole = torch.where(index < panel if left else index > panel, squares, 0.0).sum(-1, keepdim=True)
            edge = torch.gather(value, -1, panel if left else panel + 1)
            length = y - edges[panel] if left else edges[panel + 1] - y
            return whole + (edge.square() + here.square()) / 2 * length

        total = pieces(1 - survival, 1 - at_y, True) + pieces(survival, at_y, False)
        total = torch.where(self.prob_no_event.unsqueeze(-1) > 1e-9, torch.inf, total)
        return total.squeeze(-1) * self.unit

    # -- marks, samples, places --------------------------------------------------------------------------------------

    @torch.no_grad()
    def mark_probs(
        self, gap: ArrayLike | Tensor | None = None, elapsed: ArrayLike | Tensor = 0.0
    ) -> Float[Tensor, "S K"]:
        """p(k | s) at one gap a history, or when none is given averaged over the law of what is left of the gap."""
        if gap is not None:
            at = self._gaps(gap)
            return self.model.mark_log_probs(self.condition, at[:, :1]).exp().squeeze(-2)
        waited = self._elapsed(elapsed)
        if bool((waited > 0).any()):
            return self._mark_probs_after(waited)
        coarse = self.table.edges[::4]
        survival = torch.exp(-self.table.cumulative[:, ::4])
        weight = survival[:, :-1] - survival[:, 1:]
        middle = ((coarse[:-1] + coarse[1:]) / 2).expand(len(self), -1)
        probs = self.model.mark_log_probs(self.condition, middle).exp()
        average = (weight.unsqueeze(-1) * probs).sum(-2)
        average = average / average.sum(-1, keepdim=True).clamp_min(1e-30)
        if "tie_logit" not in self.condition:
            return average
        tie = self.prob_tie.unsqueeze(-1)
        tied = self.model.mark_log_probs(self.condition, torch.zeros_like(tie)).exp().squeeze(-2)
        return tie * tied + (1 - tie) * average

    def _mark_probs_after(self, waited: Float[Tensor, "S 1"]) -> Float[Tensor, "S K"]:
        """Over the table's panels beyond the wait, and what lies beyond the table at its end; then nothing is tied."""
        cut = torch.maximum(self.table.edges[::4].expand(len(self), -1), waited)
        survival = torch.exp(self.table.compensator(waited) - self.table.compensator(cut))
        weight = torch.cat([survival[:, :-1] - survival[:, 1:], survival[:, -1:]], dim=-1)
        middle = torch.cat([(cut[:, 1:] + cut[:, :-1]) / 2, cut[:, -1:]], dim=-1)
        average = (weight.unsqueeze(-1) * self.model.mark_log_probs(self.condition, middle).exp()).sum(-2)
        return average / average.sum(-1, keepdim=True).clamp_min(1e-30)

    def head_mark_probs(self) -> Float[Tensor, "S K"] | None:
        """What a separate type head says (THP), or None."""
        logits = self.condition.get("type_logits")
        return None if logits is None else F.softmax(logits, dim=-1)

    @torch.no_grad()
    def sample(
        self, num_samples: int, *, generator: torch.Generator, elapsed: ArrayLike | Tensor = 0.0
    ) -> tuple[Float[Tensor, "S n"], Tensor]:
        """Residual waits by inverting the compensator at uniform draws, and a mark for each; inf for no event."""
        uniform = torch.rand((len(self), num_samples), generator=generator, dtype=torch.float64)
        waited = self._elapsed(elapsed)
        gap = self._reached(uniform.to(self.table.edges), waited)
        probs = self.model.mark_log_probs(self.condition, gap.clamp_max(float(self.table.edges[-1]))).exp()
        marks = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view(gap.shape)
        return (gap - waited).clamp_min(0.0) * self.unit, marks

    def langevin_sample(
        self,
        num_samples: int,
        *,
        step: float,
        num_steps: int,
        sigma: float,
        generator: torch.Generator,
        time_coordinate: str = "log",
    ) -> Float[Tensor, "S n"]:
        """The published sampler, for comparison: num_samples x num_steps score evaluations a history."""
        score = getattr(self.model, "gap_score", None)
        if score is None:
            raise SettingsError(f"{self.model.kind} has no score network to run Langevin dynamics on")
        statistics = self.model.statistics
        low, high = statistics.horizons[0], statistics.horizons[-1]
        shape = (len(self), num_samples)
        start = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64).to(self.table.edges)
        with torch.no_grad():
            if time_coordinate == "gap":
                settings: dict[str, Any] = {"step": step, "num_steps": num_steps, "denoise": sigma}
                drawn = langevin(
                    lambda s: score(self.condition, s), start, generator=generator, refuse_below=0.0, **settings
                )
                return drawn * self.unit

            def log_score(u: Tensor) -> Tensor:
                gap = u.exp()
                return log_time_score(gap, score(self.condition, gap))

            drawn = langevin(log_score, start.log(), step=step, num_steps=num_steps, denoise=sigma, generator=generator)
            return drawn.exp() * self.unit

    def location_sample(
        self, gap: Float[Tensor, "S n"], *, generator: torch.Generator, **details: Any
    ) -> Float[Tensor, "S n 2"]:
        """Places of the next event given its whole gap, in the data's coordinates (models of places).

        Of an infinite gap, which has no event, a place is drawn as of gap 0.
        """
        gap = torch.where(gap.isfinite(), gap, 0.0)
        return self._located().sample_locations(
            self.condition, gap.to(self.table.edges) / self.unit, generator=generator, **details
        )

    def location_region(
        self,
        q: float,
        *,
        generator: torch.Generator,
        num_samples: int = 300,
        grid: int = 64,
        elapsed: ArrayLike | Tensor = 0.0,
    ) -> list[LocationRegion]:
        """The smallest region that holds the next place with probability q, one a history."""
        from burnish.events.locations import highest_density_region

        gaps = self.sample(num_samples, generator=generator, elapsed=elapsed)[0] + self._elapsed(elapsed) * self.unit
        places = self.location_sample(gaps, generator=generator).double().cpu().numpy()
        if self.model.statistics.sphere:
            places = np.stack([unwrapped(points, mean_longitude(points[:, 0])) for points in places])
        return [highest_density_region(points, q, grid=grid) for points in places]

    @torch.no_grad()
    def location_log_density(self, place: Float[Tensor, " S 2"], gap: Float[Tensor, " S"]) -> Tensor | None:
        """log p(x | s) of one place and gap a history, per data unit squared, on a sphere per square degree of arc.

        None where only a score is known.
        """
        from burnish.events.place_mixture import PlaceMixture

        if not isinstance(self.model, PlaceMixture):
            return None
        statistics = self.model.statistics
        relative = torch.from_numpy(statistics.standardised(place.numpy())).to(self.table.edges).unsqueeze(-2)
        wait = (gap.double() / self.unit).to(self.table.edges).unsqueeze(-1)
        value = self.model.location_log_density(self.condition, relative, wait).squeeze(-1)
        return value - math.log(math.prod(statistics.location_scale))

    def _located(self) -> LocatedModel:
        from burnish.events.located import LocatedModel

        if not isinstance(self.model, LocatedModel):
            raise SettingsError(
                f"{self.model.kind} does not forecast locations", fix="fit the model place-mixture or smash"
            )
        return self.model

    # -- shapes ------------------------------------------------------------------------------------------------------

    def _gaps(self, gap: ArrayLike | Tensor) -> Float[Tensor, "S q"]:
        """Gaps in mean gaps: a number or (q,) for all histories, (S, q) for each."""
        values = gap if isinstance(gap, Tensor) else torch.as_tensor(np.asarray(gap, np.float64))
        values = (values.double() / self.unit).to(self.table.edges)
        if values.ndim == 2:
            return values
        return values.reshape(1, -1).expand(len(self), -1)

    def _elapsed(self, elapsed: ArrayLike | Tensor) -> Float[Tensor, "S 1"]:
        values = elapsed if isinstance(elapsed, Tensor) else torch.as_tensor(np.asarray(elapsed, np.float64))
        if not bool(((values >= 0) & values.isfinite()).all()):
            wrong = float(values[~((values >= 0) & values.isfinite())].flatten()[0])
            raise SettingsError(f"elapsed time is {wrong}, but must be finite and at least 0")
        scaled = values.double() / self.unit
        smallest = torch.finfo(self.table.edges.dtype).eps
        if bool((scaled * smallest > 0.5).any()):  # one gap more or less is lost in rounding
            most = 0.5 / smallest * self.unit
            raise SettingsError(
                f"elapsed time is {float(values.max()):g}, and beyond {most:.3g} waits cannot be told apart",
                fix="check the unit of time, and that the last event is the last",
            )
        values = scaled.to(self.table.edges).reshape(-1, 1)
        return values.expand(len(self), 1)


class NextEvent:
    """Forecast of one history: the answers of `NextEvents` as plain numbers and arrays."""

    def __init__(self, many: NextEvents, mark_names: tuple[str, ...]) -> None:
        self.many, self.mark_names = many, mark_names

    def quantile(self, q: ArrayLike, elapsed: float = 0.0) -> Any:
        """Residual wait not exceeded with probability q given the elapsed time; a float for a single level."""
        values = self.many.quantile(q, elapsed)[0].double().cpu().numpy()
        return float(values[0]) if np.ndim(q) == 0 else values

    def interval(self, coverage: float = 0.9, elapsed: float = 0.0) -> tuple[float, float]:
        """Central interval of the residual wait."""
        low, high = self.quantile([(1 - coverage) / 2, (1 + coverage) / 2], elapsed)
        return float(low), float(high)

    def cdf(self, gap: ArrayLike, elapsed: float = 0.0) -> Any:
        """P(the event comes within the next `gap`)."""
        values = self.many.cdf(np.atleast_1d(np.asarray(gap, np.float64)), elapsed)[0].double().cpu().numpy()
        return float(values[0]) if np.ndim(gap) == 0 else values

    def survival(self, gap: float, elapsed: float = 0.0) -> float:
        """P(the event does not come within the next `gap`)."""
        return 1 - self.cdf(gap, elapsed)

    def hazard(self, gap: float) -> float:
        """Rate of the event at a wait of `gap`, given that it has not come before, per data unit."""
        many = self.many
        if gap <= 0 or many.mass is not None:
            raise SettingsError("the rate is that of a positive wait, of a model fitted by likelihood or with its mass")
        density = many.log_density(torch.tensor([gap], dtype=torch.float64))
        return float((density.double() - many.survival([gap]).double().log().squeeze(-1)).exp()[0])

    def mean(self) -> float:
        return float(self.many.mean()[0])

    @property
    def prob_no_event(self) -> float:
        return float(self.many.prob_no_event[0])

    def prob_none_after(self, elapsed: float) -> float:
        """P(no further event ever), given the elapsed time."""
        return float(self.many.prob_none_after(elapsed)[0])

    @property
    def prob_tie(self) -> float:
        """P(the next event comes at the same time as the last)."""
        return float(self.many.prob_tie[0])

    def mark_probs(self, gap: float | None = None, elapsed: float = 0.0) -> dict[str, float]:
        """Probability of every mark, given the gap, or averaged over what is left of it after the elapsed time."""
        probs = self.many.mark_probs(None if gap is None else [gap], elapsed)[0]
        return {name: float(p) for name, p in zip(self.mark_names, probs, strict=True)}

    def sample(self, num_samples: int, *, seed: int = 0, elapsed: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
        """Waits and marks."""
        generator = torch.Generator().manual_seed(seed)
        gaps, marks = self.many.sample(num_samples, generator=generator, elapsed=elapsed)
        return gaps[0].double().cpu().numpy(), marks[0].cpu().numpy()

    def location_region(
        self, q: float = 0.9, *, seed: int = 0, num_samples: int = 300, elapsed: float = 0.0
    ) -> LocationRegion:
        """The smallest region that holds the next place with probability q, given the elapsed time."""
        generator = torch.Generator().manual_seed(seed)
        return self.many.location_region(q, generator=generator, num_samples=num_samples, elapsed=elapsed)[0]


if TYPE_CHECKING:
    from burnish.events.locations import LocationRegion
