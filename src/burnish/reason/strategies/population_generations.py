"""Generations of a population: every member on the same problems, then trails, labour, survival and children.

    trials     all members answer the drawn problems, with one seed a problem (common random numbers)
    fitness    mean reward - cost * thousands of tokens an answer
    trails     evaporate, and grow where a shown skill earned more than the mean of its kind
    labour     members take the drawn problems by stimulus and threshold, for the rewards they had: no further call
    survival   the best, the best of each kind, winners of tournaments: mu out of mu + lambda
    children   the union of two parents' skills, the best by Wilson's bound; with chance `mutate` the model writes a
               skill from a failure; thresholds averaged, with noise

Every call has a name, every choice follows from the seed and from names. A generation that a budget ends leaves the
population as it was.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from burnish.core.errors import SettingsError
from burnish.reason import prompts
from burnish.reason.calls import BudgetSpent, ContextExceeded, Reply, derived_number, digest
from burnish.reason.pool import Pool
from burnish.reason.session import Session, until_spent
from burnish.reason.strategies.population import Member, Skill, Team, weighed, with_skills
from burnish.reason.strategies.population_rules import (
    Bounds,
    Labour,
    bits,
    drawn,
    survivors,
    trail,
    wilson,
    winner,
    words,
)
from burnish.verify import Verifier

Problem = Mapping[str, Any]
TAU, THETA = Bounds(0.1, 10.0), Bounds(0.05, 5.0)
"""Of trails and of thresholds; both begin at 1."""
LONGEST_SKILL = 600
"""Characters of a skill's text; what is longer is cut."""


