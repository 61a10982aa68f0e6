"""What another model wrote is scored by one reading of it: exact numbers, few at a time, paid, refused by name."""

from __future__ import annotations

import asyncio
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.generate import Engine
from burnish.reason import Endpoint, Journal, JournalReader, Pool, Result, Session, UpstreamError, strategy
from burnish.reason.calls import Reply, Usage, derived_number
from burnish.reason.confidence import mean_logprob, peakedness
from burnish.reason.probe import probe
from burnish.reason.replies import read_score
from burnish.reason.serve import Local
from exact_server import ExactServer, InProcess, given_logprob
from reason_runs import Ends
from small_models import small_llama, small_tokenizer

NOWHERE = "http://127.0.0.1:1/v1"
CHAT = [{"role": "user", "content": "The licence"}]
SAMPLING = {"logprobs": True, "top_logprobs": 3, "temperature": 1.0}
ROUTED = "routed-rsa(models=cheap+strong,percentiles=50,n=6,k=2,loops=3,fitness=logprob,scorer={})"


def two(**fields: Any) -> list[Endpoint]:
    return [Endpoint(fields.pop("url", NOWHERE), name, sampling=SAMPLING, **fields) for name in ("cheap", "strong")]


def solved(directory: Path, spec: str, **pool: Any) -> Result:
    async def go() -> Result:
        made = strategy(spec)
        endpoints = pool.pop("endpoints", two())
        with Journal(directory) as journal:
            options: Any = {"transport": InProcess()} | pool
            async with Pool(endpoints, journal, **options) as asked:
                return await made(CHAT, Session(asked, "p", made.label, Ends()))

    return asyncio.run(go())


def by_words(model: str, reply: Reply) -> float:
    words = reply.text.split()
    return sum(given_logprob(model, word) for word in words) / len(words)


class Spied(InProcess):
    """What was to be scored."""

    @property
    def scorings(self) -> list[dict[str, Any]]:
        return [body for body in self.bodies if "prompt_logprobs" in body]


def test_a_scorer_reads_what_it_has_not_written_and_nothing_else(tmp_path: Path):
    spied = Spied()
    found = solved(tmp_path, ROUTED.format("cheap"), transport=spied)
    foreign = [one for loop in found.populations[:2] for one in loop if one.endpoint == "strong"]
    assert len(spied.scorings) == len(foreign) > 6  # the first population, and some of the second
    assert {body["model"] for body in spied.scorings} == {"cheap"}
    assert all(body["messages"][-1]["role"] == "assistant" for body in spied.scorings)
    assert all(body["max_tokens"] == 1 and "seed" not in body and "logprobs" not in body for body in spied.scorings)
    assert found.used["cheap"].calls + found.used["strong"].calls == 18 + len(foreign)
    read = sum(
        len(text.split()) for body in spied.scorings for text in [" ".join(one["content"] for one in body["messages"])]
    )
    assert found.used["cheap"].prompt >= read > 0
    reader = JournalReader(tmp_path)
    assert reader.problems() == [] and reader.paid()["cheap"].usage == found.used["cheap"]


def test_groups_are_routed_by_the_scores_of_the_scorer(tmp_path: Path):
    found = solved(tmp_path, ROUTED.format("cheap").replace("loops=3", "loops=2"))
    label = strategy(ROUTED.format("cheap").replace("loops=3", "loops=2")).label
    first = found.populations[0]
    scores = [by_words("cheap", one) for one in first]
    groups = [random.Random(derived_number(0, "p", label, "loop2", slot)).sample(range(6), 2) for slot in range(6)]
    fitness = [sum(scores[place] for place in sorted(group)) / 2 for group in groups]
    middle = sorted(fitness)
    threshold = (middle[2] + middle[3]) / 2
    assert [one.endpoint for one in found.populations[1]] == [
        "cheap" if one > threshold else "strong" for one in fitness
    ]


