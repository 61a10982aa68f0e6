"""Self-consistency: n samples, and the answer that most of them give.

Wang et al., 2022, arXiv:2203.11171. Votes are for answers, compared by the task's `equivalent`, not for texts; a sample
without an answer has no vote; of equal numbers the earlier answer wins. `early` stops asking as soon as the first
answer leads the second by more votes than are still to come: the outcome is that of all n.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from burnish.reason.calls import Conversation, Reply
from burnish.reason.session import Result, Session, until_spent
from burnish.reason.strategies.base import Strategy, several


class SelfConsistency(Strategy):
    """n calls, or fewer with `early`.

    Attributes:
        n: samples.
        early: samples asked for at a time; 0 asks for all at once.
    """

    name: ClassVar[str] = "self-consistency"
    n: int = Field(16, ge=1)
    early: int = Field(0, ge=0)

    @property
    def needs(self) -> tuple[str, ...]:
        return several(self.n)

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        replies: list[Reply] = []
        groups: list[list[int]] = []
        spent, step = False, self.early or self.n
        while len(replies) < self.n and not spent:
            slots = range(len(replies), min(len(replies) + step, self.n))
            found, spent = await until_spent([session.sample(conversation, slot) for slot in slots])
            replies += found
            groups = await session.clusters(replies)
            sizes = [len(group) for group in groups] + [0, 0]
            if sizes[0] - sizes[1] > self.n - len(replies):
                break
        chosen = replies[groups[0][0]] if groups else next(iter(replies), None)
        return session.result(chosen, [replies], stopped="budget" if spent else "")