class Evolution(BaseModel):
    """Settings of an evolution."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    members: int = Field(default=6, ge=2, description="Members that live on from one generation to the next.")
    children: int = Field(default=6, ge=0, description="New members of each generation.")
    generations: int = Field(default=5, ge=1, description="How often members are tried and selected.")
    batch: int = Field(default=16, ge=1, description="Problems of each generation; all members answer the same ones.")
    skills: int = Field(default=4, ge=1, description="Skills that a member has at most.")
    shown: int = Field(default=2, ge=1, description="Skills with one problem at most.")
    mutate: float = Field(default=0.5, ge=0, le=1, description="Chance that the model writes a skill for a child.")
    inherit: bool = Field(default=True, description="Children have their parents' skills and thresholds.")
    tournament: int = Field(default=3, ge=1, description="How many compete for a place.")
    cost: float = Field(
        default=0.0, ge=0, description="Off a member's fitness for each thousand tokens of a mean answer."
    )
    kind: str = Field(
        default="", description="Field of a problem that names its kind; `type` or `task` when not given."
    )
    rho: float = Field(default=0.1, ge=0, lt=1, description="Share of a trail that evaporates in a generation.")
    deposit: float = Field(default=0.1, ge=0, description="Put on a trail for a reward that is 1 above the mean.")
    alpha: float = Field(default=1.0, ge=0, description="Weight of trails in the choice of skills.")
    beta: float = Field(default=2.0, ge=0, description="Weight of a trigger's likeness to the problem.")
    xi: float = Field(default=0.3, ge=0, description="Taken from the threshold of a kind by a success.")
    phi: float = Field(default=0.03, ge=0, description="Added to the threshold of a kind by idleness.")
    noise: float = Field(default=0.1, ge=0, description="Standard deviation of inherited thresholds.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.shown > self.skills:
            raise ValueError(f"shown is {self.shown}, but a member has at most {self.skills} skills")
        return self


@dataclass(frozen=True)
class Trial:
    """What one member did on one problem.

    Attributes:
        shown: names of the skills that were with the problem.
    """

    reward: float
    tokens: int
    text: str
    shown: tuple[str, ...]


Trials = Mapping[str, Mapping[str, Trial]]
"""By member and problem."""


class Generations:
    """A population on problems to learn from.

    Args:
        settings: of the evolution.
        pool: of calls.
        verifier: of the problems.
        problems: to learn from.
        texts: prompts in place of ours, by name.
        grades: by key of a call, of an earlier process of this run.
    """

    def __init__(
        self,
        settings: Evolution,
        pool: Pool,
        verifier: Verifier,
        problems: Sequence[Problem],
        *,
        texts: Mapping[str, str],
        grades: Mapping[str, float],
    ) -> None:
        self.settings, self.pool, self.verifier, self.texts = settings, pool, verifier, texts
        self.problems = {str(problem["id"]): problem for problem in problems}
        self.kinds = {name: kind_of(problem, settings.kind) for name, problem in self.problems.items()}
        self.sessions = {name: Session(pool, name, "evolve", answers=verifier) for name in self.problems}
        self.members: list[Member] = []
        self.children: list[Member] = []
        self.fitness: dict[str, float] = {}
        self.trails: dict[str, dict[str, float]] = {kind: {} for kind in sorted(set(self.kinds.values()))}
        self.history: list[dict[str, Any]] = []
        self._uses: Counter[str] = Counter()
        self._successes: defaultdict[str, float] = defaultdict(float)
        self._grades, self._graded = grades, dict[str, float]()

    async def run(self) -> bool:
        """Goes through all generations; returns whether a budget ended them early."""
        try:
            await self._found()
            for number in range(1, self.settings.generations + 1):
                await self._generation(number)
        except BudgetSpent:
            return True
        return False

    def teams(self, unseen: Sequence[Problem]) -> list[Team]:
        """Who may win on unseen problems: nobody's skills, each member from the fittest, and all kinds' specialists."""
        known = tuple(sorted(digest(self.verifier.prompt(one)) for one in [*self.problems.values(), *unseen]))
        ranked = sorted(self.members, key=lambda one: -self.fitness.get(one.name, 0.0))
        chosen = {"bare": dict.fromkeys(self.trails, Member(name="bare"))}
        chosen |= {one.name: dict.fromkeys(self.trails, one) for one in ranked if one.skills}
        if len(self.trails) > 1 and ranked:
            chosen["team"] = {kind: min(ranked, key=lambda one: one.thresholds[kind]) for kind in self.trails}
        return [self._team(name, specialists, known) for name, specialists in chosen.items()]

    # -- one generation -------------------------------------------------------------------------------------------

    async def _found(self) -> None:
        """The first member has no skills; each other one has one, written after a look at one problem."""
        names = self._random("found").choices(sorted(self.problems), k=self.settings.members - 1)
        fresh = dict.fromkeys(self.trails, 1.0)
        others = await _all([self._fresh(f"m0.{place}", f"s0.{place}", name) for place, name in enumerate(names, 1)])
        self.members = [Member(name="m0.0", thresholds=fresh), *others]

    async def _generation(self, number: int) -> None:
        draw = self._random("generation", number)
        tasks = draw.sample(sorted(self.problems), min(self.settings.batch, len(self.problems)))
        members = {one.name: one for one in [*self.members, *self.children]}
        found = await _all([self._trial(number, one, task) for one in members.values() for task in tasks])
        rest = iter(found)
        trials = {name: {task: next(rest) for task in tasks} for name in members}
        self._walked(trials)
        members, shares = self._divided(members, trials, draw)
        self.fitness = {name: self._fitness(list(of.values())) for name, of in trials.items()}
        niches = self._niches(members, trials)
        kept = survivors(self.fitness, niches, self.settings.members, draw, tournament=self.settings.tournament)
        self.members = [members[name] for name in kept]
        await self._told(number, members, shares)
        if number < self.settings.generations:
            places = range(self.settings.children)
            self.children = await _all([self._child(number, place, trials) for place in places])

    async def _trial(self, number: int, member: Member, name: str) -> Trial:
        session, task = self.sessions[name], self.verifier.prompt(self.problems[name])
        settings = self.settings
        weights = weighed(member, self.kinds[name], task, self.trails, settings.alpha, settings.beta)
        shown = tuple(drawn(self._random("show", number, member.name, name), weights, settings.shown))
        skills = [skill for skill in member.skills if skill.name in shown]
        conversation = with_skills([{"role": "user", "content": task}], skills, self._text("member"))
        common: dict[str, Any] = {"seed": derived_number(self.pool.seed, "common", number, name)}
        fields = common if self.pool.endpoint().seeds else {}
        try:
            reply = await session.own(conversation, f"generation{number}", member.name, **fields)
        except ContextExceeded:
            return Trial(0.0, 0, "", shown)  # the skills were too long for this problem
        if self.settings.cost and reply.usage.unknown:
            raise SettingsError(
                "a cost of tokens was given, but the server does not say how many it used",
                where=f"model '{reply.endpoint}'",
                fix="use cost 0, or another server",
            )
        tokens = reply.usage.prompt + reply.usage.completion
        return Trial(await self._grade(reply, name), tokens, reply.text or reply.reasoning, shown)

    def _walked(self, trials: Trials) -> None:
        """Counts uses and successes of skills and moves their trails."""
        of_kind: defaultdict[str, list[Trial]] = defaultdict(list)
        for mine in trials.values():
            for task, trial in mine.items():
                of_kind[self.kinds[task]].append(trial)
        for kind, walked in self.trails.items():
            mean = sum(one.reward for one in of_kind[kind]) / max(1, len(of_kind[kind]))
            deposits: defaultdict[str, float] = defaultdict(float)
            for one in of_kind[kind]:
                for skill in one.shown:
                    self._uses[skill] += 1
                    self._successes[skill] += one.reward
                    deposits[skill] += self.settings.deposit * (one.reward - mean)
            self.trails[kind] = {
                skill: trail(walked.get(skill, 1.0), deposits[skill], rho=self.settings.rho, bounds=TAU)
                for skill in sorted({*walked, *deposits})
            }

    def _divided(
        self, members: Mapping[str, Member], trials: Trials, draw: random.Random
    ) -> tuple[dict[str, Member], list[tuple[str, str]]]:
        """Members with their thresholds after the labour, and (member, kind) of each problem that was taken."""
        tasks: dict[str, list[str]] = {kind: [] for kind in self.trails}
        for task in next(iter(trials.values())):
            tasks[self.kinds[task]].append(task)
        labour = Labour(self.settings.xi, self.settings.phi, THETA)
        thresholds = {name: dict(one.thresholds) for name, one in members.items()}
        after, done = labour.divide(thresholds, tasks, lambda name, task: trials[name][task].reward, draw)
        moved = {name: one.model_copy(update={"thresholds": after[name]}) for name, one in members.items()}
        return moved, [(name, kind) for name, kind, _ in done]

    def _fitness(self, trials: Sequence[Trial]) -> float:
        cost = self.settings.cost * sum(one.tokens for one in trials) / 1000
        return (sum(one.reward for one in trials) - cost) / len(trials)

    def _niches(self, members: Mapping[str, Member], trials: Trials) -> list[str]:
        """The best member of each kind, of equals the one that takes it most readily."""
        best = []
        for kind in self.trails:
            tasks = [task for task in next(iter(trials.values())) if self.kinds[task] == kind]
            earned = {name: sum(of[task].reward for task in tasks) for name, of in trials.items()}
            if tasks:
                best.append(max(members, key=lambda one: (earned[one], -members[one].thresholds[kind])))
        return best

    async def _told(self, number: int, members: Mapping[str, Member], shares: list[tuple[str, str]]) -> None:
        self.history.append(
            {
                "generation": number,
                "best": max(self.fitness.values()),
                "mean": sum(self.fitness.values()) / len(self.fitness),
                "bits": bits(shares),
                "survivors": [one.name for one in self.members],
                "members": [
                    {**one.model_dump(mode="json"), "fitness": self.fitness[name]} for name, one in members.items()
                ],
            }
        )
        record = {**self.history[-1], "trails": self.trails, "grades": self._graded}
        await self.pool.journal.record(f"generation {number}", record)
        self._graded = {}

    # -- children and skills --------------------------------------------------------------------------------------

    async def _child(self, number: int, place: int, trials: Trials) -> Member:
        draw, settings = self._random("child", number, place), self.settings
        name, skill = f"m{number}.{place}", f"s{number}.{place}"
        if not settings.inherit:
            return await self._fresh(name, skill, draw.choice(sorted(self.problems)))
        by_name = {one.name: one for one in self.members}
        first, second = (by_name[winner(list(by_name), self.fitness, draw, settings.tournament)] for _ in range(2))
        union = {one.name: one for parent in (first, second) for one in parent.skills}
        skills = sorted(union.values(), key=lambda one: -wilson(self._successes[one.name], self._uses[one.name]))
        skills = skills[: settings.skills]
        thresholds = {
            kind: THETA.clip((first.thresholds[kind] + second.thresholds[kind]) / 2 + draw.gauss(0, settings.noise))
            for kind in self.trails
        }
        if draw.random() < settings.mutate:
            mine = trials[first.name]
            task = draw.choice([task for task, one in mine.items() if one.reward < 1] or list(mine))
            old = skills.pop() if len(skills) == settings.skills else None
            new = await self._written(skill, task, mine[task].text, mine[task].reward, old)
            skills += [new] if new else []
        parents = tuple(dict.fromkeys([first.name, second.name]))
        return Member(name=name, skills=tuple(skills), thresholds=thresholds, parents=parents)

    async def _fresh(self, name: str, skill: str, task: str) -> Member:
        """A member without parents, with one skill written after the plain sample of a problem."""
        conversation = [{"role": "user", "content": self.verifier.prompt(self.problems[task])}]
        reply = await self.sessions[task].sample(conversation, 0)
        written = await self._written(skill, task, reply.text or reply.reasoning, await self._grade(reply, task), None)
        return Member(name=name, skills=(written,) if written else (), thresholds=dict.fromkeys(self.trails, 1.0))

    async def _written(self, name: str, task: str, attempt: str, reward: float, old: Skill | None) -> Skill | None:
        """A skill that the model writes after an attempt; in place of another, which it is shown and which stays where
        nothing is written."""
        text = self._text("reskill" if old else "skill").replace("{score}", f"{reward:g}")
        if old:
            text = text.replace("{skills}", old.shown)
        conversation = [{"role": "user", "content": self.verifier.prompt(self.problems[task])}]
        asked = prompts.appended(conversation, prompts.filled(text, [attempt]))
        reply = await self.sessions[task].own(asked, "skill", name)
        return read_skill(name, reply.text, self.kinds[task]) or old

    # -- the rest -------------------------------------------------------------------------------------------------

    async def _grade(self, reply: Reply, name: str) -> float:
        """The reward of a reply; what an earlier process found is believed, since clocks of graders may differ."""
        if reply.key not in self._grades:
            session, problem = self.sessions[name], self.problems[name]
            self._graded[reply.key] = await asyncio.to_thread(self.verifier.grade, session.extract(reply), problem)
        else:
            self._graded[reply.key] = self._grades[reply.key]
        return self._graded[reply.key]

    def _team(self, name: str, specialists: Mapping[str, Member], known: tuple[str, ...]) -> Team:
        counts: dict[str, Counter[str]] = {kind: Counter() for kind in self.trails}
        for task, kind in self.kinds.items():
            counts[kind].update(words(self.verifier.prompt(self.problems[task])))
        alive = {skill.name for one in specialists.values() for skill in one.skills}
        return Team(
            name=name,
            specialists=specialists,
            signatures={
                kind: dict(sorted(of.items(), key=lambda one: (-one[1], one[0]))) for kind, of in counts.items()
            },
            trails={
                kind: {skill: tau for skill, tau in of.items() if skill in alive} for kind, of in self.trails.items()
            },
            shown=self.settings.shown,
            alpha=self.settings.alpha,
            beta=self.settings.beta,
            words=self._text("member"),
            known=known,
        )

    def _text(self, name: str) -> str:
        return self.texts.get(name) or prompts.ours(name)

    def _random(self, *names: object) -> random.Random:
        return random.Random(derived_number(self.pool.seed, "evolve", *names))


async def _all(calls: Sequence[Any]) -> list[Any]:
    """What all of them give.

    Raises:
        BudgetSpent: a budget ended some.
    """
    found, spent = await until_spent(calls)
    if spent:
        raise BudgetSpent("the budget ended a generation")
    return found


def kind_of(problem: Problem, field: str) -> str:
    """The kind of a problem; without a field that names it, all are of one.

    Raises:
        SettingsError: a field was named that the problem has not.
    """
    if field and field not in problem:
        raise SettingsError(f"the problem {problem['id']!r} has no field {field!r}", fix="name a field that all have")
    names = [field] if field else ["type", "task"]
    return next((str(problem[name]) for name in names if problem.get(name) not in (None, "")), "all")


_WHEN = re.compile(r"^[ \t*_#-]*+when[ \t*_]*+:[ \t*_]*+(.+)$", re.IGNORECASE | re.MULTILINE)
_DO = re.compile(r"^[ \t*_#-]*+do[ \t*_]*+:[ \t*_]*+(.+)", re.IGNORECASE | re.MULTILINE | re.DOTALL)


def read_skill(name: str, text: str, kind: str) -> Skill | None:
    """The skill that a model wrote. Without the asked form all of it is the instruction, for tasks of its kind."""
    when, do = _WHEN.search(text), _DO.search(text)
    said = (do[1] if do else text).strip()[:LONGEST_SKILL].strip()
    trigger = when[1].strip()[:LONGEST_SKILL] if when and do else kind
    return Skill(name=name, trigger=trigger, text=said) if said else None
