"""Universal self-consistency: n samples, and the model names the one that agrees most with the others.

Chen et al., 2023, arXiv:2311.17311. For tasks whose answers cannot be compared by a rule. A reply that names no sample
means the first.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field

from burnish.reason import prompts
from burnish.reason.calls import BudgetSpent, Conversation
from burnish.reason.session import Result, Session, until_spent
from burnish.reason.strategies.base import Strategy, several


class UniversalSelfConsistency(Strategy):
    """n + 1 calls.

    Attributes:
        n: samples.
    """

    name: ClassVar[str] = "universal-self-consistency"
    n: int = Field(8, ge=1)

    @property
    def needs(self) -> tuple[str, ...]:
        return several(self.n)

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        replies, spent = await until_spent([session.sample(conversation, slot) for slot in range(self.n)])
        if spent:
            return session.result(next(iter(replies), None), [replies], stopped="budget")
        text = session.prompts.get("universal") or prompts.ours("universal")
        question = prompts.appended(conversation, prompts.filled(text, [one.text for one in replies], "Response"))
        try:
            said = await session.own(question, "choose", temperature=0.0)
        except BudgetSpent:
            return session.result(replies[0], [replies], stopped="budget")
        return session.result(replies[named(said.text, self.n)], [replies])


def named(text: str, num: int) -> int:
    """The place that a reply names, 0 where it names none of them."""
    found = [int(digits) - 1 for digits in re.findall(r"[Rr]esponse\s*#?(\d+)", text)] or [
        int(digits) - 1 for digits in re.findall(r"\d+", text)
    ]
    return found[-1] if found and 0 <= found[-1] < num else 0