def test_a_judge_that_writes_nothing_scores_everything(tmp_path: Path):
    spied = Spied()
    endpoints = [*two(), Endpoint(NOWHERE, "judge", sampling={"top_logprobs": 3})]
    found = solved(tmp_path, ROUTED.format("judge"), transport=spied, endpoints=endpoints)
    assert len(spied.scorings) == found.used["judge"].calls == 12
    assert found.used["judge"].completion == 12  # a token each, which the servers want


def test_a_scored_run_goes_on_without_a_call(tmp_path: Path):
    async def nothing(endpoint: Endpoint, body: object, /) -> bytes:
        raise AssertionError("a finished run asks for nothing")

    first = solved(tmp_path, ROUTED.format("cheap"))
    assert solved(tmp_path, ROUTED.format("cheap"), transport=nothing) == first


def test_few_texts_are_scored_at_a_time(tmp_path: Path):
    class Counting(InProcess):
        now = most = 0

        async def __call__(self, endpoint: object, body: Any) -> bytes:
            scores = "prompt_logprobs" in body
            self.now += scores
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            self.now -= scores
            return await super().__call__(endpoint, body)

    counting = Counting()
    solved(tmp_path, ROUTED.format("cheap"), transport=counting, endpoints=two(scoring=2))
    assert counting.most == 2


def test_a_long_text_is_scored_by_its_beginning_and_that_is_said(tmp_path: Path):
    spied = Spied()
    spec = ROUTED.format("cheap").replace("fitness", "score_letters=7,fitness")
    found = solved(tmp_path, spec, transport=spied)
    assert {body["messages"][-1]["content"] for body in spied.scorings} == {"Final a"}
    assert found.notes[0] == "answers of more than 7 letters were scored by their beginning"


@pytest.mark.parametrize("spec", [ROUTED.format("cheap"), ROUTED.format("cheap").replace("logprob", "confidence")])
def test_a_server_that_scores_no_text_is_told_once_and_by_name(tmp_path: Path, spec: str):
    class Deaf(Spied):
        async def __call__(self, endpoint: object, body: Any) -> bytes:
            self.bodies.append(dict(body))
            return await InProcess().__call__(endpoint, {k: v for k, v in body.items() if k != "prompt_logprobs"})

    deaf = Deaf()
    with pytest.raises(
        UpstreamError, match="gave no log-probabilities of a given text; name another model as the scorer"
    ):
        solved(tmp_path, spec, transport=deaf)
    assert len({id(body) for body in deaf.scorings}) <= 6  # none of them again


def test_a_scorer_without_log_probabilities_to_compare_is_no_setting():
    with pytest.raises(SettingsError, match="fitness=diversity knows nothing"):
        strategy("routed-rsa(models=a+b,scorer=a,fitness=diversity)")


# -- a real model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def local() -> Local:
    return Local(Engine(small_llama(initializer_range=0.4).double(), small_tokenizer(), name="judge"))


def expected(local: Local, text: str) -> list[list[float]]:
    """By one forward pass over conversation and text: the token's own, then the others of the three likeliest."""
    engine: Any = local.engine
    ids = engine.chat([*CHAT, {"role": "assistant", "content": text}], continued=True)
    start = len(engine.chat([*CHAT, {"role": "assistant", "content": ""}], continued=True))
    with torch.inference_mode():
        logprobs = engine._batch.model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    rows = []
    for token, row in zip(ids[1:], logprobs, strict=True):
        tops = [one for one in row.topk(3).indices.tolist() if one != token]
        rows.append([row[token].item(), *(row[one].item() for one in tops)])
    return rows[start - 1 :]


