"""Answer stability: a model that would answer the same three times in a row has thought enough.

    after `chunk` tokens, then `growth` times as many, and so on
        a copy of the text, up to its last blank line, is ended by force and asked for a short greedy trial answer
        `agree` equal trial answers in a row: the last of them is the answer

Trials do not enter the text that goes on. Distances grow, so that all pieces together read about growth / (growth - 1)
times the final text; doubling them would leave with three equal answers only at eight times the length at which the
answer was first there, so they grow by a quarter. Without `agree` it is the plain sample.
"""

from __future__ import annotations

import asyncio
import math
from typing import ClassVar

from pydantic import Field

from burnish.reason.calls import BudgetSpent, Conversation, Reply
from burnish.reason.session import Result, Session, clusters
from burnish.reason.strategies.base import Strategy
from burnish.reason.strategies.continuing import continued, cued, finished, raw

BORDERS = ("\n\n", "\n")
"""Where a step ends, best first."""


class Stability(Strategy):
    """Two calls for every look at the answer.

    Attributes:
        agree: equal trial answers in a row that end the thinking; 0 never ends it.
        chunk: tokens up to the first look.
        growth: of the distance from look to look.
        trial: tokens of a trial answer.
        budget: tokens of thinking, after which the answer is forced.
    """

    name: ClassVar[str] = "stability"
    agree: int = Field(3, ge=0)
    chunk: int = Field(64, ge=1)
    growth: float = Field(1.25, ge=1)
    trial: int = Field(32, ge=1)
    budget: int = Field(4096, ge=1)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("limit", "prefill") if self.agree else ()

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        reply: Reply | None = None
        text, trials, left, looks = "", [], self.budget, 0
        try:
            if not self.agree:
                reply = await session.sample(conversation, 0)
                return session.result(reply, [[reply]])
            while left > 0:
                length = min(left, math.ceil(self.chunk * self.growth**looks))
                reply = await continued(session, conversation, text, "chunk", looks, max_tokens=length)
                before, text = len(text), raw(reply, text)
                if not reply.cut:
                    return session.result(finished(reply, text))
                left -= max(1, length if reply.usage.unknown else reply.usage.completion)
                asked = cued(session, text[: border(text, before)])
                tried = await continued(
                    session, conversation, asked, "trial", looks, max_tokens=self.trial, temperature=0.0
                )
                trials.append(session.answers.extract(raw(tried, asked)))
                if await self._stable(session, trials) or left <= 0:
                    return session.result(finished(tried, raw(tried, asked)))
                looks += 1
        except BudgetSpent:
            return session.result(finished(reply, text) if reply else None, stopped="budget")
        raise AssertionError("the last look ends it")

    async def _stable(self, session: Session, trials: list[str | None]) -> bool:
        last = trials[-self.agree :]
        groups = await asyncio.to_thread(clusters, session.answers, last)
        return len(last) == self.agree and bool(groups) and len(groups[0]) == self.agree


def border(text: str, after: int) -> int:
    """Where the last step of what came after a place ends; the end of the text where no step ended."""
    return next((place for mark in BORDERS if (place := text.rfind(mark, after)) >= 0), len(text))
