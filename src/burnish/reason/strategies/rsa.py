"""Recursive self-aggregation: a population of n answers, each rewritten from k of them, loop after loop.

    P_1 = n samples of p(. | x)
    P_{t+1} = { tau_i ~ p(. | x, S_i) : i = 1..n },   S_i = k distinct members of P_t, uniform, independent over i

"Recursive Self-Aggregation Unlocks Deep Thinking in Large Language Models", 2025, arXiv:2509.26626. `loops` counts
populations. The answer is the majority of the last one, or a member drawn from it, whose accuracy is the population's
mean (what the paper reports). k = 1 is refinement and has words of its own. A slot asks as soon as its k candidates are
there in ascending order of slots, so that prefixes are shared; all slots of a loop read the whole population's draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from burnish.reason.calls import Conversation, Reply
from burnish.reason.session import Result, Session, until_spent
from burnish.reason.strategies.base import Strategy, aggregated, several

Group = tuple[int, ...]


class RSA(Strategy):
    """n * loops calls.

    Attributes:
        n: members of a population.
        k: of which each is made.
        loops: populations; 1 is sampling alone.
        answer: of the last population, `majority` or `uniform`.
    """

    name: ClassVar[str] = "rsa"
    n: int = Field(16, ge=1)
    k: int = Field(4, ge=1)
    loops: int = Field(10, ge=1)
    answer: Literal["majority", "uniform"] = "majority"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.k > self.n:
            raise ValueError(f"k is {self.k}, but a population has only n = {self.n} members")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        return several(self.n)

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        population, spent = await until_spent([session.sample(conversation, slot) for slot in range(self.n)])
        loops = [population]
        for loop in range(2, self.loops + 1):
            if spent:
                break
            groups = drawn_groups(session, loop, self.n, self.k, len(population))
            calls = [recombined(session, conversation, population, loop, i, group) for i, group in enumerate(groups)]
            members, spent = await until_spent(calls)
            if not spent:
                population = members
                loops.append(population)
        return await answered(session, loops, self.answer, spent=spent)


def drawn_groups(session: Session, loop: int, num: int, size: int, of: int) -> list[Group]:
    """For every slot the places of its candidates, ascending."""
    draws = (session.random(f"loop{loop}", slot).sample(range(of), size) for slot in range(num))
    return [tuple(sorted(draw)) for draw in draws]


async def recombined(
    session: Session,
    conversation: Conversation,
    population: Sequence[Reply],
    loop: int,
    slot: int,
    group: Group,
    model: str | None = None,
) -> Reply:
    """The next member of a slot."""
    prompt = "rsa" if len(group) > 1 else "rsa_single"
    candidates = [population[place] for place in group]
    return await aggregated(session, conversation, candidates, f"loop{loop}", slot, prompt=prompt, model=model)


async def answered(session: Session, loops: Sequence[Sequence[Reply]], answer: str, *, spent: bool) -> Result:
    """The answer of the last population."""
    last, stopped = loops[-1], "budget" if spent else ""
    if not last:
        return session.result(None, stopped=stopped)
    if answer == "uniform":
        return session.result(session.random("answer").choice(last), loops, stopped=stopped)
    groups = await session.clusters(last)
    return session.result(last[groups[0][0]] if groups else last[0], loops, stopped=stopped)
