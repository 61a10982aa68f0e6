"""A live stream: observe events as they come, ask about the next one in between, in well under a millisecond."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from burnish.core.errors import DataError, SettingsError, nearest
from burnish.events.batches import calendar
from burnish.events.distribution import NextEvent, NextEvents
from burnish.events.excitation import ExcitedModel
from burnish.events.exogenous import LARGEST
from burnish.events.model import EncodedModel
from burnish.events.online import IncrementalEncoder, OnlineHazard, OnlineLaw
from burnish.events.place_mixture import PlaceMixture
from burnish.events.smurf import SmurfTHP

if TYPE_CHECKING:
    from burnish.events.forecaster import EventForecaster


LONGEST = 0.5 / sys.float_info.epsilon
"""Mean gaps that can be waited."""


class Observed(NamedTuple):
    """An event as a stream keeps it."""

    time: float
    mark: int
    location: tuple[float, float] | None
    vertex: int | None
    features: NDArray[Any] | None


class EventStream:
    """One live stream: observe events as they come, ask for the next one in between.

    stream = forecaster.stream()                    # or stream(start=0.0) where the start of observation is known
    stream.observe(12.5, "login")
    stream.quantile(0.9, elapsed=now - 12.5)
    """

    def __init__(self, forecaster: EventForecaster, *, start: float | None = None) -> None:
        model = forecaster.exact
        if not isinstance(model, EncodedModel):
            raise SettingsError(f"{model.kind} has no incremental encoder", fix="call next_event with the history")
        self.forecaster, self.model = forecaster, model
        self.codes = {name: code for code, name in enumerate(forecaster.mark_names)}
        self.recent: list[Observed] = []
        self.encoder = IncrementalEncoder(model.encoder, capacity=model.window)
        self.excitation = model.excitation.online() if isinstance(model, ExcitedModel) else None
        # Exact quantiles of a SmurfTHP need no torch; a score-only one is renormalised, which the batched code does.
        self.hazard: OnlineHazard | None = None
        if isinstance(model, SmurfTHP) and not forecaster.renormalise:
            self.hazard = OnlineHazard(model)
        self.origin = start
        self.hidden: NDArray[Any] | None = None
        self.since = 0.0
        self._law: OnlineLaw | None = None
        self._exogenous: NDArray[np.float64] | None = None

    def know(self, values: Sequence[float]) -> None:
        """Says what the exogenous values are from now on, at the time of the last event or after it.

        Asked with the time since the last event as `elapsed`, a forecast then is of the rest of the wait with them.
        """
        statistics, count = self.model.statistics, self.model.num_exogenous
        given = np.asarray(values, np.float64)
        if given.shape != (count,) or not np.isfinite(given).all():
            raise DataError(f"{list(values)} are given, but the model has {count} exogenous values", where="stream")
        standardised = (given - statistics.exogenous_mean) / statistics.exogenous_scale
        with torch.no_grad():
            shift = self.model.knowing(torch.zeros(self.model.hidden_size).double(), torch.from_numpy(standardised))
        self._exogenous, self._law = shift.numpy(), None

    def _state(self) -> NDArray[Any]:
        """The hidden state with the exogenous values."""
        if self.hidden is None:
            raise DataError("no event has been observed yet", where="stream", fix="call observe first")
        if self.model.num_exogenous == 0:
            return self.hidden
        if self._exogenous is None:
            raise DataError("the exogenous values are not known yet", where="stream", fix="call know first")
        size = self.model.hidden_size
        return np.concatenate([self.hidden[:size] + self._exogenous, self.hidden[size:]])

    def observe(
        self,
        time: float,
        mark: str | int,
        *,
        location: tuple[float, float] | None = None,
        vertex: int | None = None,
        covariates: Sequence[float] = (),
    ) -> None:
        """Adds an event. Without a known start the first one has no wait.

        Args:
            time: in the data's unit; of dates, seconds since 1970.
            mark: name or number of its type.
            location, vertex, covariates: as the model was fitted with them.
        """
        code = self.codes.get(mark, -1) if isinstance(mark, str) else mark
        if not 0 <= code < self.model.num_marks:
            guess = nearest(str(mark), list(self.codes))
            advice = f"did you mean {guess!r}?" if guess else "fit again with that mark"
            raise DataError(f"mark {mark!r} is not one that the model knows", where="stream", fix=advice)
        if not abs(time) <= LARGEST:
            raise DataError(f"time {time!r} is not a number up to {LARGEST:g}", where="stream")
        if self.recent and time < self.recent[-1].time:
            raise DataError(f"time {time!r} is before the last event's {self.recent[-1].time!r}", where="stream")
        first = not self.recent
        if self.origin is None:
            self.origin = time
        if first and time < self.origin:
            raise DataError(f"time {time!r} is before the start {self.origin!r}", where="stream")
        gap = time - (self.origin if first else self.recent[-1][0])
        event = Observed(time, code, location, vertex, self._features(time, covariates))
        self.recent = [*self.recent[-self.model.context :], event]
        if self.excitation is not None:
            self.excitation.step(gap / self.model.statistics.mean_gap, code)
        self._step(event, None if first and gap == 0 else gap)
        if self.encoder.full:
            self._restart()

    def _features(self, time: float, covariates: Sequence[float]) -> NDArray[Any] | None:
        """What the model sees of the calendar and the covariates at an event."""
        model, statistics = self.model, self.model.statistics
        if len(covariates) != model.num_covariates:
            raise DataError(
                f"{len(covariates)} covariates are given, but the model has {model.num_covariates}", where="stream"
            )
        parts = [calendar(np.array([time]), 0, period, dates=False)[0] for period in model.periods]
        if covariates:
            parts.append((np.array(covariates) - statistics.covariate_mean) / statistics.covariate_scale)
        return np.concatenate(parts) if parts else None

    def _step(self, event: Observed, gap: float | None) -> None:
        time, code, location, vertex, features = event
        statistics = self.model.statistics
        assert self.origin is not None
        place = None
        if location is not None:
            place = statistics.standardised(location)
        self.since = (time - self.origin) / statistics.mean_gap
        # A first event whose start of observation is unknown has the placeholder gap 1, as in batches.
        wait = 1.0 if gap is None else gap / statistics.mean_gap
        self.hidden = self.encoder.step(self.since, wait, code, place, vertex, features)
        if self.excitation is not None:
            self.hidden = np.concatenate([self.hidden, self.excitation.state.ravel()])
        if isinstance(self.model, PlaceMixture):
            self.hidden = self.model.online_state(self.hidden, self._recent_places())
        self._law = None

    def _recent_places(self) -> list[tuple[float, NDArray[Any]]]:
        """(time, place) of the last events, in the model's units."""
        statistics, origin = self.model.statistics, self.origin
        assert origin is not None
        return [
            (
                (event.time - origin) / statistics.mean_gap,
                statistics.standardised(event.location),
            )
            for event in self.recent
            if event.location is not None and (event.time - origin) / statistics.mean_gap <= self.since
        ]

    def _restart(self) -> None:
        """Encodes the last `context` events on a clock of their own, as windows of training are."""
        kept = self.recent[-self.model.context - 1 :]
        self.encoder = IncrementalEncoder(self.model.encoder, capacity=self.model.window)
        before, *rest = kept
        self.origin = previous = before.time
        for event in rest:
            self._step(event, event.time - previous)
            previous = event.time

    def quantile(self, q: float, elapsed: float = 0.0) -> float:
        """Residual wait not exceeded with probability q, given the time since the last event.

        Raises:
            SettingsError: a level outside [0, 1), or a time that is none.
        """
        if not 0 <= q < 1:
            raise SettingsError(f"quantile level is {q}, but must be at least 0 and below 1")
        self._check(elapsed)
        law = self._online()
        return self.next_event().quantile(q, elapsed) if law is None else law.quantile(q, elapsed)

    def cdf(self, gap: float, elapsed: float = 0.0) -> float:
        """P(the next event comes within `gap`), given the time since the last event; errors as of `quantile`."""
        self._check(elapsed)
        law = self._online()
        return self.next_event().cdf(gap, elapsed) if law is None else law.cdf(gap, elapsed)

    def _check(self, elapsed: float) -> None:
        if not 0 <= elapsed < math.inf:
            raise SettingsError(f"elapsed time is {elapsed}, but must be finite and at least 0")
        if elapsed / self.model.statistics.mean_gap > LONGEST:  # one gap more or less is lost in rounding
            raise SettingsError(
                f"elapsed time is {elapsed:g}, so long that waits cannot be told apart",
                fix="check the unit of time, and that the last event is the last",
            )

    def _online(self) -> OnlineLaw | None:
        """The law in numpy, made once per event; None for models that only the batched code covers."""
        state = self._state()
        if self._law is None and self.hazard is not None:
            self._law = self.hazard.law(state)
        return self._law

    @torch.no_grad()
    def next_event(self) -> NextEvent:
        """The whole law of the next event, counted from the last observed one."""
        hidden = torch.from_numpy(self._state()).unsqueeze(0).to(self.model.device)
        condition = self.model.condition_with_ties(hidden, torch.tensor([self.since], dtype=torch.float64).to(hidden))
        many = NextEvents(self.model, condition, renormalise=self.forecaster.renormalise)
        return NextEvent(many, self.forecaster.mark_names)
