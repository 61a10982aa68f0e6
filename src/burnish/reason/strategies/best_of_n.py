"""Best-of-n: n samples, and the one with the best score.

Scores are the mean log-probability of the sample's tokens or its confidence, both from the generation itself, so that
no further call is made; or what a reward model of the run says of the conversation with the sample as its last turn,
one call for each; from Python any function of a reply, such as tests that a program must pass. Samples without an
answer are taken only where none has one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from burnish.core.errors import SettingsError
from burnish.reason.calls import Conversation, Reply
from burnish.reason.confidence import SCORES
from burnish.reason.session import Result, Session, until_spent
from burnish.reason.strategies.base import Strategy, several

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


class BestOfN(Strategy):
    """n calls, and n of the reward model where there is one.

    Attributes:
        n: samples.
        score: what is best.
        judge: the reward model, by its name in the run; it answers in chat completions, a number first of all.
        function: a score of a reply, in place of `score`; only from Python.
    """

    name: ClassVar[str] = "best-of-n"
    n: int = Field(16, ge=1)
    score: Literal["logprob", "confidence", "reward"] = "logprob"
    judge: str = ""
    function: Callable[[Reply], float] | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.score == "reward") != bool(self.judge):
            raise ValueError("score=reward and a reward model belong together: best-of-n(n=8,score=reward,judge=NAME)")
        return self

    @property
    def asks(self) -> tuple[str, ...]:
        return (self.judge,) if self.judge else ()

    @property
    def needs(self) -> tuple[str, ...]:
        scores = {"logprob": ("logprobs",), "confidence": ("logprobs", "alternatives"), "reward": ()}[self.score]
        return several(self.n) + (() if self.function else scores)

    async def __call__(self, conversation: Conversation, session: Session) -> Result:
        replies, spent = await until_spent([session.sample(conversation, slot) for slot in range(self.n)])
        scores, short = await self._scores(conversation, session, replies)
        places = range(len(scores))  # a sample that a budget left without its score is none that can be best
        ranked = sorted(places, key=lambda i: (session.extract(replies[i]) is not None, scores[i]), reverse=True)
        chosen = replies[ranked[0]] if ranked else next(iter(replies), None)
        return session.result(chosen, [replies], stopped="budget" if spent or short else "")

    async def _scores(
        self, conversation: Conversation, session: Session, replies: Sequence[Reply]
    ) -> tuple[list[float], bool]:
        """Of the replies from the first on, and whether a budget ended them early."""
        if self.function or not self.judge:
            score = self.function or SCORES[self.score]
            return [score(one) for one in replies], False
        said, spent = await until_spent([self._reward(conversation, session, *one) for one in enumerate(replies)])
        return ([], True) if spent else (said, False)

    async def _reward(self, conversation: Conversation, session: Session, slot: int, reply: Reply) -> float:
        turns = [*conversation, {"role": "assistant", "content": reply.text}]
        said = await session.own(turns, "reward", slot, model=self.judge, max_tokens=32, temperature=0.0)
        found = _NUMBER.search(said.text)
        if found is None:
            shown = " ".join(said.text.split())[:60]
            raise SettingsError(
                f"said {shown!r}, which is no reward", where=f"model '{self.judge}'", fix="name a reward model"
            )
        return float(found[0])
