"""What a run found: accuracy beside cost, votes of every number of samples, and each strategy against a vote that costs
as much.

A problem is one observation: repetitions of it are averaged first, so that intervals hold for other problems of the
kind, with the chance of sampling in them. The cost of a strategy is what it used, in money where every price is known,
else in tokens read and written. The *vote at equal cost* is the vote of as many plain samples as the strategy could
have bought, on the mean over problems; between two numbers of samples each is taken as often as it is near.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ValidationError

from burnish.core.errors import DataError
from burnish.core.settings import first_mistake
from burnish.core.statistics import Interval, interval, paired_interval
from burnish.reason.calls import Price, Usage
from burnish.reason.curves import best, between, votes
from burnish.reason.journal import JournalReader, Paid

VOTES = re.compile(r"direct|self-consistency\(n=\d+,early=0\)")
"""Strategies that are points of the curve."""
Record = Mapping[str, Any]
Prices = Mapping[str, Price | None]
Place = tuple[str, int]
"""A problem and its repetition."""


@dataclass(frozen=True)
class Against:
    """A strategy and a vote of the same cost.

    Attributes:
        samples: that the vote has for the money; a real number.
        vote: its accuracy on the same problems.
        difference: strategy less vote, paired by problem; None with `why` where they cannot be compared.
    """

    samples: float
    vote: float | None = None
    difference: Interval | None = None
    why: str = ""


@dataclass(frozen=True)
class PopulationScore:
    """One population, over all problems: what a drawn member, the majority and the best member earn."""

    mean: Interval
    majority: Interval
    best: Interval
    distinct: float
    letters: float
    cut: float


@dataclass(frozen=True)
class Tally:
    """One strategy over all problems.

    Attributes:
        num: problems.
        accuracy: mean score.
        repetitions: the accuracy of each repetition.
        used: by model, all together.
        cost: of one problem, in the run's unit; None where it is unknown.
        against: the vote at equal cost; None where the run has no samples to vote.
        unfinished: answers that a budget or an error ended.
        notes: with how often each was made.
    """

    strategy: str
    num: int
    accuracy: Interval
    repetitions: tuple[float, ...]
    used: Mapping[str, Usage]
    cost: float | None
    against: Against | None
    loops: tuple[PopulationScore, ...]
    unfinished: int
    notes: Mapping[str, int]


@dataclass(frozen=True)
class Curve:
    """Votes of n = 1 .. m plain samples of one model, in expectation over which n of the m.

    Attributes:
        cost: of one sample.
        places: the problems and repetitions that have m samples.
        by_place: accuracy of each of them, by n.
        vote, best: over problems, by n; best is the highest score among n.
        left_out: places with fewer samples.
    """

    model: str
    cost: float | None
    places: tuple[Place, ...]
    by_place: Float[np.ndarray, "places num"]
    vote: tuple[Interval, ...]
    best: tuple[Interval, ...]
    left_out: int


@dataclass(frozen=True)
class Found:
    """A whole run.

    Attributes:
        unit: of costs, "money" or "tokens".
        about: what the run noted of itself.
    """

    tallies: tuple[Tally, ...]
    curves: tuple[Curve, ...]
    paid: Mapping[str, Paid]
    prices: Prices
    unit: str
    about: Record

    @property
    def num_problems(self) -> int:
        return max(one.num for one in self.tallies)


class ReadRecord(BaseModel):
    """What is read of a strategy's record: the journal may come from anywhere."""

    problem: str
    strategy: str
    score: float
    used: dict[str, Usage]
    stopped: str | None
    error: str
    notes: list[str]
    repetition: int = 0
    curves: dict[str, Any] = {}


def read(directory: str | Path, prices: Prices | None = None) -> Found:
    """What a run found and what was paid for it.

    Args:
        prices: by model, over those that the run was given.

    Raises:
        DataError: no journal, or no finished problem in it.
    """
    reader = JournalReader(directory)
    try:
        kept, paid, about = reader.records().values(), reader.paid(), reader.about
    finally:
        reader.close()
    records = [one for one in kept if "strategy" in one]  # an evolution keeps what it learned as well
    for record in records:
        try:
            ReadRecord.model_validate(record)
        except ValidationError as error:
            what, fix = f"holds a record that no run keeps ({first_mistake(error)})", "start the run anew"
            raise DataError(what, where=str(reader.path), fix=fix) from None
    if not records:
        raise DataError("holds no finished problem", where=str(directory), fix="give the command of the run again")
    noted = {name: one.get("price") for name, one in about.get("models", {}).items()}
    known = {name: Price(**one) if one else None for name, one in noted.items()} | dict(prices or {})
    return found(records, known, paid, about)


