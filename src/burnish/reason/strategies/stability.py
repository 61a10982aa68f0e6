"""Stability: a model that would answer the same three times in a row has thought enough, or one that is sure.

    after `chunk` tokens, then `growth` times as many, and so on
        a copy of the text, up to its last blank line, is ended by force and asked for a short greedy trial answer
        it is the answer where `agree` of them in a row are equal,
            or exp(mean over its tokens of log p) > `sure`,
            or the text ends with the same words `circles` times in a row

The second is DEER, "Dynamic Early Exit in Reasoning Models", 2025, arXiv:2504.15895; a trial answer is then one line,
so that what follows it has no part in the mean. Trials do not enter the text that goes on. Distances grow, so that all
pieces together read about growth / (growth - 1) times the final text; doubling them would leave with three equal
answers only at eight times the length at which the answer was first there, so they grow by a quarter. Without any of
the three it is the plain sample.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any, ClassVar

from pydantic import Field

from burnish.reason.calls import BudgetSpent, Conversation, Reply
from burnish.reason.confidence import mean_logprob
from burnish.reason.session import Result, Session, clusters
from burnish.reason.strategies.base import Strategy
from burnish.reason.strategies.continuing import continued, cued, finished, raw

BORDERS = ("\n\n", "\n")
"""Where a step ends, best first."""


class Stability(Strategy):
    """Two calls for every look at the answer.

    Attributes:
        agree: equal trial answers in a row that end the thinking; 0 never ends it.
        sure: probability, the geometric mean over the tokens of a trial answer, above which it ends.
        circles: times in a row that the text must have said the same at its end for the answer to be forced.
        chunk: tokens up to the first look.
        growth: of the distance from look to look.
        trial: tokens of a trial answer.
        budget: tokens of thinking, after which the answer is forced.
    """

    name: ClassVar[str] = "stability"
    agree: int = Field(3, ge=0)
    sure: float | None = Field(None, gt=0, lt=1)
    circles: int | None = Field(None, ge=2)
    chunk: int = Field(64, ge=1)
    growth: float = Field(1.25, ge=1)
    trial: int = Field(32, ge=1)
    budget: int = Field(4096, ge=1)

    @property
    def needs(self) -> tuple[str, ...]:
        if not (self.agree or self.sure or self.circles):
            return ()
        return ("limit", "prefill", "stop", "logprobs") if self.sure else ("limit", "prefill")

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        reply: Reply | None = None
        text, trials, left, looks = "", [], self.budget, 0
        try:
            if not self.needs:
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
                tried = await continued(session, conversation, asked, "trial", looks, **self._trial)
                trials.append(session.answers.extract(raw(tried, asked)))
                forced = left <= 0 or bool(self.circles and circling(text, self.circles))
                if forced or self._sure(tried, trials[-1]) or await self._stable(session, trials):
                    return session.result(finished(tried, raw(tried, asked)))
                looks += 1
        except BudgetSpent:
            return session.result(finished(reply, text) if reply else None, stopped="budget")
        raise AssertionError("the last look ends it")

    @property
    def _trial(self) -> dict[str, Any]:
        """Fields of a trial answer."""
        fields: dict[str, Any] = {"max_tokens": self.trial, "temperature": 0.0}
        return fields | ({"stop": ["\n"], "logprobs": True} if self.sure else {})

    def _sure(self, tried: Reply, answer: str | None) -> bool:
        """An answer of no token is none."""
        if self.sure is None or answer is None or not tried.text.strip():
            return False
        return math.exp(mean_logprob(tried)) > self.sure

    async def _stable(self, session: Session, trials: list[str | None]) -> bool:
        if not self.agree:
            return False
        last = trials[-self.agree :]
        groups = await asyncio.to_thread(clusters, session.answers, last)
        return len(last) == self.agree and bool(groups) and len(groups[0]) == self.agree


def circling(text: str, times: int) -> bool:
    """Whether the text ends with the same words, three or more, so many times in a row."""
    words = text.split()
    for length in range(3, len(words) // times + 1):
        tail = words[-length:]
        if all(words[-length * (turn + 1) : -length * turn] == tail for turn in range(1, times)):
            return True
    return False


def border(text: str, after: int) -> int:
    """Where the last step of what came after a place ends; the end of the text where no step ended."""
    return next((place for mark in BORDERS if (place := text.rfind(mark, after)) >= 0), len(text))
