"""Generative self-aggregation: n samples, then one call that reads them and writes a better answer.

    y_1 .. y_n ~ p(. | x),   y* ~ p(. | x, y_1 .. y_n)

"LLMs Can Generate a Better Answer by Aggregating Their Own Responses", 2025, arXiv:2503.04104. The last call is not
asked to judge, to rank or to pick, so the method works where votes cannot be counted. The paper's prompts were not
published; the words are ours. Candidates stand in an order drawn for the problem, without what was thought before them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from burnish.reason.calls import BudgetSpent, Conversation
from burnish.reason.session import Result, Session, until_spent
from burnish.reason.strategies.base import Strategy, aggregated, several


class GSA(Strategy):
    """n + 1 calls; one for n = 0, which is direct.

    Attributes:
        n: samples that are read.
        shortcut: `consensus` leaves the last call out where all samples give one answer.
        temperature: of the last call; None for that of the samples.
        max_candidate_chars: longer candidates lose their middle.
    """

    name: ClassVar[str] = "gsa"
    n: int = Field(4, ge=0)
    shortcut: Literal["", "consensus"] = ""
    temperature: float | None = Field(0.7, ge=0)
    max_candidate_chars: int | None = Field(None, ge=16)

    @property
    def needs(self) -> tuple[str, ...]:
        return several(self.n)

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        replies, spent = await until_spent([session.sample(conversation, slot) for slot in range(max(self.n, 1))])
        if spent or self.n == 0:
            return session.result(next(iter(replies), None), [replies], stopped="budget" if spent else "")
        groups = await session.clusters(replies)
        if self.shortcut == "consensus" and groups and len(groups[0]) == len(replies):
            return session.result(replies[0], [replies])
        shown = session.random("order").sample(replies, len(replies))
        warmth = {} if self.temperature is None else {"temperature": self.temperature}
        try:
            final = await aggregated(
                session, conversation, shown, "aggregate", prompt="gsa", limit=self.max_candidate_chars, **warmth
            )
        except BudgetSpent:
            return session.result(replies[0], [replies], stopped="budget")
        return session.result(final, [replies, [final]])
