"""Schemble: which models of an ensemble does each query need, where answers have deadlines.

m models of one worker each; model k takes t_k. Most queries do not need all of them. From outputs of all models on a
validation set:

* **Difficulty** s(x) = mean over k of the standardised Jensen-Shannon divergence between the output of model k and that
  of the whole ensemble. A light regression predicts s from cheap features; its quantiles are bins.
* **Profile** U[b, S]: how often the sub-ensemble S is right on queries of bin b. S is a number whose bit k says whether
  model k is in it.
* **Plan**, anew at every arrival and every end, over the queries that wait, in the order of their deadlines: one S for
  each so that the sum of U is largest, where S is possible if max over k in S of (available_k + t_k) is not after the
  deadline, and the empty S is a miss. Dynamic programming over (sum of U so far, times at which models are available),
  of which only those stay that no other is at least as good as in everything. Sums are rounded down to multiples of
  eps * max U, and of one sum at most `cap` states stay: both 0 and none make it exact over schedules in which every
  model takes queries in the order of their deadlines.

A query that has run some models keeps them: its S only grows. Its answer is the mean output of those that ended when
its last chosen one has, or at its deadline.

Source: Schemble (Li et al., ICDE 2023, doi:10.1109/ICDE55515.2023.00082), from its abstract and that of a thesis; what
is not in those is ours: k nearest neighbours as the light regression, and bins with few queries drawn towards all.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from jaxtyping import Float, Int

from burnish.core.errors import DataError, SettingsError

Array = np.ndarray
CAP = 64


class Regression(Protocol):
    """As scikit-learn has it."""

    def fit(self, X: Any, y: Any) -> Any: ...

    def predict(self, X: Any) -> Array: ...


class Neighbours:
    """The mean of the `num` nearest, by standardised features."""

    def __init__(self, num: int = 20) -> None:
        self.num = num

    def fit(self, X: Float[Array, "queries features"], y: Float[Array, " queries"]) -> Self:
        self._mean, self._scale = X.mean(0), np.maximum(X.std(0), 1e-12)
        self._points, self._values = (X - self._mean) / self._scale, y
        return self

    def predict(self, X: Float[Array, "queries features"]) -> Float[Array, " queries"]:
        return self._of(X, self.num, skip=0)

    def predict_left_out(self, X: Float[Array, "queries features"]) -> Float[Array, " queries"]:
        """Of the points that it was fitted to, each without itself."""
        return self._of(X, self.num, skip=1)

    def _of(self, X: Float[Array, "queries features"], num: int, skip: int) -> Float[Array, " queries"]:
        points = (X - self._mean) / self._scale
        squares = (points**2).sum(1)[:, None] + (self._points**2).sum(1)[None] - 2 * points @ self._points.T
        num = min(num, len(self._points) - skip)
        nearest = np.argsort(squares, axis=1, kind="stable")[:, skip : skip + num]
        return self._values[nearest].mean(1)


def jensen_shannon(
    p: Float[Array, "*queries classes"], q: Float[Array, "*queries classes"]
) -> Float[Array, "*queries"]:
    """Divergence of two laws in nats; 0 where they are equal, log 2 where they have nothing in common."""
    middle = (p + q) / 2

    def to_middle(law: Float[Array, "*queries classes"]) -> Float[Array, "*queries"]:
        ratio = np.where(law > 0, law / np.maximum(middle, 1e-300), 1.0)
        return (law * np.log(ratio)).sum(-1)

    return np.maximum(0.0, (to_middle(p) + to_middle(q)) / 2)


def difficulty(outputs: Float[Array, "models queries classes"]) -> Float[Array, " queries"]:
    """s(x); 0 for models that agree everywhere."""
    whole = outputs.mean(0)
    terms = np.stack([jensen_shannon(one, whole) for one in outputs])
    spread = terms.std(1, keepdims=True)
    return np.where(spread > 1e-12, terms / np.maximum(spread, 1e-12), 0.0).mean(0)


def members(subset: int) -> list[int]:
    """Models of a sub-ensemble."""
    return [model for model in range(subset.bit_length()) if subset >> model & 1]


def profile(
    outputs: Float[Array, "models queries classes"],
    labels: Int[Array, " queries"],
    bins: Int[Array, " queries"],
    num_bins: int,
    weight: float = 10.0,
) -> Float[Array, "bins subsets"]:
    """U: shares of right answers, those of a bin drawn towards those of all queries as by `weight` more queries."""
    num_models = len(outputs)
    found = np.zeros((num_bins, 1 << num_models))
    for subset in range(1, 1 << num_models):
        right = outputs[members(subset)].mean(0).argmax(1) == labels
        for place in range(num_bins):
            here = right[bins == place]
            found[place, subset] = (here.sum() + weight * right.mean()) / (len(here) + weight)
    return found


@dataclass(eq=False)
class Query:
    """A query that is there.

    Attributes:
        number: its place in what was asked.
        deadline: seconds.
        bin: of its predicted difficulty.
        begun: models that run it or have.
        ended: of those, the ones that have.
        ends: when the last of the begun ones ends.
        chosen: its sub-ensemble in the last plan.
        failed: models that gave it nothing, and are not asked again.
    """

    number: int
    deadline: float
    bin: int
    begun: int = 0
    ended: int = 0
    ends: float = 0.0
    chosen: int = 0
    failed: int = 0


def plan(
    queries: Sequence[Query],
    available: Sequence[float],
    times: Sequence[float],
    rewards: Float[Array, "bins subsets"],
    *,
    eps: float = 0.01,
    cap: int | None = CAP,
    spacing: Sequence[float] | None = None,
) -> list[int]:
    """The sub-ensemble of each query, those that it has begun included; queries in the order of their deadlines.

    Args:
        queries: that wait for at least one more model, or may.
        available: when each model is free.
        times: of the models.
        rewards: U.
        eps: sums are rounded down to multiples of eps * max U; 0 leaves them as they are.
        cap: states of one sum that stay; None keeps all.
        spacing: after which a model takes the next query; its time where nothing is said, less where it serves several.
    """
    spacing = times if spacing is None else spacing
    grain = eps * float(rewards.max())
    # A state: sum, available times, and its choice with that of the state before it.
    states: list[tuple[float, tuple[float, ...], tuple[int, Any] | None]] = [(0.0, tuple(available), None)]
    for query in queries:
        options = _options(query, len(times))
        found: dict[tuple[float, ...], tuple[float, tuple[float, ...], tuple[int, Any]]] = {}
        for total, free, before in states:
            for subset in options:
                after = _after(query, subset, free, times, spacing)
                if after is None:
                    continue
                reward = total + float(rewards[query.bin, subset])
                kept = found.get(after)
                if kept is None or reward > kept[0]:
                    found[after] = (reward, after, (subset, before))
        states = _undominated(list(found.values()), grain, cap)
    best = max(states, key=lambda state: state[0])
    chosen, link = [], best[2]
    while link is not None:
        chosen.append(link[0])
        link = link[1]
    return chosen[::-1]


def _options(query: Query, num_models: int) -> list[int]:
    return [
        subset for subset in range(1 << num_models) if subset & query.begun == query.begun and not subset & query.failed
    ]


def _after(
    query: Query, subset: int, free: tuple[float, ...], times: Sequence[float], spacing: Sequence[float]
) -> tuple[float, ...] | None:
    """When models are available after the new ones of `subset` took it; None where it ends after its deadline."""
    new = subset & ~query.begun
    if not new:
        return free if query.ends <= query.deadline else None
    after = list(free)
    for model in members(new):
        if after[model] + times[model] > query.deadline:
            return None
        after[model] += spacing[model]
    return tuple(after) if query.ends <= query.deadline else None


def _undominated(states: list[Any], grain: float, cap: int | None) -> list[Any]:
    """Those for which no other has as large a sum, rounded, with every model available as early."""

    def level(state: Any) -> float:
        return state[0] // grain if grain else state[0]

    states.sort(key=lambda state: (-level(state), -state[0], state[1]))
    kept: list[Any] = []
    frees = np.empty((0, len(states[0][1]))) if states else np.empty((0, 0))
    count: dict[float, int] = {}
    for state in states:
        here = level(state)
        if cap is not None and count.get(here, 0) >= cap:
            continue
        free = np.array(state[1])
        if len(kept) and bool((frees <= free).all(1).any()):
            continue
        kept.append(state)
        frees = np.vstack([frees, free])
        count[here] = count.get(here, 0) + 1
    return kept


@dataclass
class EnsembleRun:
    """What came of the queries.

    Attributes:
        subsets: models whose output was in the answer; 0 for a miss.
        answers: class of each, -1 for a miss.
        finished: when the answer was there; NaN for a miss.
        busy: seconds that each model computed.
    """

    subsets: Int[Array, " queries"]
    answers: Int[Array, " queries"]
    finished: Float[Array, " queries"]
    busy: list[float] = field(default_factory=list)

    @property
    def missed(self) -> float:
        """Share of queries without an answer at their deadline."""
        return float((self.subsets == 0).mean())

    def accuracy(self, labels: Int[Array, " queries"]) -> float:
        """Share of queries with the right answer at their deadline."""
        return float((self.answers == labels).mean())


class Schemble:
    """An ensemble of classifiers with deadlines.

    Args:
        models: fitted, with `predict_proba`.
        times: seconds that each takes for a query.
        num_bins: of difficulty.
        regression: of the difficulty from the features; `Neighbours` where nothing is said.
        eps, cap: of the plan.
        most: queries that a plan looks at, those with the nearest deadlines.
    """

    def __init__(
        self,
        models: Sequence[Any],
        times: Sequence[float],
        *,
        num_bins: int = 8,
        regression: Regression | None = None,
        eps: float = 0.01,
        cap: int | None = CAP,
        most: int = 12,
    ) -> None:
        if not models or len(models) != len(times):
            raise SettingsError(f"{len(times)} times for {len(models)} models", where="times", fix="give one for each")
        if not all(0 < one < float("inf") for one in times):
            raise SettingsError(f"are {list(times)}", where="times", fix="give seconds above 0")
        if len(models) > 8:
            raise SettingsError(f"are {len(models)}", where="models", fix="give at most 8: all sub-ensembles are tried")
        if num_bins < 1 or most < 1 or (cap is not None and cap < 1) or not 0 <= eps < float("inf"):
            what = f"are num_bins={num_bins}, most={most}, cap={cap} and eps={eps}"
            raise SettingsError(what, where="settings", fix="give eps from 0 on and whole numbers from 1 on")
        self.models, self.times, self.num_bins = list(models), list(times), num_bins
        self.regression: Regression = regression or Neighbours()
        self.eps, self.cap, self.most = eps, cap, most
        self.spacing = list(times)

    def outputs(self, X: Any) -> Float[Array, "models queries classes"]:
        return np.stack([model.predict_proba(X) for model in self.models])

    def fit(self, X: Any, y: Int[Array, " queries"]) -> Self:
        """From a validation set that no model was fitted to; `y` are places of classes.

        Raises:
            DataError: fewer than two queries, or labels that are no place of a class for each.
        """
        return self.fit_outputs(X, self.outputs(X), y)

    def fit_outputs(
        self,
        X: Any,
        outputs: Float[Array, "models queries classes"],
        y: Int[Array, " queries"],
        votes: Float[Array, "models queries classes"] | None = None,
    ) -> Self:
        """The same from what the models said; the mean of `votes`, where there are some, makes an answer."""
        y = np.asarray(y)
        _, num, num_classes = outputs.shape
        if num < 2 or y.shape != (num,):
            raise DataError(
                f"are of shape {y.shape} for {num} queries", where="y", fix="give two or more, a label each"
            )
        if y.dtype.kind not in "iu" or not (y.min() >= 0 and y.max() < num_classes):
            raise DataError(
                "are no places of classes", where="y", fix=f"give whole numbers from 0 to {num_classes - 1}"
            )
        hard = difficulty(outputs)
        self.regression.fit(X, hard)
        left_out = getattr(self.regression, "predict_left_out", self.regression.predict)
        guessed = left_out(X)
        self.edges = np.unique(np.quantile(guessed, np.arange(1, self.num_bins) / self.num_bins))
        bins = np.searchsorted(self.edges, guessed, side="right")
        self.rewards = profile(outputs if votes is None else votes, y, bins, self.num_bins)
        return self

    def bins(self, X: Any) -> Int[Array, " queries"]:
        """Of the predicted difficulty."""
        return np.searchsorted(self.edges, self.regression.predict(X), side="right")

    def choose(self, queries: Sequence[Query], available: Sequence[float]) -> list[int]:
        """The plan's sub-ensemble of each query; those beyond `most` have what they have begun."""
        head = list(queries[: self.most])
        chosen = plan(head, available, self.times, self.rewards, eps=self.eps, cap=self.cap, spacing=self.spacing)
        return chosen + [query.begun for query in queries[self.most :]]

    def serve(self, X: Any, arrivals: Sequence[float], deadlines: Sequence[float]) -> EnsembleRun:
        """Serves queries on a virtual clock; the outputs are real.

        Args:
            X: features.
            arrivals: seconds, rising.
            deadlines: seconds, each after its arrival.
        """
        return run_ensemble(self, self.outputs(X), self.bins(X), arrivals, deadlines)


