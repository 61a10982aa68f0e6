"""Best-of-n: n samples, and the one with the best score.

Scores are the mean log-probability of the sample's tokens or its confidence, both from the generation itself, so that
no further call is made; from Python any function of a reply, such as tests that a program must pass. Samples without an
answer are taken only where none has one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field

from burnish.reason.calls import Conversation, Reply
from burnish.reason.confidence import SCORES
from burnish.reason.session import Result, Session, until_spent
from burnish.reason.strategies.base import Strategy, several


class BestOfN(Strategy):
    """n calls.

    Attributes:
        n: samples.
        score: what is best.
        function: a score of a reply, in place of `score`; only from Python.
    """

    name: ClassVar[str] = "best-of-n"
    n: int = Field(16, ge=1)
    score: Literal["logprob", "confidence"] = "logprob"
    function: Callable[[Reply], float] | None = Field(None, exclude=True)

    @property
    def needs(self) -> tuple[str, ...]:
        scores = {"logprob": ("logprobs",), "confidence": ("logprobs", "alternatives")}[self.score]
        return several(self.n) + (() if self.function else scores)

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        replies, spent = await until_spent([session.sample(conversation, slot) for slot in range(self.n)])
        score = self.function or SCORES[self.score]
        ranked = sorted(replies, key=lambda one: (session.extract(one) is not None, score(one)), reverse=True)
        return session.result(next(iter(ranked), None), [replies], stopped="budget" if spent else "")
