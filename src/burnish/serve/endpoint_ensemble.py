"""Schemble over models behind OpenAI-compatible servers: who is asked what, until when.

The plan is that of `burnish.serve.ensemble`. What differs where members answer in words:

* **Outputs.** The answers to one question are its classes: whatever the reader takes for the same is one class, and no
  answer is class 0. A member's output is 1 at its class. In votes a member weighs as often as it was right on the
  validation set, (right + 1) / (asked + 2), and class 0 weighs nothing.
* **Times** are not constant: t_k is the `quantile` of the last thousand times that the member took, those of
  cancelled calls as long as they lasted (they would have taken longer). A call under way that is over its time is
  expected to take as long again as it is over it, so that a server which hangs is not taken for one that is free.
* **Places.** A member that serves c questions at a time is planned as one that takes the next after t_k / c.
* **The deadline is kept**: at it the answer is the vote of the members that have answered, and calls still under way
  for it are cancelled. A question that no plan has room for waits for a better plan, until its deadline.
* **Members fail**: one that gives no answer is left out for that question, and the rest is planned anew; one that is
  not there, or says that it is busy, is in no plan for a second, then for two and so on up to a minute.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int

from burnish.core import interrupts
from burnish.core.errors import DataError, EngineError, MissingExtraError, SettingsError
from burnish.serve.ensemble import CAP, Query, Regression, Schemble, check_times
from burnish.serve.members import AnswerReader, EnsembleMember, MemberError, MemberUsage, WholeText, ask_member
from burnish.serve.policies.laws import Law

LONGEST_REST = 60.0
"""Seconds for which a member that is away is asked nothing, at most."""


@dataclass
class Answered:
    """What came of a question.

    Attributes:
        answer: by the vote; None where nobody had one in time.
        texts: of the members that answered in time, by their place.
        failed: members that gave no answer, by their place, and why.
        seconds: from the question to the answer.
    """

    answer: str | None
    texts: dict[int, str]
    failed: dict[int, str]
    seconds: float

    @property
    def is_missed(self) -> bool:
        """Whether no member had answered at the deadline."""
        return not self.texts


@dataclass
class EndpointRun:
    """What came of many questions.

    Attributes:
        answered: one for each.
        usage: of each member, of these questions.
    """

    answered: list[Answered]
    usage: list[MemberUsage]

    @property
    def missed(self) -> float:
        """Share of questions that nobody had answered at their deadline."""
        return float(np.mean([one.is_missed for one in self.answered]))

    def accuracy(self, answers: Sequence[str], reader: AnswerReader) -> float:
        """Share of questions with the right answer at their deadline."""
        right = [_same(reader, one.answer, answer) for one, answer in zip(self.answered, answers, strict=True)]
        return float(np.mean(right))


def text_features(questions: Sequence[str]) -> Float[np.ndarray, "questions features"]:
    """Cheap ones: log(1 + number) of characters, words, digits and lines."""
    counts = [[len(q), len(q.split()), sum(c.isdigit() for c in q), q.count("\n")] for q in questions]
    return np.log1p(np.array(counts, dtype=float))


class EndpointSchemble:
    """An ensemble whose members are models behind servers.

    Args:
        members: at most eight.
        reader: finds the answer in a text, as a verifier of `burnish.verify` does; the whole text where none is given.
        features: of questions, for the forecast of their difficulty.
        quantile: of a member's times that plans count with.
        num_bins, regression, eps, cap, most: see `Schemble`.
    """

    def __init__(
        self,
        members: Sequence[EnsembleMember],
        *,
        reader: AnswerReader | None = None,
        features: Callable[[Sequence[str]], np.ndarray] = text_features,
        quantile: float = 0.9,
        num_bins: int = 8,
        regression: Regression | None = None,
        eps: float = 0.01,
        cap: int | None = CAP,
        most: int = 12,
    ) -> None:
        if not 0 < quantile < 1:
            raise SettingsError(f"is {quantile}", where="quantile", fix="give a share between 0 and 1")
        self.members, self.reader, self.features, self.quantile = (
            list(members),
            reader or WholeText(),
            features,
            quantile,
        )
        options = {"num_bins": num_bins, "regression": regression, "eps": eps, "cap": cap, "most": most}
        self.planner = Schemble(self.members, [1.0] * len(self.members), **options)
        self.laws = [Law() for _ in self.members]
        self.weights = np.ones(len(self.members))
        self.usage = [MemberUsage() for _ in self.members]

    def fit(self, questions: Sequence[str], answers: Sequence[str]) -> Self:
        """Asks every member every question of a validation set, as many at a time as it has places.

        Raises:
            DataError: fewer than two questions, or not one right answer for each.
            EngineError: a member answered none of them.
            MissingExtraError: aiohttp is not installed.
        """
        if len(questions) < 2 or len(questions) != len(answers):
            what = f"{len(questions)} questions and {len(answers)} answers"
            raise DataError(what, where="fit", fix="give two questions or more, and the right answer of each")
        interrupts.run(self._fit(questions, answers))
        return self

    async def _fit(self, questions: Sequence[str], answers: Sequence[str]) -> None:
        async with self.session() as session:
            texts = await asyncio.gather(*(session.everything(k, questions) for k in range(len(self.members))))
        self.fit_texts(questions, texts, answers)

    def fit_texts(
        self, questions: Sequence[str], texts: Sequence[Sequence[str | None]], answers: Sequence[str]
    ) -> None:
        """The same from what the members have said: texts by member and question, None where there is none."""
        outputs, labels = outputs_of(self.reader, texts, answers)
        right = outputs.argmax(2) == labels
        self.weights = (right.sum(1) + 1) / (len(questions) + 2)
        votes = outputs * self.weights[:, None, None]
        votes[:, :, 0] = 0
        self.planner.fit_outputs(self.features(questions), outputs, labels, votes)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[EnsembleSession]:
        """Within it questions are asked; those that are open at its end are cancelled.

        Raises:
            MissingExtraError: aiohttp is not installed.
        """
        try:
            import aiohttp
        except ImportError:
            raise MissingExtraError("aiohttp", "serve", "asking an ensemble of endpoints") from None
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(sock_connect=30)) as http:
            made = EnsembleSession(self, http)
            try:
                yield made
            finally:
                await made.close()

    def serve(self, questions: Sequence[str], arrivals: Sequence[float], deadlines: Sequence[float]) -> EndpointRun:
        """Asks questions at their times, in seconds from now on, on the real clock.

        Raises:
            DataError: not one arrival and one deadline for each question, or one that is no time.
        """
        check_times(arrivals, deadlines, len(questions))
        return interrupts.run(self._serve(questions, arrivals, deadlines))

    async def _serve(
        self, questions: Sequence[str], arrivals: Sequence[float], deadlines: Sequence[float]
    ) -> EndpointRun:
        before = [replace(one) for one in self.usage]
        async with self.session() as session:
            began = session.now

            async def one(question: str, arrival: float, deadline: float) -> Answered:
                await asyncio.sleep(began + arrival - session.now)
                return await session.ask(question, began + deadline - session.now)

            answered = await asyncio.gather(*map(one, questions, arrivals, deadlines))
        return EndpointRun(answered, [now - then for now, then in zip(self.usage, before, strict=True)])

    def took(self, member: int, seconds: float) -> None:
        """A call of a member has taken so long."""
        law, places = self.laws[member], self.members[member].places
        law.add(seconds)
        self.planner.times[member] = max(1e-6, law.quantiles([self.quantile])[0])
        self.planner.spacing[member] = self.planner.times[member] / places

    def vote(self, texts: dict[int, str]) -> str | None:
        """The answer with the largest weight among members' texts, the first of equals."""
        groups: list[tuple[str, float]] = []
        for member in sorted(texts):
            answer = self.reader.extract(texts[member])
            if answer is None:
                continue
            place = next((n for n, (one, _) in enumerate(groups) if self.reader.equivalent(one, answer)), None)
            if place is None:
                groups.append((answer, float(self.weights[member])))
            else:
                groups[place] = (groups[place][0], groups[place][1] + float(self.weights[member]))
        return max(groups, key=lambda group: group[1])[0] if groups else None


