"""Self-refine: an answer, improved by its own writer, again and again.

After Madaan et al., 2023, arXiv:2303.17651, in its shortest form: each call reads the task and the last answer and
writes a better one; no separate feedback is asked for. It is RSA with n = k = 1.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from burnish.reason.calls import BudgetSpent, Conversation, Reply
from burnish.reason.session import Result, Session
from burnish.reason.strategies.base import Strategy, aggregated


class SelfRefine(Strategy):
    """`loops` calls.

    Attributes:
        loops: answers, the first among them.
    """

    name: ClassVar[str] = "self-refine"
    loops: int = Field(3, ge=1)

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        answers: list[Reply] = []
        stopped = ""
        try:
            answers.append(await session.sample(conversation, 0))
            for loop in range(2, self.loops + 1):
                names = ("refine", loop)
                answers.append(await aggregated(session, conversation, answers[-1:], *names, prompt="refine"))
        except BudgetSpent:
            stopped = "budget"
        return session.result(answers[-1] if answers else None, [[one] for one in answers], stopped=stopped)
