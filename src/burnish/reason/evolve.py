"""A run of its own kind: a population evolves on some problems, and others, unseen, say who of it is best.

Right answers grade attempts and are shown to no prompt. What is found is used by `population(run=DIR)` in other runs,
on further problems: the score of a winner is the best of several, and so too good. A budget is shared out beforehand,
so that evolution leaves enough to decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from burnish.core import interrupts
from burnish.core.errors import DataError, SettingsError
from burnish.reason.calls import BudgetSpent, Endpoint, UpstreamError, Usage, digest
from burnish.reason.harness import answered
from burnish.reason.journal import FILE, Journal, JournalReader
from burnish.reason.limits import Budget
from burnish.reason.pool import Pool, Transport
from burnish.reason.prompts import check
from burnish.reason.strategies.population import WINNER, Population, Team
from burnish.reason.strategies.population_generations import Evolution, Generations, Problem
from burnish.verify import Verifier


@dataclass(frozen=True)
class Evolved:
    """What an evolution found.

    Attributes:
        team: the winner.
        history: of every generation: best and mean fitness, bits of specialisation, members with their parents.
        scores: mean score of every candidate on the unseen problems, by its name.
        shortened: whether a budget ended the evolution before its last generation.
    """

    team: Team
    history: list[dict[str, Any]]
    scores: dict[str, float]
    shortened: bool


def evolve(
    learn: Sequence[Problem],
    unseen: Sequence[Problem],
    verifier: Verifier,
    settings: Evolution,
    endpoints: Sequence[Endpoint],
    directory: str | Path,
    *,
    seed: int = 0,
    budget: Budget | None = None,
    prompts: Mapping[str, str] | None = None,
    transport: Transport | None = None,
    **pool: Any,
) -> Evolved:
    """Evolves, or goes on with, a population in a directory.

    Args:
        learn: problems whose rewards the population sees.
        unseen: problems that decide who is best, and nothing else.
        prompts: texts in place of ours: `member`, `skill`, `reskill`.

    Raises:
        DataError: a problem is among both.
        SettingsError: a budget that cannot decide a winner.
        BudgetSpent: it ended before the unseen problems were answered; more of it continues.
        OutputError: the directory holds another run.
        UpstreamError: the server cannot be used.
    """
    texts, budget = dict(prompts or {}), budget or Budget()
    check(texts)
    _apart(learn, unseen)
    early = _of_evolution(budget, settings, len(learn), len(unseen))
    facts = {
        "kind": "evolution",
        "problems": [dict(problem) for problem in learn],
        "unseen": [dict(problem) for problem in unseen],
        "verifier": verifier.name,
        "settings": settings.model_dump(mode="json"),
        "models": [{"name": one.called, "model": one.model, "sampling": dict(one.sampling)} for one in endpoints],
        "prompts": texts,
        "seed": seed,
    }
    grades = _grades(directory)
    secrets = [secret for endpoint in endpoints for secret in endpoint.secrets]

    async def go() -> Evolved:
        began = time.monotonic()
        with Journal(directory, {name: digest(fact) for name, fact in facts.items()}, secrets=secrets) as journal:
            given: dict[str, Any] = {"seed": seed, "transport": transport, **pool}
            async with Pool(endpoints, journal, budget=early, **given) as client:
                population = Generations(settings, client, verifier, learn, texts=texts, grades=grades)
                shortened = await population.run()
            async with Pool(endpoints, journal, budget=_later(budget, time.monotonic() - began), **given) as client:
                team, scores = await _decided(client, verifier, unseen, population.teams(unseen), settings.cost)
            await journal.record(WINNER, team.model_dump(mode="json"))
            return Evolved(team, population.history, scores, shortened)

    return interrupts.run(go())


async def _decided(
    pool: Pool, verifier: Verifier, unseen: Sequence[Problem], teams: Sequence[Team], cost: float
) -> tuple[Team, dict[str, float]]:
    """The best team on the unseen problems, the first of equals; the first is the one without skills.

    A problem on which the server failed for one team counts for none.
    """
    made = [Population(team=team) for team in teams]
    records = await asyncio.gather(*(answered(pool, verifier, problem, one) for one in made for problem in unseen))
    if any(record["stopped"] for record in records):
        raise BudgetSpent(
            "the budget ended before the unseen problems decided who is best", fix="give more; the run continues"
        )
    failed = {record["problem"]: record["error"] for record in records if record["error"]}
    common = [str(problem["id"]) for problem in unseen if str(problem["id"]) not in failed]
    if not common:
        raise UpstreamError(f"no unseen problem was answered: {next(iter(failed.values()))}", where="evolution")
    scores: dict[str, float] = {}
    values: list[float] = []
    for team, one in zip(teams, made, strict=True):
        mine = [record for record in records if record["strategy"] == one.label and record["problem"] in common]
        used = [Usage(**counts) for record in mine for counts in record["used"].values()]
        scores[team.name] = sum(record["score"] for record in mine) / len(mine)
        tokens = sum(each.prompt + each.completion for each in used) / len(mine)
        values.append(scores[team.name] - cost * tokens / 1000)
    return teams[values.index(max(values))], scores


def _apart(learn: Sequence[Problem], unseen: Sequence[Problem]) -> None:
    seen = {" ".join(str(problem["question"]).split()): problem["id"] for problem in learn}
    for problem in unseen:
        question = " ".join(str(problem["question"]).split())
        if question in seen:
            raise DataError(
                f"the problem {problem['id']!r} to decide with is the problem {seen[question]!r} to learn from",
                where="unseen problems",
                fix="hold it out of one of the two files",
            )


def _of_evolution(budget: Budget, settings: Evolution, num_learn: int, num_unseen: int) -> Budget:
    """What evolution may use: calls but those that decide; of all else its share of the planned calls."""
    batch, later = min(settings.batch, num_learn), settings.generations - 1
    first = 2 * (settings.members - 1) + settings.members * batch
    evolving = first + later * ((settings.members + settings.children) * batch + settings.children)
    deciding = (settings.members + 2) * num_unseen
    if budget.calls is not None and budget.calls < first + deciding:
        raise SettingsError(
            f"a budget of {budget.calls:,} calls is too small: one generation is up to {first:,}, and to decide among "
            f"{settings.members + 2} candidates on {num_unseen:,} unseen problems up to {deciding:,}",
            fix=f"give {evolving + deciding:,} for all generations, or fewer members or problems",
        )
    share = evolving / (evolving + deciding)
    return Budget(
        calls=None if budget.calls is None else budget.calls - deciding,
        prompt_tokens=None if budget.prompt_tokens is None else int(budget.prompt_tokens * share),
        completion_tokens=None if budget.completion_tokens is None else int(budget.completion_tokens * share),
        cost=None if budget.cost is None else budget.cost * share,
        seconds=None if budget.seconds is None else budget.seconds * share,
    )


def _later(budget: Budget, elapsed: float) -> Budget:
    return budget if budget.seconds is None else replace(budget, seconds=budget.seconds - elapsed)


def _grades(directory: str | Path) -> dict[str, float]:
    """What an earlier process of the run has graded."""
    if not (Path(directory) / FILE).is_file():
        return {}
    reader = JournalReader(directory)
    try:
        return {key: grade for record in reader.records().values() for key, grade in record.get("grades", {}).items()}
    finally:
        reader.close()
