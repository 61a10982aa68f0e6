"""A run: every strategy on every problem, graded, with what each used beside what all of it cost.

All problems advance on their own; no strategy waits for another problem. The right answers are read only after a
strategy has answered. A record is kept in the journal when its strategy has ended, and made again from the journal's
calls where it has not: a run that is killed and started again has the records of one that was not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burnish.core.errors import DataError, SettingsError
from burnish.core.statistics import Interval, interval, paired_interval
from burnish.reason.calls import Endpoint, UpstreamError, Usage, digest
from burnish.reason.journal import Journal, JournalReader, Paid
from burnish.reason.limits import Budget
from burnish.reason.pool import Pool, Transport
from burnish.reason.probe import Probe
from burnish.reason.session import Session
from burnish.reason.strategies import strategy
from burnish.reason.strategies.base import Strategy
from burnish.verify import Verifier

Problem = Mapping[str, Any]


def run(
    problems: Sequence[Problem],
    verifier: Verifier,
    strategies: Sequence[str],
    endpoints: Sequence[Endpoint],
    directory: str | Path,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    probes: Sequence[Probe] = (),
    transport: Transport | None = None,
    **pool: Any,
) -> dict[str, dict[str, Any]]:
    """Runs, or goes on with, a run in a directory; returns its records by "problem|strategy".

    Args:
        probes: of the endpoints; those of other servers are left aside.

    Raises:
        SettingsError: no strategy, or one twice; a strategy needs a model that is not there, or what its probe denies.
        OutputError: the directory holds another run.
        UpstreamError: the server cannot be used at all; that one problem failed is in its record.
    """
    made = _made(strategies, endpoints, probes)
    endpoints = [_applied(one, probes) for one in endpoints]
    secrets = [secret for endpoint in endpoints for secret in endpoint.secrets]
    facts = {
        "problems": [dict(problem) for problem in problems],
        "verifier": verifier.name,
        "strategies": [one.label for one in made],
        "models": [{"name": one.called, "model": one.model, "sampling": dict(one.sampling)} for one in endpoints],
        "seed": seed,
    }

    async def go() -> dict[str, dict[str, Any]]:
        with Journal(directory, {name: digest(fact) for name, fact in facts.items()}, secrets=secrets) as journal:
            async with Pool(endpoints, journal, budget=budget, seed=seed, transport=transport, **pool) as client:
                tasks = [answered(client, verifier, problem, each) for problem in problems for each in made]
                records = await asyncio.gather(*tasks)
                failures = [record for record in records if record["error"]]
                if failures and len(failures) == len(records):
                    raise UpstreamError(f"no problem was answered: {failures[0]['error']}", where=str(directory))
                return {f"{record['problem']}|{record['strategy']}": record for record in records}

    return asyncio.run(go())


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
                    found.refuse(one)
    return made


def _applied(endpoint: Endpoint, probes: Sequence[Probe]) -> Endpoint:
    return next((found.applied(endpoint) for found in probes if found.fits(endpoint)), endpoint)


async def answered(pool: Pool, verifier: Verifier, problem: Problem, made: Strategy) -> dict[str, Any]:
    """The record of one strategy on one problem, graded and kept."""
    name = str(problem["id"])
    session = Session(pool, name, made.label, answers=verifier)
    error = ""
    try:
        result = await made([{"role": "user", "content": verifier.prompt(problem)}], session)
    except UpstreamError as failure:
        result, error = session.result(None), str(failure)
    record = {
        "problem": name,
        "strategy": made.label,
        "score": await asyncio.to_thread(verifier.grade, result.answer, problem),
        "answer": result.answer,
        "text": result.text,
        "used": {model: asdict(used) for model, used in result.used.items()},
        "stopped": result.stopped,
        "notes": list(result.notes),
        "error": error,
    }
    await pool.journal.record(f"{name}|{made.label}", record)
    return record


@dataclass(frozen=True)
class Outcome:
    """One strategy over all problems.

    Attributes:
        accuracy: mean score, over problems.
        against_first: paired difference from the first strategy; None for the first.
        used: by model, all problems together.
        unfinished: problems that a budget or an error ended.
    """

    strategy: str
    num: int
    accuracy: Interval
    against_first: Interval | None
    used: dict[str, Usage]
    unfinished: int


def outcomes(records: Mapping[str, Mapping[str, Any]]) -> list[Outcome]:
    """Of every strategy, in the order of their tokens written."""
    by_strategy: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records.values():
        if "strategy" not in record:
            continue  # of an evolution: what it learned, beside how its candidates did
        by_strategy.setdefault(record["strategy"], {})[record["problem"]] = record
    if not by_strategy:
        raise DataError("holds no finished problem", where="run", fix="give the command of the run again")
    sums = {name: _sum(of.values()) for name, of in by_strategy.items()}
    order = sorted(by_strategy, key=lambda name: (sum(one.completion for one in sums[name].values()), name))
    common = sorted(set.intersection(*(set(of) for of in by_strategy.values())))
    first = np.array([by_strategy[order[0]][problem]["score"] for problem in common])
    found = []
    for name in order:
        mine = by_strategy[name]
        paired = None
        if name != order[0] and common:
            paired = paired_interval(np.array([mine[problem]["score"] for problem in common]), first)
        scores = np.array([record["score"] for record in mine.values()])
        unfinished = sum(bool(record["stopped"] or record["error"]) for record in mine.values())
        found.append(Outcome(name, len(mine), interval(scores, scale="logit"), paired, sums[name], unfinished))
    return found


def _sum(records: Any) -> dict[str, Usage]:
    used: dict[str, Usage] = {}
    for record in records:
        for model, counts in record["used"].items():
            used[model] = used.get(model, Usage()) + Usage(**counts)
    return used


def read(directory: str | Path) -> tuple[list[Outcome], dict[str, Paid]]:
    """What a run found and what was paid for it."""
    reader = JournalReader(directory)
    try:
        return outcomes(reader.records()), reader.paid()
    finally:
        reader.close()
