"""An ensemble whose members are models behind servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from burnish.core.errors import DataError, EngineError, SettingsError
from burnish.serve.endpoint_ensemble import EndpointSchemble, outputs_of
from burnish.serve.members import EnsembleMember
from burnish.verify.chains import ChainAnswer
from served import Behind

Says = Callable[[str], str]


def reply(text: Any, **usage: int) -> web.Response:
    return web.json_response({"choices": [{"message": {"content": text}}], "usage": usage or None})


class Model(Behind):
    """A server whose answer is a function of the question, after so many seconds for questions with `slow` in them."""

    def __init__(self, says: Says, slow: float = 0.0) -> None:
        self.asked: list[str] = []
        self.most = self.open = 0

        async def answer(request: web.Request) -> web.StreamResponse:
            question = json.loads(await request.read())["messages"][0]["content"]
            self.asked.append(question)
            self.open += 1
            self.most = max(self.most, self.open)
            try:
                await asyncio.sleep(slow if "slow" in question else 0.002)
            finally:
                self.open -= 1
            return reply(says(question), prompt_tokens=len(question), completion_tokens=2)

        super().__init__(answer)

    def member(self, **options: Any) -> EnsembleMember:
        return EnsembleMember(self.url, "model", **options)


def short(question: str) -> str:
    """Right on short questions alone: the answer is the length of the question."""
    return str(len(question)) if len(question) < 10 else "0"


def always(question: str) -> str:
    return str(len(question))


QUESTIONS = ["x" * n for n in (1, 2, 3, 4, 5, 12, 13, 14, 15, 16)] * 3
ANSWERS = [str(len(question)) for question in QUESTIONS]


def test_members_are_profiled_on_real_answers_and_what_they_used_is_counted():
    with Model(short) as small, Model(always) as large:
        ensemble = EndpointSchemble([small.member(), large.member()], num_bins=2).fit(QUESTIONS, ANSWERS)
        rewards = ensemble.planner.rewards
        assert (small.most, large.most) == (1, 1)
        assert sorted(small.asked) == sorted(QUESTIONS)
    assert ensemble.weights.tolist() == [pytest.approx(16 / 32), pytest.approx(31 / 32)]
    assert rewards[:, 2] == pytest.approx(1)
    assert rewards[0, 1] > 0.7  # what is short is easy
    assert rewards[1, 1] < 0.3
    for used in ensemble.usage:
        assert (used.calls, used.prompt_tokens, used.completion_tokens) == (30, sum(map(len, QUESTIONS)), 60)
        assert (used.unknown, used.cancelled, used.failed) == (0, 0, 0)


def fitted(stack: ExitStack, *models: Model, num_bins: int = 2, reader: Any = None) -> EndpointSchemble:
    made = [stack.enter_context(model).member() for model in models]
    return EndpointSchemble(made, num_bins=num_bins, reader=reader).fit(QUESTIONS, ANSWERS)


def on_short(question: str) -> str:
    return f"#{len(question)}" if len(question) < 10 else "?"


def on_long(question: str) -> str:
    return "?" if len(question) < 10 and question != "slow" else f"#{len(question)}"


def test_without_haste_all_members_that_help_are_asked_and_the_vote_answers():
    with ExitStack() as stack:
        ensemble = fitted(stack, Model(on_short), Model(on_long), reader=ChainAnswer())
        found = ensemble.serve(["x" * 14, "x" * 3], [0, 0], [9, 9])
    assert [one.answer for one in found.answered] == ["14", "3"]
    assert found.accuracy(["14", "4"], ChainAnswer()) == 0.5
    assert all(len(one.texts) in (1, 2) for one in found.answered)  # one bin may need one member alone


def test_a_late_member_is_cancelled_and_the_others_answer_at_the_deadline():
    with ExitStack() as stack:
        late = Model(on_long, slow=30)
        members = [stack.enter_context(Model(on_short)).member(), stack.enter_context(late).member()]
        ensemble = EndpointSchemble(members, reader=ChainAnswer(), num_bins=1).fit(QUESTIONS, ANSWERS)
        found = ensemble.serve(["slow"], [0], [0.5])
        for _ in range(200):
            if late.cancelled:
                break
            asyncio.run(asyncio.sleep(0.01))
        assert late.cancelled == 1
    (one,) = found.answered
    assert one.answer == "4"
    assert list(one.texts) == [0]
    assert found.usage[1].cancelled == found.usage[1].unknown == 1
    assert found.missed == 0
    assert ensemble.laws[1].sorted[-1] > 0.1  # it would have taken longer than what it was given


def test_a_question_whose_only_answer_is_late_is_missed():
    with ExitStack() as stack:
        ensemble = fitted(stack, Model(always, slow=30))
        found = ensemble.serve(["slow", "x"], [0, 0.1], [0.2, 9])
    assert [one.is_missed for one in found.answered] == [True, False]
    assert [one.answer for one in found.answered] == [None, "1"]


def test_who_gives_up_ends_the_calls_that_are_under_way():
    async def ask(ensemble: EndpointSchemble) -> None:
        async with ensemble.session() as session:
            waiting = asyncio.ensure_future(session.ask("slow"))
            await asyncio.sleep(0.2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            answered = await session.ask("x")
        assert answered.answer == "1"

    with ExitStack() as stack:
        ensemble = fitted(stack, Model(on_short, slow=30), Model(on_long, slow=30), reader=ChainAnswer(), num_bins=1)
        asyncio.run(ask(ensemble))
    assert [used.cancelled for used in ensemble.usage] == [1, 1]


def test_a_member_that_is_gone_is_left_out_and_rests():
    with ExitStack() as stack:
        gone = Model(always)
        with gone:
            made = [stack.enter_context(Model(short)).member(), gone.member()]
            ensemble = EndpointSchemble(made, num_bins=2).fit(QUESTIONS, ANSWERS)
        found = ensemble.serve(["xxx"] * 5, [0.05 * n for n in range(5)], [9] * 5)
    assert [one.answer for one in found.answered] == ["3"] * 5
    assert found.usage[1].failed == found.usage[1].unknown == 1
    assert "is not there" in found.answered[0].failed[1]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (web.Response(text="<html>"), "is not valid JSON"),
        (web.json_response({"choices": []}), "no answer"),
        (web.json_response({"choices": [{"message": {"content": None}}]}), "no answer"),
        (web.json_response([]), "no answer"),
        (web.Response(status=400, text="no"), "status 400"),
    ],
)
def test_members_that_answer_nothing_are_said_when_the_ensemble_is_fitted(answer: web.Response, told: str):
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=answer.body, status=answer.status, content_type=answer.content_type)

    with Behind(handler) as broken, pytest.raises(EngineError, match=f"answered no question .*{told}"):
        EndpointSchemble([EnsembleMember(broken.url, "m")]).fit(["a", "b"], ["1", "2"])


def test_usage_that_no_server_says_is_unknown_and_not_nothing():
    async def handler(request: web.Request) -> web.Response:
        return reply("1")

    with Behind(handler) as silent:
        ensemble = EndpointSchemble([EnsembleMember(silent.url, "m")]).fit(["a", "b"], ["1", "2"])
    assert (ensemble.usage[0].unknown, ensemble.usage[0].prompt_tokens) == (2, 0)


def test_places_are_used_and_not_exceeded():
    with Model(always, slow=0.05) as model:
        ensemble = EndpointSchemble([model.member(places=3)], num_bins=1).fit(QUESTIONS, ANSWERS)
        assert model.most == 3
        model.most = 0
        found = ensemble.serve(["slow"] * 9, [0.0] * 9, [9.0] * 9)
        assert model.most == 3
    assert found.missed == 0
    assert ensemble.planner.spacing[0] == pytest.approx(ensemble.planner.times[0] / 3)


def test_answers_in_words_become_classes_of_their_question():
    texts = [["#3", "no answer", None], ["so: #03", "#4", "#5"]]
    outputs, labels = outputs_of(ChainAnswer(), texts, ["3", "4", "9"])
    assert outputs.argmax(2).tolist() == [[1, 0, 0], [1, 1, 1]]
    assert labels.tolist() == [1, 1, 2]
    assert (outputs.sum(2) == 1).all()


def test_no_answer_wins_no_vote():
    ensemble = EndpointSchemble([EnsembleMember("http://127.0.0.1:1/v1", "m")] * 3, reader=ChainAnswer())
    ensemble.weights = np.array([0.4, 0.9, 0.4])
    assert ensemble.vote({0: "#1", 1: "nothing", 2: "#2"}) == "1"
    assert ensemble.vote({0: "#1", 1: "#2", 2: "#01"}) == "2"
    assert ensemble.vote({1: "nothing"}) is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": "ftp://x"}, "is no address of a server"),
        ({"places": 0}, "0 places"),
        ({"fields": {"stream": True}}, "'stream' is no field of yours"),
    ],
)
def test_what_is_no_member_is_said(options: dict[str, Any], told: str):
    with pytest.raises(SettingsError, match=told):
        EnsembleMember(**{"url": "http://127.0.0.1:1/v1", "model": "m"} | options)


def test_what_cannot_be_fitted_is_said():
    ensemble = EndpointSchemble([EnsembleMember("http://127.0.0.1:1/v1", "m")])
    with pytest.raises(DataError, match="1 questions and 2 answers"):
        ensemble.fit(["a"], ["1", "2"])
    with pytest.raises(EngineError, match="is not there"):
        ensemble.fit(["a", "b"], ["1", "2"])
    with pytest.raises(SettingsError, match="quantile"):
        EndpointSchemble([EnsembleMember("http://127.0.0.1:1/v1", "m")], quantile=1.0)