@pytest.mark.parametrize("text", ["The work is given as it stands.", "ein Töpfchen 🙂 für alle", "x"])
def test_a_foreign_text_has_the_log_probabilities_of_a_full_forward_pass(local: Local, tmp_path: Path, text: str):
    async def go() -> Reply:
        endpoints = [Endpoint(NOWHERE, "judge", sampling={"top_logprobs": 3})]
        with Journal(tmp_path) as journal:
            async with Pool(endpoints, journal, transport=local.transport) as pool:
                session = Session(pool, "p", "s")
                reply = Reply("k", "writer", text, "", "stop", Usage(1, 2, 0, 3))
                session._asked["k"] = ("p/sample/0", CHAT)
                scored = await session.scored(reply, "judge")
                assert session.result(None).used["judge"].calls == 1
                return scored

    found = asyncio.run(go())
    wanted = expected(local, text)
    assert found.logprobs is not None and list(map(len, found.logprobs)) == list(map(len, wanted))
    for one, other in zip(found.logprobs, wanted, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert mean_logprob(found) == pytest.approx(sum(row[0] for row in wanted) / len(wanted), abs=1e-5)
    assert math.isfinite(peakedness(found))
    assert (found.text, found.endpoint) == (text, "writer")


def test_a_probe_finds_that_this_server_scores_foreign_text(local: Local):
    async def carried(endpoint: Endpoint, body: Any, /, route: str = "/chat/completions") -> bytes:
        if route == "/chat/completions" and not body.get("stream"):
            return await local.transport(endpoint, body)
        raise UpstreamError("not here", where=endpoint.address, status=404)

    found = asyncio.run(probe(Endpoint(NOWHERE, "judge"), transport=carried)).findings["foreign"]
    assert found.does is True


# -- what servers send -------------------------------------------------------------------------------------------------


def scored(text: str, *tokens: str) -> list[float]:
    positions = [{"7": {"logprob": -float(i), "rank": 1, "decoded_token": one}} for i, one in enumerate(tokens)]
    choice = {"message": {"content": "x"}, "finish_reason": "length"}
    body = {
        "choices": [choice],
        "prompt_logprobs": [None, *positions],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}},
    }
    reply = read_score(json.dumps(body).encode(), Endpoint(NOWHERE, "m"), "k", text)
    assert reply.usage == Usage(1, 9, 0, 1)  # a score is a whole reading, whatever the server says of its cache
    return [-token[0] for token in reply.logprobs or ()]


def test_the_tokens_of_the_text_are_found_at_the_end_of_the_prompt():
    assert scored("a b", "a", " b", "\n", "a", " b") == [3, 4]
    assert scored("a b", "Q", "a", "b") == [1, 2]  # blanks are shown in many ways
    assert scored("a b", "Q:a", " b") == [0, 1]  # a token that begins before the text
    assert scored("é", "Q", "\ufffd", "\ufffd") == [1, 2]
    assert scored("aéb", "Q", "a", "\ufffd", "\ufffd", "b") == [1, 2, 3, 4]
    assert scored("日本a", "Q", "\ufffd", "\ufffd", "本", "a") == [1, 2, 3, 4]
    assert scored(" a ", "a", " ", "a", " ") == [2, 3]


@pytest.mark.parametrize("tokens", [("a", "c"), ("b",), (), ("a", "b", "c"), ("\ufffd", "b")])
def test_scores_of_another_text_are_no_scores(tokens: tuple[str, ...]):
    with pytest.raises(UpstreamError, match=r"no log-probabilities of a given text|of another text than the one"):
        scored("a b", *tokens)


@pytest.mark.parametrize("position", [7, "x", {"1": 7}, {"1": {"logprob": float("nan"), "decoded_token": "a"}}, {}])
def test_scores_that_are_none_are_told_as_that(position: Any):
    choice = {"message": {"content": "x"}, "finish_reason": "length"}
    body = json.dumps({"choices": [choice], "prompt_logprobs": [None, position]}).encode()
    with pytest.raises(UpstreamError, match="of a given text that are none; name another model"):
        read_score(body, Endpoint(NOWHERE, "m"), "k", "a")


def test_over_http_it_is_the_same(tmp_path: Path):
    with ExactServer() as server:
        endpoints = [Endpoint(server.url, name, sampling=SAMPLING) for name in ("cheap", "strong")]
        over = solved(tmp_path / "http", ROUTED.format("cheap"), endpoints=endpoints, transport=None)
    assert over.loops == solved(tmp_path / "here", ROUTED.format("cheap")).loops
