"""What a strategy sees: a conversation's calls by name, chance that follows from names, and the bill.

Plain samples have paths without a strategy, `PROBLEM/sample/3`: best-of-n, self-consistency, GSA and RSA of one run ask
for the same ones. Each of them is charged in full, all are paid once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from burnish.reason.calls import BudgetSpent, ContextExceeded, Conversation, Reply, Usage, derived_number
from burnish.reason.pool import Pool

MOST_SCORED = 32_768
"""Letters of a text that is scored: a server holds the logits of all its tokens at a time."""


class Answers(Protocol):
    """How an answer is found and compared, as in `burnish.verify`. A strategy never sees the right one."""

    def extract(self, text: str) -> str | None: ...

    def equivalent(self, first: str, second: str) -> bool: ...


class Texts:
    """For conversations without a task: the whole text is the answer."""

    def extract(self, text: str) -> str | None:
        return text.strip() or None

    def equivalent(self, first: str, second: str) -> bool:
        return first == second


@dataclass(frozen=True)
class Result:
    """What a strategy says.

    Attributes:
        text: the answer as a reader sees it; empty where nothing was had.
        answer: what is found in it.
        used: tokens that the strategy used, by model.
        loops: texts of each population, in order.
        stopped: "budget" where it ended early, else empty.
        notes: what a reader should know, such as a candidate that was dropped.
        populations: the replies of which `loops` has the texts.
    """

    text: str
    answer: str | None
    used: Mapping[str, Usage]
    loops: tuple[tuple[str, ...], ...] = ()
    stopped: str = ""
    notes: tuple[str, ...] = ()
    populations: tuple[tuple[Reply, ...], ...] = field(default=(), repr=False)


@dataclass
class Session:
    """One strategy on one conversation.

    Attributes:
        pool: of calls.
        problem: the first part of every path.
        node: the strategy's own part, such as `rsa(n=8,k=4,loops=3)`.
        answers: of the task.
        model: of plain samples and of all where nothing is said; the pool's first where None.
        fields: sampling fields of every call.
        prompts: texts in place of ours, by name.
        plain: the plain samples that were had, by model and slot.
    """

    pool: Pool
    problem: str
    node: str
    answers: Answers = field(default_factory=Texts)
    model: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    plain: dict[str, dict[int, Reply]] = field(default_factory=dict)
    _used: dict[str, Reply] = field(default_factory=dict)
    _asked: dict[str, tuple[str, Conversation]] = field(default_factory=dict)

    async def sample(self, conversation: Conversation, slot: int, *, model: str | None = None, **fields: Any) -> Reply:
        """The plain sample of a slot, shared by all strategies."""
        reply = await self._call(f"{self.problem}/sample/{slot}", conversation, model, fields)
        self.plain.setdefault(reply.endpoint, {})[slot] = reply
        return reply

    async def samples(
        self, conversation: Conversation, num: int, *, model: str | None = None, **fields: Any
    ) -> list[Reply]:
        """The first plain samples, all at a time."""
        return await gathered([self.sample(conversation, slot, model=model, **fields) for slot in range(num)])

    async def own(self, conversation: Conversation, *names: object, model: str | None = None, **fields: Any) -> Reply:
        """A call of this strategy alone, by its names, such as ("loop2", 5)."""
        path = "/".join([self.problem, self.node, *map(str, names)])
        return await self._call(path, conversation, model, fields)

    async def scored(self, reply: Reply, by: str, *, most: int = MOST_SCORED) -> Reply:
        """The reply with log-probabilities of model `by`: its own where it has written it, without a call.

        What another model has written is read once by `by`, as an answer to the conversation that it answers. The path
        is that of the reply's own call, so that strategies share it.

        Args:
            most: letters; a longer text is scored up to there, and noted.
        """
        judge = self.pool.endpoint(by)
        if reply.endpoint == judge.called:
            return reply
        path, conversation = self._asked[reply.key]
        text = reply.whole
        if len(text) > most:
            self.notes.append(f"answers of more than {most:,} letters were scored by their beginning")
            text = text[:most]
        tops = int(judge.sampling.get("top_logprobs") or 0)
        turns = [*conversation, {"role": "assistant", "content": text}]
        score = await self.pool.score(by, turns, f"{path}/score", tops)
        self._used[score.key] = score
        return replace(reply, logprobs=score.logprobs)

    def random(self, *names: object) -> random.Random:
        """Chance that depends on the run's seed and on names, and on no order of events."""
        return random.Random(derived_number(self.pool.seed, self.problem, self.node, *names))

    def extract(self, reply: Reply) -> str | None:
        """The answer of a reply. One that was cut while it was still thinking has none."""
        return self.answers.extract(reply.text) if reply.text else None

    async def clusters(self, replies: Sequence[Reply]) -> list[list[int]]:
        """Places of equal answers, the largest first and then by first place; replies without answer are in none."""
        return await asyncio.to_thread(clusters, self.answers, [self.extract(reply) for reply in replies])

    def result(self, reply: Reply | None, loops: Sequence[Sequence[Reply]] = (), *, stopped: str = "") -> Result:
        """The bill and the answer."""
        used: dict[str, Usage] = {}
        for one in self._used.values():
            used[one.endpoint] = used.get(one.endpoint, Usage()) + one.usage
        texts = tuple(tuple(one.text for one in population) for population in loops)
        text, answer = (reply.text, self.extract(reply)) if reply else ("", None)
        populations = tuple(tuple(population) for population in loops)
        return Result(text, answer, used, texts, stopped, tuple(dict.fromkeys(self.notes)), populations)

    async def _call(self, path: str, conversation: Conversation, model: str | None, fields: Mapping[str, Any]) -> Reply:
        reply = await self.pool.call(model or self.model, conversation, path, {**self.fields, **fields})
        self._used[reply.key], self._asked[reply.key] = reply, (path, conversation)
        return reply


def clusters(answers: Answers, found: Sequence[str | None]) -> list[list[int]]:
    """Places of equal answers: each answer joins the first cluster whose first member it equals."""
    groups: list[list[int]] = []
    for place, answer in enumerate(found):
        if answer is None:
            continue
        for group in groups:
            first = found[group[0]]
            if first is not None and (first == answer or answers.equivalent(first, answer)):
                group.append(place)
                break
        else:
            groups.append([place])
    return sorted(groups, key=lambda group: (-len(group), group[0]))


async def gathered(calls: Sequence[Any]) -> list[Any]:
    """Waits for all, in order; when one fails, the others are ended and its error is raised."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def until_spent(calls: Sequence[Any]) -> tuple[list[Any], bool]:
    """What the calls give, in order, and whether a budget ended some of them; those are left out."""
    found = await asyncio.gather(*calls, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, BudgetSpent):
            raise one
    kept = [one for one in found if not isinstance(one, BaseException)]
    return kept, len(kept) < len(found)


__all__ = ["Answers", "ContextExceeded", "Result", "Session", "Texts", "clusters", "gathered", "until_spent"]