class Chooser(Protocol):
    """What `run_ensemble` asks: the times, and a choice."""

    times: list[float]

    def choose(self, queries: Sequence[Query], available: Sequence[float]) -> list[int]: ...


class Static:
    """The same sub-ensemble for every query that it can be in time for; all models where nothing is said."""

    def __init__(self, times: Sequence[float], subset: int | None = None) -> None:
        self.times = list(times)
        self.subset = (1 << len(times)) - 1 if subset is None else subset

    def choose(self, queries: Sequence[Query], available: Sequence[float]) -> list[int]:
        free, chosen = tuple(available), []
        for query in queries:
            if query.begun:
                chosen.append(self.subset)
                for model in members(self.subset & ~query.begun):
                    free = (*free[:model], free[model] + self.times[model], *free[model + 1 :])
                continue
            after = _after(query, self.subset, free, self.times, self.times)
            chosen.append(0 if after is None else self.subset)
            free = free if after is None else after
        return chosen


def run_ensemble(
    chooser: Chooser,
    outputs: Float[Array, "models queries classes"],
    bins: Int[Array, " queries"],
    arrivals: Sequence[float],
    deadlines: Sequence[float],
) -> EnsembleRun:
    """Queries on a virtual clock: a plan at every arrival and every end, and each free model takes the first query, by
    deadline, whose plan has it.

    Raises:
        DataError: not one arrival and one deadline for each query, or an arrival that never is.
    """
    num_models, num, _ = outputs.shape
    check_times(arrivals, deadlines, num)
    found = EnsembleRun(np.zeros(num, dtype=int), np.full(num, -1), np.full(num, np.nan), [0.0] * num_models)
    times, available = chooser.times, [0.0] * num_models
    working: list[Query | None] = [None] * num_models
    present: list[Query] = []
    events = [(arrival, 1, number) for number, arrival in enumerate(arrivals)]
    heapq.heapify(events)
    while events:
        now, kind, which = heapq.heappop(events)
        if kind == 0:
            query, working[which] = working[which], None
            assert query is not None
            query.ended |= 1 << which
        else:
            query = Query(which, deadlines[which], int(bins[which]))
            present.append(query)
            present.sort(key=lambda one: (one.deadline, one.number))
        if events and events[0][0] == now and events[0][1] == 0:
            continue  # all that ends now has ended before anything is planned
        for query in [one for one in present if one.deadline < now]:
            _give(found, query, outputs, now=query.deadline)
            present.remove(query)
        free = [max(now, moment) for moment in available]
        for query, subset in zip(present, chooser.choose(present, free), strict=True):
            query.chosen = subset | query.begun
        for model in range(num_models):
            if working[model] is None:
                mine = (one for one in present if one.chosen & ~one.begun & 1 << model)
                if (query := next(mine, None)) is not None:
                    working[model], available[model] = query, now + times[model]
                    query.begun |= 1 << model
                    query.ends = max(query.ends, available[model])
                    found.busy[model] += times[model]
                    heapq.heappush(events, (available[model], 0, model))
        for query in [one for one in present if one.ended and one.ended == one.chosen == one.begun]:
            _give(found, query, outputs, now=now)
            present.remove(query)
    for query in present:
        _give(found, query, outputs, now=query.deadline)
    return found


def check_times(arrivals: Sequence[float], deadlines: Sequence[float], num: int) -> None:
    if not len(arrivals) == len(deadlines) == num:
        what = f"{len(arrivals)} arrivals and {len(deadlines)} deadlines for {num} queries"
        raise DataError(what, fix="give one of each for every query")
    if not np.isfinite(np.asarray(arrivals, dtype=float)).all():
        raise DataError("are not all finite", where="arrivals", fix="give seconds")
    if np.isnan(np.asarray(deadlines, dtype=float)).any():
        raise DataError("are not all numbers", where="deadlines", fix="give seconds, or inf where there is none")


def _give(found: EnsembleRun, query: Query, outputs: Float[Array, "models queries classes"], *, now: float) -> None:
    """The answer of those models that ended in time."""
    found.subsets[query.number] = query.ended
    if query.ended:
        found.answers[query.number] = outputs[members(query.ended), query.number].mean(0).argmax()
        found.finished[query.number] = now
