"""Direct: the first plain sample. What every other strategy is measured against."""

from __future__ import annotations

from typing import ClassVar

from burnish.reason.calls import BudgetSpent, Conversation
from burnish.reason.session import Result, Session
from burnish.reason.strategies.base import Strategy


class Direct(Strategy):
    """One call."""

    name: ClassVar[str] = "direct"

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        try:
            reply = await session.sample(conversation, 0)
        except BudgetSpent:
            return session.result(None, stopped="budget")
        return session.result(reply, [[reply]])
