"""Routed RSA: the strong model begins, and each later group goes to a cheap or a strong model by how hard it looks.

    loop 1    population by the strongest model
    loop t    n groups of k;  f(g) = mean confidence of the group, or -(number of distinct answers)
              thresholds = percentiles of f over the groups of one problem, linear between ranks
              f <= thr_1 -> strongest;  thr_i < f <= thr_{i+1} -> next cheaper;  f > thr_last -> cheapest

"Squeeze Evolve: Unified Multi-Model Orchestration for Verifier-Free Evolution", 2026, arXiv:2604.07725. The confidence
of a member comes from the log-probabilities of its own generation: no second pass, no other model. With a `scorer` it
comes from that model, which reads once, after its prompt, what another one has written. What differs from the authors'
code: many distinct answers mean hard, so diversity counts with a minus (there a group that disagrees goes to the cheap
model); `lite` compares answers and not texts; a score that is missing is an error and not the lowest confidence. Where
all groups are equally hard none exceeds a threshold, and all go to the strongest; that is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from burnish.reason.calls import Conversation, Reply
from burnish.reason.confidence import SCORES
from burnish.reason.session import MOST_SCORED, Result, Session, clusters, until_spent
from burnish.reason.strategies.base import Strategy, several
from burnish.reason.strategies.rsa import Group, answered, drawn_groups, recombined


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


class RoutedRSA(Strategy):
    """At most n * loops calls; with `lite` fewer, with a `scorer` one more for every member that it has not written.

    Attributes:
        models: from cheap to strong.
        percentiles: one fewer than models, rising: the share of groups for each tier from the strong end. 0 and below
            sends nothing to the tier, 100 and above everything.
        fitness: `confidence` or `logprob` of the members, or `diversity` of their answers; `random` is the control that
            knows nothing, against which the others must show what they are worth.
        scorer: whose log-probabilities are compared, so that members of two models stand on one scale; each member's
            own writer's where empty. Such a call reads the whole prompt, and is paid.
        score_letters: letters of a member that a scorer reads at most; 32,768 where nothing is said.
        lite: `consensus` keeps a member of a cheap group whose answers are all equal, without a call.
        update: `replace` the population, or `accumulate` all members.
        n, k, loops, answer: as in RSA.
    """

    name: ClassVar[str] = "routed-rsa"
    models: Annotated[list[str], BeforeValidator(_several)] = Field(min_length=1)
    percentiles: Annotated[list[float], BeforeValidator(_several)] = Field(default_factory=lambda: [10.0])
    n: int = Field(16, ge=1)
    k: int = Field(4, ge=1)
    loops: int = Field(10, ge=1)
    fitness: Literal["confidence", "logprob", "diversity", "random"] = "confidence"
    scorer: str = ""
    score_letters: int | None = Field(None, ge=1)
    lite: Literal["", "consensus"] = ""
    update: Literal["replace", "accumulate"] = "replace"
    answer: Literal["majority", "uniform"] = "majority"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.k > self.n:
            raise ValueError(f"k is {self.k}, but a population has only n = {self.n} members")
        if len(self.models) > 1 and len(self.percentiles) != len(self.models) - 1:
            raise ValueError(f"{len(self.models)} models need {len(self.models) - 1} percentiles")
        if sorted(self.percentiles) != self.percentiles:
            raise ValueError("percentiles must rise")
        if self.scorer and self.fitness not in SCORES:
            raise ValueError(f"a scorer gives log-probabilities, of which fitness={self.fitness} knows nothing")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        scores = {"logprob": ("logprobs",), "confidence": ("logprobs", "alternatives")}
        return several(self.n) + scores.get(self.fitness, ())

    def needs_of(self, model: str) -> tuple[str, ...]:
        """Log-probabilities of the scorer alone, where there is one; of a text, where others write."""
        if not self.scorer:
            return self.needs
        foreign = ("foreign",) if set(self.models) != {self.scorer} else ()
        if model not in self.models:
            return foreign
        return self.needs + foreign if model == self.scorer else several(self.n)

    @property
    def asks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.models, *([self.scorer] if self.scorer else [])]))

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        strongest = self.models[-1]
        first = [session.sample(conversation, slot, model=strongest) for slot in range(self.n)]
        population, spent = await until_spent(first)
        loops = [population]
        for loop in range(2, self.loops + 1):
            if spent:
                break
            members, spent = await self._next(conversation, session, population, loop)
            if not spent:
                population = [*population, *members] if self.update == "accumulate" else members
                loops.append(population)
        return await answered(session, loops, self.answer, spent=spent)

    async def _next(
        self, conversation: Conversation, session: Session, population: Sequence[Reply], loop: int
    ) -> tuple[list[Reply], bool]:
        groups = drawn_groups(session, loop, self.n, self.k, len(population))
        found = [session.extract(one) for one in population]
        scored, spent = await self._scored(session, population)
        if spent:
            return [], True
        fitness = self._fitness(session, scored, found, groups, loop)
        if len(self.models) > 1 and len(set(fitness)) == 1:
            session.notes.append("all groups of a loop were equally hard, so that all went to one model")
        tiers = routed(fitness, self.percentiles if len(self.models) > 1 else [])
        calls: list[Any] = []
        for slot, (group, tier) in enumerate(zip(groups, tiers, strict=True)):
            answers = [found[place] for place in group]
            model = self.models[len(self.models) - 1 - tier]
            if self.lite and model == self.models[0] and None not in answers and _agree(session, answers):
                calls.append(_kept(population[session.random(f"loop{loop}", slot, "lite").choice(group)]))
            else:
                calls.append(recombined(session, conversation, population, loop, slot, group, model))
        return await until_spent(calls)

    async def _scored(self, session: Session, population: Sequence[Reply]) -> tuple[Sequence[Reply], bool]:
        """The members with the log-probabilities that are compared, and whether a budget ended that."""
        if not self.scorer or len(self.models) == 1:
            return population, False
        most = self.score_letters or MOST_SCORED
        return await until_spent([session.scored(one, self.scorer, most=most) for one in population])

    def _fitness(
        self,
        session: Session,
        population: Sequence[Reply],
        found: Sequence[str | None],
        groups: Sequence[Group],
        loop: int,
    ) -> list[float]:
        if self.fitness == "random":
            return [session.random(f"loop{loop}", slot, "fitness").random() for slot in range(len(groups))]
        if self.fitness == "diversity":
            return [-float(_distinct(session, [found[place] for place in group])) for group in groups]
        scores = [SCORES[self.fitness](one) for one in population]
        return [sum(scores[place] for place in group) / len(group) for group in groups]


def routed(fitness: Sequence[float], percentiles: Sequence[float]) -> list[int]:
    """For every group its tier: 0 is the strongest model, `len(percentiles)` the cheapest.

    A group belongs to the first tier whose threshold it does not exceed.
    """
    values = np.asarray(fitness, dtype=np.float64)
    thresholds = [_threshold(values, percentile) for percentile in percentiles]
    return [sum(value > threshold for threshold in thresholds) for value in values]


def _threshold(values: np.ndarray, percentile: float) -> float:
    if percentile <= 0:
        return float(values.min()) - 1
    if percentile >= 100:
        return float(values.max()) + 1
    return float(np.percentile(values, percentile))


def _distinct(session: Session, answers: Sequence[str | None]) -> int:
    """How many answers; all that are missing count as one."""
    return len(clusters(session.answers, answers)) + (None in answers)


def _agree(session: Session, answers: Sequence[str | None]) -> bool:
    return _distinct(session, answers) == 1


async def _kept(member: Reply) -> Reply:
    return member
