"""A run: every strategy on every problem, graded, with what each used beside what all of it cost.

All problems advance on their own; no strategy waits for another problem. The right answers are read only after a
strategy has answered. A record is kept in the journal when its strategy has ended, and made again from the journal's
calls where it was ended by a budget or an error: a run that is killed and started again has the records of one that was
not, and one that is finished asks for nothing. Strategies and repetitions may be added to a run; its problems, models,
sampling and seed are what it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Any

from burnish.core import interrupts
from burnish.core.errors import DataError, SettingsError
from burnish.reason.calls import Endpoint, Reply, UpstreamError, Usage, digest
from burnish.reason.journal import Journal
from burnish.reason.limits import Budget
from burnish.reason.pool import Pool, Transport
from burnish.reason.probe import Probe
from burnish.reason.prompts import check
from burnish.reason.session import Result, Session, clusters
from burnish.reason.strategies import strategy
from burnish.reason.strategies.base import Strategy
from burnish.verify import Verifier

Problem = Mapping[str, Any]
Record = dict[str, Any]


def run(
    problems: Sequence[Problem],
    verifier: Verifier,
    strategies: Sequence[str],
    endpoints: Sequence[Endpoint],
    directory: str | Path,
    *,
    seed: int = 0,
    seeds: int = 1,
    budget: Budget | None = None,
    probes: Sequence[Probe] = (),
    curves: bool = True,
    prompts: Mapping[str, str] | None = None,
    progress: Callable[[], None] = lambda: None,
    transport: Transport | None = None,
    **pool: Any,
) -> dict[str, Record]:
    """Runs, or goes on with, a run in a directory; returns its records by "problem|strategy".

    Args:
        seeds: repetitions, each with a seed of its own; those after the first have "~2", "~3" behind their problem.
        probes: of the endpoints; those of other servers are left aside.
        curves: grade every sample and every member of a population, for the curves of the report.
        prompts: texts in place of ours, by name; they are what the run is, as its problems are.
        progress: called for every record that is there.

    Raises:
        DataError: two problems of one name, repetitions included.
        SettingsError: no strategy, or one twice; a strategy needs a model that is not there, or what its probe denies.
        OutputError: the directory holds another run.
        UpstreamError: the server cannot be used at all; that one problem failed is in its record.
    """
    texts = dict(prompts or {})
    check(texts)
    made = _made(strategies, endpoints, probes)
    endpoints = [_applied(one, probes) for one in endpoints]
    parts = _parts(problems, seeds)

    async def go() -> dict[str, Record]:
        with _journal(directory, problems, verifier, endpoints, seed, texts) as journal:
            finished = {name: record for name, record in journal.records().items() if _ended(record, curves=curves)}
            async with Pool(endpoints, journal, budget=budget, seed=seed, transport=transport, **pool) as client:
                records: dict[str, Record] = {}

                async def problem_part(problem: Problem, repetition: int) -> None:
                    graded = Graded(verifier, problem)
                    asked = _Question(client, graded, repetition, texts, curves=curves)
                    for name, record in await _of_problem(asked, made, finished):
                        records[name] = record
                        progress()

                await asyncio.gather(*(problem_part(*part) for part in parts))
                failures = [record for record in records.values() if record["error"]]
                if failures and len(failures) == len(records):
                    raise UpstreamError(f"no problem was answered: {failures[0]['error']}", where=str(directory))
                return {name: records[name] for name in sorted(records)}

    return interrupts.run(go())


def _journal(
    directory: str | Path,
    problems: Sequence[Problem],
    verifier: Verifier,
    endpoints: Sequence[Endpoint],
    seed: int,
    texts: Mapping[str, str],
) -> Journal:
    """That of this run and no other."""
    secrets = [secret for endpoint in endpoints for secret in endpoint.secrets]
    facts = {
        "problems": [dict(problem) for problem in problems],
        "verifier": verifier.name,
        "models": [{"name": one.called, "model": one.model, "sampling": dict(one.sampling)} for one in endpoints],
        "seed": seed,
    } | ({"prompts": texts} if texts else {})
    journal = Journal(directory, {name: digest(fact) for name, fact in facts.items()}, secrets=secrets)
    journal.note("about", _about(problems, verifier, endpoints, seed, texts))
    return journal


def _made(specs: Sequence[str], endpoints: Sequence[Endpoint], probes: Sequence[Probe]) -> list[Strategy]:
    """The strategies, each of which can be run."""
    made = [strategy(spec) for spec in specs]
    if not made or len({one.label for one in made}) < len(made):
        raise SettingsError("a run needs strategies, each of them once", fix="name them with --strategy")
    named = {one.called: one for one in endpoints}
    for one in made:
        for model in one.asks or list(named)[:1]:
            if model not in named:
                fix = f"the run has {', '.join(named)}; add models with --endpoint NAME=URL,MODEL"
                raise SettingsError(f"asks a model {model!r} that the run does not have", where=one.label, fix=fix)
            for found in probes:
                if found.fits(named[model]):
                    found.refuse(one, one.needs_of(model))
    return made


def _applied(endpoint: Endpoint, probes: Sequence[Probe]) -> Endpoint:
    return next((found.applied(endpoint) for found in probes if found.fits(endpoint)), endpoint)


class Graded:
    """A problem's answers, each of which is compared and graded once, however many strategies give it."""

    def __init__(self, verifier: Verifier, problem: Problem) -> None:
        self.verifier, self.problem = verifier, problem
        self._equal: dict[tuple[str, str], bool] = {}
        self._scores: dict[str, float] = {}

    def extract(self, text: str) -> str | None:
        return self.verifier.extract(text)

    def equivalent(self, first: str, second: str) -> bool:
        pair = (first, second)
        if pair not in self._equal:
            self._equal[pair] = self.verifier.equivalent(first, second)
        return self._equal[pair]

    def grade(self, answer: str | None) -> float:
        """Only after a strategy has answered."""
        if answer is None:
            return 0.0
        if answer not in self._scores:
            self._scores[answer] = self.verifier.grade(answer, self.problem)
        return self._scores[answer]


