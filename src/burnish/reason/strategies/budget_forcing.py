"""Budget forcing: thinking ends after so many tokens, and an early end is sent on.

    think     at most `budget` tokens
    go on     an end that came by itself is replaced by "Wait,", `more` times, each time for at most `chunk` tokens
    answer    what was cut gets the end of its think block and "Final answer:", and at most `answer` tokens

so that a text has at most budget + more * chunk + answer tokens. After s1, "Simple test-time scaling", 2025,
arXiv:2501.19393, through an endpoint instead of a sampler. Without a budget and without more it is the plain sample.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from burnish.reason.calls import BudgetSpent, Conversation
from burnish.reason.session import Result, Session
from burnish.reason.strategies.base import Strategy
from burnish.reason.strategies.continuing import continued, finished, forced, raw, reopened


class BudgetForcing(Strategy):
    """At most 2 + more calls.

    Attributes:
        budget: tokens of thinking; 0 is no limit but the server's own.
        more: times that an early end is sent on.
        chunk: tokens of each of these times.
        answer: tokens of a forced answer.
    """

    name: ClassVar[str] = "budget-forcing"
    budget: int = Field(0, ge=0)
    more: int = Field(0, ge=0)
    chunk: int = Field(256, ge=1)
    answer: int = Field(64, ge=1)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("limit", "prefill") if self.budget or self.more else ()

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        reply, text = None, ""
        try:
            if not self.budget:
                reply = await session.sample(conversation, 0)
            else:
                reply = await session.own(conversation, "think", max_tokens=self.budget)
            if not self.needs:
                return session.result(reply, [[reply]])
            text = raw(reply)
            for turn in range(1, self.more + 1):
                if reply.cut:
                    break
                text = reopened(session, text)
                reply = await continued(session, conversation, text, "more", turn, max_tokens=self.chunk)
                text = raw(reply, text)
            reply, text = await forced(session, conversation, reply, text, most=self.answer)
        except BudgetSpent:
            return session.result(finished(reply, text) if reply else None, stopped="budget")
        return session.result(finished(reply, text))