def found(records: Sequence[Record], prices: Prices, paid: Mapping[str, Paid], about: Record) -> Found:
    """Of the records of a run."""
    used = [Usage(**counts) for record in records for counts in record["used"].values()]
    models = {model for record in records for model in record["used"]}
    priced = all(prices.get(model) for model in models) and not any(one.unknown for one in used)
    cost = _money(prices) if priced else _tokens
    by_strategy: dict[str, dict[Place, Record]] = {}
    for record in records:
        by_strategy.setdefault(record["strategy"], {})[record["problem"], record.get("repetition", 0)] = record
    curves = _curves(records, cost)
    tallies = [_tally(name, of, curves, cost) for name, of in by_strategy.items()]
    tallies.sort(key=lambda one: (one.cost is None, one.cost or 0.0, one.strategy))
    return Found(tuple(tallies), tuple(curves), paid, prices, "money" if priced else "tokens", about)


Cost = Callable[[str, Usage], float | None]


def _money(prices: Prices) -> Cost:
    return lambda model, usage: usage.cost(prices.get(model))


def _tokens(model: str, usage: Usage) -> float | None:
    return None if usage.unknown else float(usage.prompt + usage.completion)


def total(costs: Sequence[float | None]) -> float | None:
    """The sum, unknown where a part of it is."""
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


def _tally(name: str, records: Mapping[Place, Record], curves: Sequence[Curve], cost: Cost) -> Tally:
    used: dict[str, Usage] = {}
    for record in records.values():
        for model, counts in record["used"].items():
            used[model] = used.get(model, Usage()) + Usage(**counts)
    summed = total([cost(model, usage) for model, usage in used.items()])
    notes: dict[str, int] = {}
    for record in records.values():
        for note in record["notes"] + ([record["error"]] if record["error"] else []):
            notes[note] = notes.get(note, 0) + 1
    each = None if summed is None else summed / len(records)
    return Tally(
        strategy=name,
        num=len({problem for problem, _ in records}),
        accuracy=_over_problems({place: float(record["score"]) for place, record in records.items()}),
        repetitions=_repetitions(records),
        used=used,
        cost=each,
        against=_against(records, each, curves),
        loops=tuple(_loops(records)),
        unfinished=sum(bool(record["stopped"] or record["error"]) for record in records.values()),
        notes=notes,
    )


def _repetitions(records: Mapping[Place, Record]) -> tuple[float, ...]:
    kept: dict[int, list[float]] = {}
    for (_, repetition), record in records.items():
        kept.setdefault(repetition, []).append(record["score"])
    return tuple(float(np.mean(kept[repetition])) for repetition in sorted(kept))


def _means(values: Mapping[Place, float]) -> dict[str, float]:
    """By problem, over its repetitions."""
    kept: dict[str, list[float]] = {}
    for (problem, _), value in values.items():
        kept.setdefault(problem, []).append(value)
    return {problem: sum(ones) / len(ones) for problem, ones in kept.items()}


def _over_problems(values: Mapping[Place, float]) -> Interval:
    """The mean; where scores are right or wrong, an interval that is no point where all are."""
    sums: dict[str, list[float]] = {}
    for (problem, _), value in values.items():
        sums.setdefault(problem, []).append(value)
    scores, weights = np.array([[sum(ones), len(ones)] for ones in sums.values()]).T
    return interval(scores, weights, scale="logit")


# -- votes -----------------------------------------------------------------------------------------------------------


def _curves(records: Sequence[Record], cost: Cost) -> list[Curve]:
    """One for each model of which there are samples; of the records of a place, that with most of them counts."""
    kept: dict[str, dict[Place, tuple[Record, list[float]]]] = {}
    for record in records:
        for model, samples in record.get("curves", {}).get("samples", {}).items():
            place = (record["problem"], record.get("repetition", 0))
            before = kept.setdefault(model, {}).get(place)
            if before is None or len(before[0]["answers"]) < len(samples["answers"]):
                kept[model][place] = (samples, record["curves"]["scores"])
    curves = [_curve(model, places, cost) for model, places in kept.items()]
    return sorted((one for one in curves if len(one.vote) > 1), key=lambda one: -one.by_place.size)


