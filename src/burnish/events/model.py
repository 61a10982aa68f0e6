"""What every event model shares: statistics of its training data, histories to conditions, and the likelihood.

    log p(s, k | history) = log lam(s) + log p(k | s) - Lam(s)

summed over the scored events, minus Lam(tail) for a censored last gap. Everything inside a model is in mean gaps;
log-likelihoods in the data's unit are smaller by log(mean gap) per event.

Where training events share their times, a gap of exactly zero has a probability of its own and the above is the law of
the other gaps:

    P(s = 0 | history) = pi,    p(s, k | history) = (1 - pi) lam(s) exp(-Lam(s)) p(k | s)  for s > 0
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from burnish.core.errors import DataError, SettingsError
from burnish.events.batches import EventBatch, PackedEvents
from burnish.events.data import EventDataset
from burnish.events.encoder import EncoderSettings, HistoryEncoder
from burnish.events.exogenous import Exogenous
from burnish.events.heads import Condition
from burnish.events.maths.quadrature import gauss_legendre
from burnish.events.maths.sphere import mean_longitude, unwrapped, wrapped

OBJECTIVES = ("likelihood", "score", "score+mass")
TIME_COORDINATES = ("log", "gap")


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        name: "likelihood", "score" (denoising score matching and mark cross-entropy) or "score+mass" (the same with a
            term that fixes the probability of an event before a few horizons).
        time_coordinate: "log" (consistent) or "gap" (as published; biased for a point process, kept for comparison).
        sigma: noise of the denoising objective, in log time or in mean gaps.
        num_noise: noise draws an event, even (they come in pairs e, -e).
        score_weight: factor of the score term beside the mark cross-entropy.
    """

    name: str = "likelihood"
    time_coordinate: str = "log"
    sigma: float = 0.1
    num_noise: int = 8
    score_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise SettingsError(f"objective is {self.name!r}, but must be one of {', '.join(OBJECTIVES)}")
        if self.time_coordinate not in TIME_COORDINATES:
            raise SettingsError(f"time coordinate is {self.time_coordinate!r}, but must be log or gap")
        if self.num_noise < 2 or self.num_noise % 2:
            raise SettingsError(f"num_noise is {self.num_noise}, but noise comes in pairs: use an even number")


@dataclass(frozen=True)
class TrainingStatistics:
    """Facts of the training data that a model carries.

    Attributes:
        mean_gap: in the data's unit; the model's unit of time.
        knee: of the clock z = log(1 + knee s), s in mean gaps.
        longest: longest training gap, in mean gaps.
        horizons: gaps (in mean gaps) at which a mass term asks "before or after?".
        location_mean, location_scale: to standardise places.
        sphere: whether places are longitudes and latitudes in degrees.
        covariate_mean, covariate_scale: to standardise covariates.
        exogenous_mean, exogenous_scale: to standardise exogenous values.
        dates: whether times were dates, seconds since an epoch in nanoseconds.
        clock_resolution: step that ties were dequantised with, 0 if there were none.
        tie_share: share of gaps that are zero, where the model gives them a probability; else 0.
    """

    mean_gap: float = 1.0
    knee: float = 4.0
    longest: float = 50.0
    horizons: tuple[float, ...] = (0.1, 0.3, 0.7, 1.4, 2.3, 3.5)
    location_mean: tuple[float, float] = (0.0, 0.0)
    location_scale: tuple[float, float] = (1.0, 1.0)
    sphere: bool = False
    covariate_mean: tuple[float, ...] = ()
    covariate_scale: tuple[float, ...] = ()
    exogenous_mean: tuple[float, ...] = ()
    exogenous_scale: tuple[float, ...] = ()
    dates: bool = False
    clock_resolution: float = 0.0
    tie_share: float = 0.0

    @classmethod
    def of(cls, train: EventDataset, *, clock_resolution: float = 0.0) -> TrainingStatistics:
        gaps = train.inner_gaps()
        if len(gaps) == 0:
            raise DataError("no sequence has two events, so there is no gap to learn from", fix="give longer sequences")
        mean_gap = float(gaps.mean())
        if mean_gap <= 0:
            raise DataError("all events happen at the same time", fix="check the time column and its unit")
        relative = gaps / mean_gap
        positive = relative[relative > 0]
        quantiles = np.quantile(positive, [0.1, 0.25, 0.5, 0.75, 0.9, 0.97])
        mean, scale = np.zeros(2), np.ones(2)
        if train.has_locations:
            places = np.concatenate([s.locations for s in train.sequences if s.locations is not None])
            if train.sphere:
                places = unwrapped(places, mean_longitude(places[:, 0]))
            mean, scale = places.mean(0), np.maximum(places.std(0), 1e-9)
        rows = [s.covariates for s in train.sequences if s.covariates is not None]
        known = np.concatenate(rows) if rows else np.zeros((1, 0))
        changes = [s.exogenous.values for s in train.sequences if s.exogenous is not None]
        outside = np.concatenate(changes) if changes else np.zeros((1, 0))
        return cls(
            mean_gap=mean_gap,
            knee=float(1 / np.quantile(positive, 0.2)),
            longest=float(relative.max()),
            horizons=tuple(float(q) for q in quantiles),
            location_mean=(float(mean[0]), float(mean[1])),
            location_scale=(float(scale[0]), float(scale[1])),
            sphere=train.sphere,
            covariate_mean=tuple(map(float, known.mean(0))),
            covariate_scale=tuple(map(float, np.maximum(known.std(0), 1e-9))),
            exogenous_mean=tuple(map(float, outside.mean(0))),
            exogenous_scale=tuple(map(float, np.maximum(outside.std(0), 1e-9))),
            dates=train.dates,
            clock_resolution=clock_resolution,
            tie_share=float((gaps <= 0).mean()),
        )

    def standardised(self, places: ArrayLike) -> NDArray[np.float64]:
        """(..., 2) places as models see them."""
        places = np.asarray(places, np.float64)
        if self.sphere:
            places = unwrapped(places, self.location_mean[0])
        return (places - self.location_mean) / self.location_scale

    def standardised_exogenous(self, known: Exogenous) -> Exogenous:
        """Exogenous values as models see them."""
        values = (known.values - np.array(self.exogenous_mean)) / np.array(self.exogenous_scale)
        return Exogenous(known.times, values)

    def in_data_units(self, places: NDArray[Any]) -> NDArray[np.float64]:
        """The inverse of `standardised`."""
        places = places.astype(np.float64) * self.location_scale + self.location_mean
        return wrapped(places) if self.sphere else places