def _part(problem: Problem, repetition: int) -> str:
    """The first part of the paths of a problem's calls."""
    return str(problem["id"]) + (f"~{repetition + 1}" if repetition else "")


def _parts(problems: Sequence[Problem], seeds: int) -> list[tuple[Problem, int]]:
    """Every problem with the number of each of its repetitions, no two of which may have one name."""
    if seeds < 1:
        raise SettingsError(f"each problem would be asked {seeds} times", where="seeds", fix="give 1 or more")
    parts = [(problem, repetition) for problem in problems for repetition in range(seeds)]
    counts = Counter(_part(*part) for part in parts)
    name, times = counts.most_common(1)[0]
    if times > 1:
        what = f"the name {name!r} is that of a problem and of another one's repetition, or of two problems"
        raise DataError(what, where="problems", fix="give the problem another `id`")
    return parts


@dataclass(frozen=True)
class _Question:
    """One problem, one time, as all strategies see it."""

    pool: Pool
    graded: Graded
    repetition: int = 0
    texts: Mapping[str, str] = field(default_factory=dict)
    _: KW_ONLY
    curves: bool

    @property
    def part(self) -> str:
        return _part(self.graded.problem, self.repetition)


async def _of_problem(
    asked: _Question, made: Sequence[Strategy], finished: Mapping[str, Record]
) -> list[tuple[str, Record]]:
    """All strategies at once; those that have ended before are not asked again."""

    async def one(each: Strategy) -> tuple[str, Record]:
        name = f"{asked.part}|{each.label}"
        if name in finished:
            return name, finished[name]
        return name, await _record(asked, each)

    return list(await asyncio.gather(*(one(each) for each in made)))


async def answered(pool: Pool, verifier: Verifier, problem: Problem, made: Strategy) -> Record:
    """The record of one strategy on one problem, graded and kept."""
    return await _record(_Question(pool, Graded(verifier, problem), curves=False), made)


async def _record(asked: _Question, made: Strategy) -> Record:
    graded = asked.graded
    session = Session(asked.pool, asked.part, made.label, answers=graded, prompts=asked.texts)
    error = ""
    try:
        conversation = [{"role": "user", "content": graded.verifier.prompt(graded.problem)}]
        result = await made(conversation, session)
    except UpstreamError as failure:
        result, error = session.result(None), str(failure)
    record: Record = {
        "problem": str(graded.problem["id"]),
        "repetition": asked.repetition,
        "strategy": made.label,
        "score": await asyncio.to_thread(graded.grade, result.answer),
        "answer": result.answer,
        "text": result.text,
        "used": {model: asdict(used) for model, used in result.used.items()},
        "stopped": result.stopped,
        "notes": list(result.notes),
        "error": error,
    }
    if asked.curves:
        record["curves"] = await asyncio.to_thread(_judged, graded, result, session.plain)
    await asked.pool.journal.record(f"{asked.part}|{made.label}", record)
    return record


def _judged(graded: Graded, result: Result, plain: Mapping[str, Mapping[int, Reply]]) -> Record:
    """Every member of every population and every plain sample: whose answer it gives, and what each answer is worth."""
    samples = {model: [by_slot[slot] for slot in sorted(by_slot)] for model, by_slot in plain.items()}
    replies = [one for population in (*result.populations, *samples.values()) for one in population]
    found = {one.key: graded.extract(one.text) if one.text else None for one in replies}
    keys = list(found)
    groups = sorted(clusters(graded, [found[key] for key in keys]), key=min)
    cluster = {keys[place]: number for number, group in enumerate(groups) for place in group}
    return {
        "scores": [graded.grade(found[keys[group[0]]]) for group in groups],
        "loops": [[cluster.get(one.key) for one in population] for population in result.populations],
        "cut": [sum(one.cut for one in population) for population in result.populations],
        "letters": [sum(len(one.text) for one in population) for population in result.populations],
        "samples": {
            model: {
                "answers": [cluster.get(one.key) for one in ones],
                "used": asdict(sum((one.usage for one in ones), Usage())),
            }
            for model, ones in samples.items()
        },
    }


def _ended(record: Record, *, curves: bool) -> bool:
    """Whether a record is a strategy's, and as good as one made now."""
    return "strategy" in record and not record["stopped"] and not record["error"] and ("curves" in record or not curves)


def _about(
    problems: Sequence[Problem],
    verifier: Verifier,
    endpoints: Sequence[Endpoint],
    seed: int,
    texts: Mapping[str, str],
) -> Record:
    """What a reader of the run wants to know, and what it is not: prices may change."""
    models = {
        one.called: {
            "model": one.model,
            "address": one.address,
            "sampling": dict(one.sampling),
            "price": asdict(one.price) if one.price else None,
        }
        for one in endpoints
    }
    return {
        "problems": len(problems),
        "verifier": verifier.name,
        "seed": seed,
        "models": models,
        "prompts": dict(texts),
    }