def _curve(model: str, kept: Mapping[Place, tuple[Record, list[float]]], cost: Cost) -> Curve:
    most = max(len(samples["answers"]) for samples, _ in kept.values())
    full = {place: one for place, one in sorted(kept.items()) if len(one[0]["answers"]) == most}
    vote = np.array([votes(samples["answers"], scores) for samples, scores in full.values()])
    high = np.array([best(_worth(samples["answers"], scores)) for samples, scores in full.values()])
    summed = total([cost(model, Usage(**samples["used"])) for samples, _ in full.values()])
    return Curve(
        model=model,
        cost=None if summed is None else summed / (most * len(full)),
        places=tuple(full),
        by_place=vote,
        vote=tuple(_over_problems(dict(zip(full, column, strict=True))) for column in vote.T),
        best=tuple(_over_problems(dict(zip(full, column, strict=True))) for column in high.T),
        left_out=len(kept) - len(full),
    )


def _worth(answers: Sequence[int | None], scores: Sequence[float]) -> list[float]:
    return [0.0 if answer is None else scores[answer] for answer in answers]


def _against(records: Mapping[Place, Record], cost: float | None, curves: Sequence[Curve]) -> Against | None:
    """The vote of the model of which the strategy takes its plain samples, else of the one with most of them."""
    own = {model for record in records.values() for model in record.get("curves", {}).get("samples", {})}
    curve = next((one for one in curves if one.model in own), next(iter(curves), None))
    if curve is None:
        return None
    if VOTES.fullmatch(next(iter(records.values()))["strategy"]):
        return Against(math.nan, why="is a vote itself")
    if cost is None or not curve.cost:
        return Against(math.nan, why="a cost is unknown")
    samples, most = cost / curve.cost, len(curve.vote)
    if samples > most * (1 + 1e-9):
        return Against(samples, why=f"needs {math.ceil(samples)} samples, the run has {most}")
    if samples < 1 - 1e-9:
        return Against(samples, why="costs less than one sample")
    level = dict(zip(curve.places, between(curve.by_place, max(1.0, min(samples, most))), strict=True))
    common = sorted(records.keys() & level.keys())
    if not common:
        return Against(samples, why="no problem is common to both")
    mine = _means({place: float(records[place]["score"]) for place in common})
    voted = _means({place: float(level[place]) for place in common})
    pair = np.array([mine[name] for name in mine]), np.array([voted[name] for name in mine])
    return Against(samples, float(pair[1].mean()), paired_interval(*pair))


# -- populations -----------------------------------------------------------------------------------------------------


def _loops(records: Mapping[Place, Record]) -> list[PopulationScore]:
    """Of the populations that all problems have; what has a single member is no population."""
    with_loops = {place: record["curves"] for place, record in records.items() if record.get("curves", {}).get("loops")}
    num = min((len(one["loops"]) for one in with_loops.values()), default=0)
    if num < 2 or max(len(one["loops"][num - 1]) for one in with_loops.values()) < 2:
        return []
    return [_loop({place: _member_facts(one, at) for place, one in with_loops.items()}) for at in range(num)]


def _member_facts(curves: Record, at: int) -> tuple[float, ...]:
    members, scores = curves["loops"][at], curves["scores"]
    worth, size = _worth(members, scores), max(len(members), 1)
    answers = [one for one in members if one is not None]
    first = max(answers, key=lambda one: (answers.count(one), -answers.index(one)), default=None)
    majority = 0.0 if first is None else scores[first]
    distinct = float(len(set(answers)))
    return (
        sum(worth) / size,
        majority,
        max(worth, default=0.0),
        distinct,
        curves["letters"][at],
        curves["cut"][at],
        size,
    )


def _loop(facts: Mapping[Place, tuple[float, ...]]) -> PopulationScore:
    mean, majority, high = (_over_problems({place: one[at] for place, one in facts.items()}) for at in range(3))
    sums = np.sum(list(facts.values()), axis=0)
    return PopulationScore(mean, majority, high, sums[3] / len(facts), sums[4] / sums[6], sums[5] / sums[6])