@dataclass(frozen=True)
class Histories:
    """Scored events with the condition of what came before: one row an event.

    Attributes:
        tail: conditions after the last events of the sequences whose end is known, with the censored gaps and how much
            of them had passed before, or None.
        waited: how much of a gap had passed when its event began to be looked for, or its last piece began; None where
            nothing had.
        pieces: conditions of the pieces of gaps before the last ones, with their ends and beginnings, or None.
        piece_row: of each piece the row of its event, -1 in a censored gap.
        begun: conditions as they were when the gaps began, where values change inside some.
    """

    condition: Condition
    gap: Float[Tensor, " S"]
    mark: Tensor
    location: Tensor | None
    vertex: Tensor | None
    hidden: Float[Tensor, "S M"]
    tail: tuple[Condition, Tensor, Tensor] | None
    waited: Float[Tensor, " S"] | None = None
    pieces: tuple[Condition, Tensor, Tensor] | None = None
    piece_row: Tensor | None = None
    begun: Condition | None = None


class EventModel(nn.Module):
    """Base of the models. Subclasses give `condition`, `log_hazard`, `mark_log_probs` and `loss`."""

    kind: ClassVar[str]
    objectives: ClassVar[tuple[str, ...]] = ("likelihood",)
    has_location: ClassVar[bool] = False
    has_graph: ClassVar[bool] = False
    has_encoder: ClassVar[bool] = False
    closed_compensator: ClassVar[bool] = False
    has_tie_head: ClassVar[bool] = False
    beside: ClassVar[tuple[str, ...]] = ()
    """Terms of the loss that do not choose the epoch: of heads beside the law that is asked."""
    num_quadrature_nodes: int = 12

    def __init__(self, num_marks: int, **settings: Any) -> None:
        super().__init__()
        if num_marks < 1:
            raise SettingsError(f"num_marks is {num_marks}, but there is at least one type of event")
        self.num_marks = num_marks
        self.settings = {"num_marks": num_marks, **settings}
        self.statistics = TrainingStatistics()
        self.window, self.context = 512, 128

    # -- to override -------------------------------------------------------------------------------------------------

    def states(self, batch: EventBatch) -> Float[Tensor, "B L+1 M"]:
        """Hidden states after 0, 1, ... L events."""
        raise NotImplementedError

    def condition(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        """What the heads need of a history; `last_time` is when its last event was, in mean gaps from the origin."""
        raise NotImplementedError

    def log_hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        """log of the total hazard, per mean gap."""
        raise NotImplementedError

    def hazard(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        return self.log_hazard(condition, gap).exp()

    def mark_log_probs(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q K"]:
        """log p(k | s) of the mark given that the event comes after s."""
        raise NotImplementedError

    def loss(self, batch: EventBatch, objective: Objective, generator: torch.Generator) -> dict[str, Tensor]:
        """Named terms, each a mean over the scored events; their sum is minimised."""
        raise NotImplementedError

    def prob_no_event(self, condition: Condition) -> Float[Tensor, "*S"] | None:
        """exp(-Lam(inf)), or None for a hazard that is bounded below, where it is zero."""
        return None

    def mean_gap(self, condition: Condition) -> Float[Tensor, "*S"] | None:
        """E[gap] in mean gaps where it is a closed form, or None."""
        return None

    def prepare(self, training: EventDataset, seed: int) -> None:
        """What a model takes from the training data beside its weights, before the first epoch."""

    def tie_logit(self, hidden: Float[Tensor, "*S M"]) -> Float[Tensor, "*S"] | None:
        """log pi - log(1 - pi) after a history, or None for a model whose gaps are never zero."""
        return None

    @property
    def periods(self) -> tuple[float, ...]:
        """Periods of the calendar that the model sees, in the data's unit."""
        return tuple(self.settings.get("periods", ()))

    @property
    def num_covariates(self) -> int:
        return self.settings.get("num_covariates", 0)

    @property
    def num_exogenous(self) -> int:
        return self.settings.get("num_exogenous", 0)

    def knowing(self, hidden: Float[Tensor, "*S M"], values: Float[Tensor, "*S C"] | None) -> Float[Tensor, "*S M"]:
        """States that also know exogenous values, of a model that takes them."""
        return hidden

    @property
    def carried_decays(self) -> NDArray[np.float64] | None:
        """Decays, per mean gap, of what a batch needs from before its windows; None where it needs nothing."""
        return None

    # -- shared ------------------------------------------------------------------------------------------------------

    def condition_with_ties(self, hidden: Float[Tensor, "*S M"], last_time: Float[Tensor, "*S"]) -> Condition:
        """`condition`, with the log-odds of a tie where training had ties."""
        condition = self.condition(hidden, last_time)
        if self.statistics.tie_share == 0:
            return condition
        logit = self.tie_logit(hidden)
        return condition if logit is None else condition | {"tie_logit": logit}

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def config(self) -> dict[str, Any]:
        """Everything but the weights, as plain data."""
        return {
            "model": self.kind,
            "settings": self.settings,
            "statistics": asdict(self.statistics),
            "window": self.window,
            "context": self.context,
        }

    def pack(self, dataset: EventDataset, *, score_first: bool = True) -> PackedEvents:
        """The data set in the model's units; see `PackedEvents`."""
        if self.has_location:
            if not dataset.has_locations:
                raise DataError(f"{self.kind} needs locations, and the events have none", fix="give --x and --y")
            dataset = dataset.with_sequences(
                replace(s, locations=None if s.locations is None else self.statistics.standardised(s.locations))
                for s in dataset.sequences
            )
        return PackedEvents(
            self._with_covariates(dataset),
            self.statistics.mean_gap,
            window=self.window,
            context=self.context,
            dtype=self.dtype,
            score_first=score_first,
            decays=self.carried_decays,
            periods=self.periods,
        )

    def _with_covariates(self, dataset: EventDataset) -> EventDataset:
        """The covariates standardised, or left out where the model uses none."""
        if self.num_exogenous != dataset.num_exogenous and dataset.num_events:
            raise DataError(
                f"{dataset.num_exogenous} exogenous values are given, but the model has {self.num_exogenous}",
                fix="give the table that has the columns of the fit's with --exogenous",
            )
        count, mean = self.num_covariates, np.array(self.statistics.covariate_mean)
        if count and dataset.num_covariates != count:
            raise DataError(
                f"{dataset.num_covariates} covariates are given, but the model has {count}",
                fix="name the columns that the fit had with --covariates",
            )
        scale = np.array(self.statistics.covariate_scale)
        return replace(
            dataset,
            dates=self.statistics.dates,
            sequences=tuple(
                replace(
                    s,
                    covariates=(s.covariates - mean) / scale if count and s.covariates is not None else None,
                    exogenous=None if s.exogenous is None else self.statistics.standardised_exogenous(s.exogenous),
                )
                for s in dataset.sequences
            ),
        )

    def histories(self, batch: EventBatch) -> Histories:
        """Encodes a batch and keeps one row for every scored event."""
        states = self.states(batch)
        last = _last_times(batch)
        ends = None if batch.known_last is None else batch.known_last[:, :-1][batch.scored]
        hidden = self.knowing(states[:, :-1][batch.scored], ends)
        waited = batch.waited[batch.scored]
        plain = Histories(
            condition=self.condition_with_ties(hidden, last[:, :-1][batch.scored]),
            gap=batch.gaps[batch.scored],
            mark=batch.marks[batch.scored],
            location=None if batch.locations is None else batch.locations[batch.scored],
            vertex=None if batch.vertices is None else batch.vertices[batch.scored],
            hidden=hidden,
            tail=self._tail(batch, states),
            waited=waited if bool(waited.any()) else None,
        )
        return plain if batch.piece_at is None else self._with_pieces(plain, batch, states)

    def _with_pieces(self, plain: Histories, batch: EventBatch, states: Float[Tensor, "B L+1 M"]) -> Histories:
        """What exogenous values that change inside gaps add."""
        last = _last_times(batch)
        assert batch.piece_at is not None and batch.piece_span is not None and batch.known_first is not None
        if not len(batch.piece_at):
            return plain
        row, position = batch.piece_at.unbind(-1)
        hidden = self.knowing(states[row, position], batch.piece_value)
        number = torch.full(last.shape, -1, dtype=torch.int64)
        number[:, :-1][batch.scored] = torch.arange(int(batch.scored.sum()))
        begun = self.knowing(states[:, :-1][batch.scored], batch.known_first[:, :-1][batch.scored])
        return replace(
            plain,
            pieces=(self.condition_with_ties(hidden, last[row, position]), *batch.piece_span.unbind(-1)),
            piece_row=number[row, position],
            begun=self.condition_with_ties(begun, last[:, :-1][batch.scored]),
        )

    def _tail(self, batch: EventBatch, states: Float[Tensor, "B L+1 M"]) -> tuple[Condition, Tensor, Tensor] | None:
        known = ~torch.isnan(batch.tail)
        if not bool(known.any()):
            return None
        condition = self.condition_after(batch, states, known, batch.present.sum(1)[known])
        return condition, batch.tail[known], batch.tail_waited[known]

    def condition_after(
        self,
        batch: EventBatch,
        states: Tensor,
        rows: Tensor | slice,
        position: Tensor | int,
        last: Tensor | None = None,
    ) -> Condition:
        """Conditions of some rows after so many events, with the exogenous values known last."""
        if last is None:
            last = torch.cat([torch.zeros_like(batch.times[:, :1]), batch.times], dim=1)
        values = None if batch.known_last is None else batch.known_last[rows, position]
        return self.condition_with_ties(self.knowing(states[rows, position], values), last[rows, position])

    def compensator(self, condition: Condition, gap: Float[Tensor, "*S q"]) -> Float[Tensor, "*S q"]:
        """Lam(s) by Gauss-Legendre nodes that are even in the clock z, as hazards vary most at short gaps."""
        knee = self.statistics.knee
        nodes, weights = gauss_legendre(self.num_quadrature_nodes, gap)
        top = torch.log1p(knee * gap).unsqueeze(-1)
        at = torch.expm1(top * nodes) / knee
        values = self.hazard(condition, at.flatten(-2)).unflatten(-1, (-1, len(nodes)))
        return (values * (top * (1 + knee * at) / knee)) @ weights

    def log_density(self, condition: Condition, gap: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """log lam(s) - Lam(s), per mean gap."""
        gap = gap.unsqueeze(-1)
        return (self.log_hazard(condition, gap) - self.compensator(condition, gap)).squeeze(-1)

    def mark_log_prob(self, condition: Condition, gap: Float[Tensor, " S"], mark: Tensor) -> Float[Tensor, " S"]:
        """log p(k_i | s_i) of the marks that came."""
        log_probs = self.mark_log_probs(condition, gap.unsqueeze(-1)).squeeze(-2)
        return torch.gather(log_probs, -1, mark.unsqueeze(-1)).squeeze(-1)

    def negative_log_likelihood(self, histories: Histories) -> dict[str, Tensor]:
        """Time, tie, mark, truncated and censored-gap parts, each divided by the number of scored events."""
        count = max(len(histories.gap), 1)
        logit, tied = histories.condition.get("tie_logit"), histories.gap <= 0
        gap = histories.gap if logit is None else torch.where(tied, 1.0, histories.gap)  # of a tie there is no density
        density = self.log_density(histories.condition, gap)
        parts = {
            "time": -(density if logit is None else density.masked_fill(tied, 0.0)).sum() / count,
            "mark": -self.mark_log_prob(histories.condition, histories.gap, histories.mark).sum() / count,
        }
        if logit is not None:
            log_prob = F.logsigmoid(torch.where(tied, logit, -logit))
            if histories.waited is not None:  # it was known already that there was no tie
                log_prob = log_prob.masked_fill(histories.waited > 0, 0.0)
            parts["tie"] = -log_prob.sum() / count
        return parts | self.tail_loss(histories)

    def tail_loss(self, histories: Histories) -> dict[str, Tensor]:
        """What gaps cut on the left or right add to the loss, per scored event; empty where none is.

        An event that was looked for after a wait e has the density p(s)/S(e), a censored gap that was, S(s)/S(e).
        """
        count, terms = max(len(histories.gap), 1), {}
        if histories.waited is not None:
            passed = self.compensator(histories.condition, histories.waited.unsqueeze(-1))
            terms["truncated"] = -passed.sum() / count
        for name, part in (("tail", histories.tail), ("pieces", histories.pieces)):
            if part is not None:
                terms[name] = -self.log_no_event(*part).sum() / count
        return terms

    def log_no_event(
        self, condition: Condition, gap: Float[Tensor, " S"], waited: Float[Tensor, " S"]
    ) -> Float[Tensor, " S"]:
        """log P(no event within a gap | none within what was waited), of which a tie is none where nothing was."""
        both = self.compensator(condition, torch.stack([gap, waited], dim=-1))
        value = both[:, 1] - both[:, 0]
        if "tie_logit" not in condition:
            return value
        return value + F.logsigmoid(-condition["tie_logit"]).masked_fill(waited > 0, 0.0)


class EncodedModel(EventModel):
    """A model over the shared history encoder.

    Args:
        num_marks: types of events.
        encoder: fields of `EncoderSettings`.
        **settings: the model's own; `num_vertices` where its events happen on a graph.

    Attributes:
        state_size: numbers of a hidden state: those of the encoder, and what the model keeps behind them.
    """

    has_tie_head: ClassVar[bool] = True
    has_encoder: ClassVar[bool] = True

    def __init__(self, num_marks: int, encoder: Mapping[str, Any], **settings: Any) -> None:
        sizes = EncoderSettings(**encoder)
        super().__init__(num_marks, **asdict(sizes), **settings)
        self.hidden_size = sizes.hidden_size
        self.encoder = HistoryEncoder(
            num_marks,
            sizes,
            num_location_features=2 if self.has_location else 0,
            num_vertices=settings.get("num_vertices", 0),
        )
        self.state_size = self.hidden_size
        self.tie_weight, self.tie_bias = nn.Parameter(torch.zeros(self.hidden_size)), nn.Parameter(torch.zeros(()))
        self.exogenous_proj = None
        if sizes.num_exogenous:
            self.exogenous_proj = nn.Linear(sizes.num_exogenous, self.hidden_size, bias=False)

    def prepare(self, training: EventDataset, seed: int) -> None:
        """The probability of a tie begins at its share in training."""
        share = self.statistics.tie_share
        if share > 0:
            with torch.no_grad():
                self.tie_bias.fill_(math.log(share / (1 - share)))

    def knowing(self, hidden: Float[Tensor, "*S M"], values: Float[Tensor, "*S C"] | None) -> Float[Tensor, "*S M"]:
        if self.exogenous_proj is None or values is None:
            return hidden
        own, carried = hidden[..., : self.hidden_size], hidden[..., self.hidden_size :]
        return torch.cat([own + self.exogenous_proj(values), carried], dim=-1)

    def tie_logit(self, hidden: Float[Tensor, "*S M"]) -> Float[Tensor, "*S"]:
        return hidden[..., : self.hidden_size] @ self.tie_weight + self.tie_bias

    def states(self, batch: EventBatch) -> Float[Tensor, "B L+1 M"]:
        return self.encoder(batch)


def _last_times(batch: EventBatch) -> Float[Tensor, "B L+1"]:
    """When the last of 0, 1, ... L events was; zero of none."""
    return torch.cat([torch.zeros_like(batch.times[:, :1]), batch.times], dim=1)


def select(condition: Condition, rows: Tensor | slice) -> Condition:
    """Some rows of a condition."""
    return {name: value[rows] for name, value in condition.items()}


def row_chunks(condition: Condition, size: int) -> Iterator[slice]:
    """Slices over the rows, for work that would not fit in memory at once."""
    count = len(next(iter(condition.values())))
    for chunk in range(math.ceil(count / size)):
        yield slice(chunk * size, min((chunk + 1) * size, count))