@dataclass(eq=False)
class _Open:
    """A question that is there."""

    question: str
    query: Query
    due: asyncio.Future[None]
    texts: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    calls: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    lost: int = 0  # members that gave it nothing


class EnsembleSession:
    """Questions to an ensemble, planned together; of `EndpointSchemble.session`."""

    def __init__(self, ensemble: EndpointSchemble, http: Any) -> None:
        self.ensemble, self._http, self._loop = ensemble, http, asyncio.get_running_loop()
        num = len(ensemble.members)
        self._present: list[_Open] = []
        self._working: list[dict[_Open, float]] = [{} for _ in range(num)]
        self._away, self._rests = [0.0] * num, [0.0] * num
        self._number = 0

    @property
    def now(self) -> float:
        return self._loop.time()

    async def everything(self, member: int, questions: Sequence[str]) -> list[str | None]:
        """What a member answers to each question; None where it gives none.

        Raises:
            EngineError: none to any.
        """
        places, why = asyncio.Semaphore(self.ensemble.members[member].places), ""

        async def one(question: str) -> str | None:
            nonlocal why
            async with places:
                began = self.now
                try:
                    text = await self._call(member, question)
                except MemberError as error:
                    why = error.what
                    return None
                self.ensemble.took(member, self.now - began)
                return text

        texts = await asyncio.gather(*map(one, questions))
        if all(text is None for text in texts):
            where = self.ensemble.members[member].called
            raise EngineError(f"answered no question ({why})", where=where, fix="see its log")
        return list(texts)

    async def _call(self, member: int, question: str) -> str:
        return await ask_member(self._http, self.ensemble.members[member], question, self.ensemble.usage[member])

    async def ask(self, question: str, within: float = math.inf) -> Answered:
        """The ensemble's answer, after so many seconds at the latest."""
        now, ensemble = self.now, self.ensemble
        bin_ = int(ensemble.planner.bins(ensemble.features([question]))[0])
        self._number += 1
        one = _Open(question, Query(self._number, now + within, bin_), self._loop.create_future())
        self._present.append(one)
        self._present.sort(key=lambda other: (other.query.deadline, other.query.number))
        timer = self._loop.call_at(one.query.deadline, self._give, one) if math.isfinite(within) else None
        try:
            self._plan()
            await one.due
            return Answered(ensemble.vote(one.texts), dict(one.texts), dict(one.failed), self.now - now)
        finally:
            if timer:
                timer.cancel()
            self._leave(one)

    async def close(self) -> None:
        calls = [call for one in self._present for call in one.calls.values()]
        for one in list(self._present):
            one.due.cancel()
            self._leave(one)
        await asyncio.gather(*calls, return_exceptions=True)

    # -- plans -----------------------------------------------------------------------------------------------------

    def _free(self, member: int) -> float:
        """When a member is expected to take a question."""
        now, working = self.now, self._working[member]
        if len(working) < self.ensemble.members[member].places:
            return now
        taken = self.ensemble.planner.times[member]
        return max(now, min(max(began + taken, 2 * now - began - taken) for began in working.values()))

    def _plan(self) -> None:
        present, planner = self._present, self.ensemble.planner
        if not present:
            return
        free = [self._free(member) for member in range(len(self._away))]
        away = sum(1 << member for member, until in enumerate(self._away) if until > self.now)
        for one in present:
            one.query.failed = one.lost | away & ~one.query.begun
        for one, subset in zip(present, planner.choose([one.query for one in present], free), strict=True):
            one.query.chosen = subset | one.query.begun
        for member, places in enumerate(one.places for one in self.ensemble.members):
            wanting = (one for one in present if one.query.chosen & ~one.query.begun & 1 << member)
            while not away >> member & 1 and len(self._working[member]) < places:
                if (one := next(wanting, None)) is None:
                    break
                self._begin(one, member)
        whole = (1 << len(self._away)) - 1
        for one in [one for one in present if one.query.ended == one.query.chosen == one.query.begun]:
            if one.query.ended or one.lost == whole:
                self._give(one)

    def _begin(self, one: _Open, member: int) -> None:
        one.query.begun |= 1 << member
        one.query.ends = max(one.query.ends, self.now + self.ensemble.planner.times[member])
        self._working[member][one] = self.now
        one.calls[member] = self._loop.create_task(self._run(one, member))

    async def _run(self, one: _Open, member: int) -> None:
        bit, began = 1 << member, self.now
        try:
            one.texts[member] = await self._call(member, one.question)
            one.query.ended |= bit
            self._rests[member] = 0.0
            self.ensemble.took(member, self.now - began)
        except MemberError as error:
            one.failed[member] = error.what
            one.query.begun &= ~bit
            one.lost |= bit
            if error.is_away:
                self._rest(member)
        except asyncio.CancelledError:
            if self.now - began > self.ensemble.planner.times[member]:
                self.ensemble.took(member, self.now - began)
            raise
        finally:
            self._working[member].pop(one, None)
            one.calls.pop(member, None)
        self._plan()

    def _rest(self, member: int) -> None:
        """A member is away: it is looked at again after a while."""
        self._rests[member] = min(LONGEST_REST, max(1.0, 2 * self._rests[member]))
        self._away[member] = self.now + self._rests[member]
        self._loop.call_at(self._away[member], self._plan)

    def _give(self, one: _Open) -> None:
        """The answer of those members that have answered."""
        if not one.due.done():
            one.due.set_result(None)
        self._leave(one)

    def _leave(self, one: _Open) -> None:
        """Nobody waits for a question any more: its calls end, and others have their places."""
        if one not in self._present:
            return
        self._present.remove(one)
        for member, call in list(one.calls.items()):
            self._working[member].pop(one, None)
            call.cancel()
        self._loop.call_soon(self._plan)


def outputs_of(
    reader: AnswerReader, texts: Sequence[Sequence[str | None]], answers: Sequence[str]
) -> tuple[Float[np.ndarray, "models questions classes"], Int[np.ndarray, " questions"]]:
    """Answers in words as outputs over classes that each question has for itself, and the class of the right answer.

    Class 0 is no answer; the last one in use is the right answer where no member gave it.
    """
    num_models, num = len(texts), len(answers)
    outputs, labels = np.zeros((num_models, num, num_models + 2)), np.zeros(num, dtype=int)
    for question in range(num):
        seen: list[str] = []
        for model in range(num_models):
            text = texts[model][question]
            answer = None if text is None else reader.extract(text)
            outputs[model, question, 0 if answer is None else _place(reader, seen, answer)] = 1
        labels[question] = _place(reader, seen, answers[question])
    return outputs, labels


def _place(reader: AnswerReader, seen: list[str], answer: str) -> int:
    """The class of an answer among those seen, which it joins; from 1 on."""
    for number, other in enumerate(seen, start=1):
        if reader.equivalent(other, answer):
            return number
    seen.append(answer)
    return len(seen)


def _same(reader: AnswerReader, given: str | None, right: str) -> bool:
    return given is not None and reader.equivalent(given, right)
