"""What goes through the proxy: plain requests as they are, strategies as one answer with one bill."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web

from burnish.core.errors import OutputError
from burnish.reason import JournalReader
from burnish.reason.prompts import filled, ours
from burnish.reason.serve import Guard, Upstream, solving
from burnish.reason.serve.wanted import parted
from exact_server import ExactServer, completion, majority
from reason_runs import Ends
from served import Behind, Served

CHAT: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "2"},
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}, {"type": "text", "text": "?"}],
    },
]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def two_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four: the waits between them are seconds."""
    monkeypatch.setattr(solving, "ATTEMPTS", 2)


class Recorder:
    """Answers as the exact server does, and keeps what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        return web.json_response(completion(majority, body))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def proxy(recorder: Recorder) -> Iterator[Served]:
    with Behind(recorder) as behind, Served(Upstream(behind.url), answers=Ends()) as one:
        yield one


def ask(server: Served, model: str = "gsa:3@exact", **fields: Any) -> Any:
    return server.client().chat.completions.create(**{"model": model, "messages": CHAT} | fields)


# -- as they are -------------------------------------------------------------------------------------------------------

ODD = b' {"model" :"exact", "messages": [], "temperature": 1.00, "t": "\\u00e9\xc3\xa9", "stream": false}\n'
"""Bytes that reading and writing would change."""


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_a_plain_request_and_its_answer_keep_every_byte(route: str):
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.path, await request.read(), request.headers))
        return web.Response(status=201, body=b"\xff\x00 not even JSON", headers={"X-Its": "own", "Content-Type": "a/b"})

    with Behind(handler) as behind, Served(Upstream(behind.url)) as proxy:
        headers = {"Content-Type": "application/json", "X-Mine": "1", "Authorization": "Bearer sk-of-the-client"}
        answer = httpx2.post(f"{proxy.url}/{route}", content=ODD, headers=headers)
    path, raw, sent = seen[0]
    assert (path, raw) == (f"/v1/{route}", ODD)
    assert sent["X-Mine"] == "1" and sent["Authorization"] == "Bearer sk-of-the-client"
    assert (answer.status_code, answer.content) == (201, b"\xff\x00 not even JSON")
    assert (answer.headers["X-Its"], answer.headers["Content-Type"]) == ("own", "a/b")


def test_no_piece_of_a_stream_is_held_back():
    heard = threading.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(20):
            await response.write(b"data: %d\n\n: half a" % number)
            assert await asyncio.to_thread(heard.wait, 30)  # the next is not written before the last was read
            heard.clear()
        return response

    with (
        Behind(handler) as behind,
        Served(Upstream(behind.url)) as proxy,
        httpx2.stream("POST", f"{proxy.url}/chat/completions", content=ODD) as answer,
    ):
        pieces = []
        for piece in answer.iter_raw():
            pieces.append(piece)
            heard.set()
    assert pieces == [b"data: %d\n\n: half a" % number for number in range(20)]


def test_a_stream_that_breaks_off_behind_breaks_off_here():
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    with Behind(handler) as behind, Served(Upstream(behind.url)) as proxy, pytest.raises(httpx2.TransportError):
        httpx2.post(f"{proxy.url}/chat/completions", content=ODD)


def test_a_steered_answer_is_one_call_that_says_by_what_beside_what_the_client_says(proxy: Served, recorder: Recorder):
    answer = ask(proxy, "steer:careful@exact", extra_body={"vllm_xargs": {"tenant": "me"}})
    ask(proxy, "steer(vectors=brief,coef=-4)@exact")
    assert [body["vllm_xargs"] for body in recorder.bodies] == [
        {"tenant": "me", "steer": "careful:-1"},
        {"steer": "brief:-4"},
    ]
    assert {body["model"] for body in recorder.bodies} == {"exact"}
    assert answer.model_extra["burnish"]["calls"] == 1
    with pytest.raises(openai.BadRequestError, match="vectors"):
        ask(proxy, "steer@exact")
    with pytest.raises(openai.APIStatusError, match="vllm_xargs: is 'x', which is no object"):
        ask(proxy, "steer:careful@exact", extra_body={"vllm_xargs": "x"})


def test_with_tools_the_model_alone_is_put_right(proxy: Served, recorder: Recorder):
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    answer = ask(proxy, tools=tools, extra_body={"burnish": "gsa:3"}, model="exact", seed=3, n=2)
    assert answer.usage.total_tokens
    assert recorder.bodies == [{"messages": CHAT, "model": "exact", "tools": tools, "seed": 3, "n": 2}]


def test_a_client_that_goes_away_ends_the_request_behind():
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(60)
        return response

    with Behind(handler) as behind, Served(Upstream(behind.url)) as proxy:
        with httpx2.stream("POST", f"{proxy.url}/chat/completions", content=ODD) as answer:
            assert next(answer.iter_raw())
        while not behind.cancelled:
            threading.Event().wait(0.005)


# -- strategies --------------------------------------------------------------------------------------------------------


def test_a_strategy_is_named_in_three_ways_and_its_bill_is_the_sum_of_its_calls(proxy: Served, recorder: Recorder):
    ways: list[dict[str, Any]] = [
        {},
        {"model": "exact", "extra_headers": {"X-Burnish-Strategy": "gsa:3"}},
        {"model": "exact", "extra_body": {"burnish": {"strategy": "gsa:3"}}},
    ]
    answers = [ask(proxy, seed=1, **way) for way in ways]
    assert len({one.choices[0].message.content for one in answers}) == 1
    assert len(recorder.bodies) == 4  # the other two were answered from the journal, and are charged in full
    used = [completion(majority, body)["usage"] for body in recorder.bodies]
    for one in answers:
        assert one.usage.prompt_tokens == sum(each["prompt_tokens"] for each in used)
        assert one.usage.completion_tokens == sum(each["completion_tokens"] for each in used)
        assert one.model_extra["burnish"]["models"]["exact"]["calls"] == 4
        assert one.model_extra["burnish"]["strategy"].startswith("gsa(n=3")


def test_a_conversation_stays_one_and_fields_of_the_client_reach_every_call(proxy: Served, recorder: Recorder):
    fields: dict[str, Any] = {"stop": ["x"], "response_format": {"type": "json_object"}, "max_completion_tokens": 50}
    ask(proxy, **fields, temperature=0.9, stream_options=None)
    assert len(recorder.bodies) == 4
    for body in recorder.bodies:
        assert body["messages"][:3] == CHAT[:3]
        assert body["messages"][3]["content"][:2] == CHAT[3]["content"]
        assert {name: body[name] for name in fields} == fields
        assert not {"stream", "n", "burnish", "stream_options"} & body.keys()
    *samples, last = recorder.bodies
    assert [body["messages"] for body in samples] == [CHAT] * 3
    assert "Attempt 3" in last["messages"][3]["content"][2]["text"]
    assert len({body["seed"] for body in recorder.bodies}) == 4


def test_n_answers_are_n_draws_and_without_a_seed_each_request_is_another(proxy: Served, recorder: Recorder):
    answer = ask(proxy, n=3, seed=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(recorder.bodies) == answer.model_extra["burnish"]["calls"] == 12
    assert len({body["seed"] for body in recorder.bodies}) == 12
    ask(proxy)
    ask(proxy)
    assert len({body["seed"] for body in recorder.bodies}) == len(recorder.bodies) == 20


def test_a_prompt_is_a_conversation_of_one_message(proxy: Served, recorder: Recorder):
    answer = proxy.client().completions.create(model="self-consistency:3@exact", prompt="What?")
    assert answer.object == "text_completion" and answer.choices[0].text.startswith("Final answer")
    assert {json.dumps(body["messages"]) for body in recorder.bodies} == {'[{"role": "user", "content": "What?"}]'}


def test_several_models_are_billed_one_by_one(recorder: Recorder, proxy: Served):
    routed = "routed-rsa(models=small+large,n=4,k=2,loops=2,fitness=diversity,percentiles=0)"
    answer = ask(proxy, f"{routed}@large")
    models = answer.model_extra["burnish"]["models"]
    assert set(models) == {"small", "large"}
    assert sum(one["calls"] for one in models.values()) == 8
    assert {body["model"] for body in recorder.bodies} == {"small", "large"}


def test_a_stream_says_at_once_that_it_lives_and_ends_with_the_bill():
    heard = threading.Event()

    async def handler(request: web.Request) -> web.Response:
        assert await asyncio.to_thread(heard.wait, 30)
        return web.json_response(completion(majority, await request.json()))

    with Behind(handler) as behind, Served(Upstream(behind.url), answers=Ends()) as proxy:
        body = {"model": "gsa:2@exact", "messages": CHAT, "stream": True}
        with httpx2.stream("POST", f"{proxy.url}/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith(": gsa(n=2")
            heard.set()
            rest = [line for line in lines if line]
    comments = [line for line in rest if line.startswith(":")]
    assert any("2 of 2 calls" in line or "2 of 3 calls" in line for line in comments)
    *events, done = [line.removeprefix("data: ") for line in rest if line not in comments]
    assert done == "[DONE]"
    assert json.loads(events[-1])["usage"]["completion_tokens"] == 9
    assert json.loads(events[-1])["choices"][0]["finish_reason"] == "stop"


def test_the_openai_client_reads_the_stream(proxy: Served):
    whole = ask(proxy, seed=7, n=2)
    chunks = list(ask(proxy, seed=7, n=2, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
    assert chunks[-1].usage == whole.usage
    assert not chunks[-1].choices
    assert all(chunk.choices for chunk in ask(proxy, seed=7, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_the_calls_of_its_strategy(stream: bool):
    asked = threading.Semaphore(0)

    async def handler(request: web.Request) -> web.Response:
        await request.read()
        asked.release()
        await asyncio.sleep(60)
        return web.Response()

    with Behind(handler) as behind, Served(Upstream(behind.url)) as proxy:

        async def go() -> None:
            async with proxy.asking() as client:
                fields: dict[str, Any] = {"model": "gsa:3@exact", "messages": CHAT, "stream": stream}
                task = asyncio.create_task(client.chat.completions.create(**fields))
                for _ in range(3):
                    await asyncio.to_thread(asked.acquire)
                if stream:
                    await (await task).close()
                else:
                    task.cancel()

        asyncio.run(go())
        while behind.cancelled < 3:
            threading.Event().wait(0.005)


def test_a_request_with_a_seed_goes_on_where_a_crash_ended_it(tmp_path: Path):
    with ExactServer(rule=majority) as behind:

        async def cut(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            if "Attempt" in json.dumps(body["messages"]):  # the call that reads the samples
                return web.json_response({"error": {"message": "gone"}}, status=410)
            return web.json_response(completion(majority, body))

        port = behind.port
        with Behind(cut) as first, Served(Upstream(first.url), answers=Ends(), out=tmp_path / "a") as proxy:
            with pytest.raises(openai.APIStatusError):
                ask(proxy, seed=1)
            assert JournalReader(tmp_path / "a").paid()["exact"].usage.calls == 4
        with Served(Upstream(f"http://127.0.0.1:{port}/v1"), answers=Ends(), out=tmp_path / "b") as proxy:
            whole = ask(proxy, seed=1).choices[0].message.content
        with Served(Upstream(f"http://127.0.0.1:{port}/v1"), answers=Ends(), out=tmp_path / "b") as proxy:
            assert ask(proxy, seed=1).choices[0].message.content == whole
        assert sum(behind.asked.values()) == 4

    with pytest.raises(OutputError, match="another run"):
        Served(Upstream("http://127.0.0.1:1/v1"), out=tmp_path / "b")._serve()


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["exact", "gsa:2@exact"])
@pytest.mark.parametrize("status", [400, 401, 404, 429, 503])
def test_errors_of_the_server_behind_keep_status_and_body(model: str, status: int):
    body = {"error": {"message": "its own words", "type": "t", "param": None, "code": "c"}}

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(body, status=status, headers={"Retry-After": "0.01"})

    with Behind(handler) as behind, Served(Upstream(behind.url)) as proxy:
        answer = httpx2.post(f"{proxy.url}/chat/completions", json={"model": model, "messages": CHAT}, timeout=60)
    assert (answer.status_code, answer.json()) == (status, body)


@pytest.mark.parametrize("model", ["exact", "direct@exact"])
@pytest.mark.usefixtures("two_attempts")
def test_a_server_that_is_not_there_is_502_and_a_slow_one_504(model: str):
    async def slow(request: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    with Served(Upstream("http://127.0.0.1:1/v1")) as proxy:
        answer = httpx2.post(f"{proxy.url}/chat/completions", json={"model": model, "messages": CHAT}, timeout=60)
    assert answer.status_code == 502
    assert "cannot be reached" in answer.json()["error"]["message"]
    with Behind(slow) as behind, Served(Upstream(behind.url, timeout=0.05)) as proxy:
        answer = httpx2.post(f"{proxy.url}/chat/completions", json={"model": model, "messages": CHAT}, timeout=60)
    assert answer.status_code == 504
    assert "did not answer" in answer.json()["error"]["message"]


LIES = {
    "a page": web.Response(text="<html>", content_type="text/html"),
    "no choices": web.json_response({"choices": []}),
    "deep": web.Response(text="[" * 100_000 + "]" * 100_000, content_type="application/json"),
    "a number": web.json_response({"choices": [{"message": {"content": 42}, "finish_reason": "stop"}]}),
    "no content": web.json_response({"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.usefixtures("two_attempts")
def test_what_is_no_answer_is_502_for_a_strategy_also_in_a_stream(lie: str):
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=LIES[lie].body, content_type=LIES[lie].content_type)

    with Behind(handler) as behind, Served(Upstream(behind.url)) as proxy:
        with pytest.raises(openai.InternalServerError) as caught:
            ask(proxy, "direct@exact")
        assert caught.value.status_code == 502
        with pytest.raises(openai.APIError, match="answered"):
            list(ask(proxy, "direct@exact", stream=True))


def test_a_bill_that_the_server_did_not_write_is_unknown_and_not_0():
    with ExactServer(faults=((1.0, "no usage"),)) as behind, Served(Upstream(behind.url)) as proxy:
        answer = ask(proxy, "direct@exact", messages=[{"role": "user", "content": "?"}])
    assert answer.usage is None
    assert answer.model_extra["burnish"]["models"]["exact"]["unknown"] == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": "gas:4@exact"}, "did you mean 'gsa'"),
    ({"model": "rsa(n=2,k=4)@exact"}, "population has only"),
    ({"model": "rsa(n=2,k=1,loops=0)@exact"}, "loops"),
    ({"model": "gsa:4@rsa(n=2)@exact"}, "inside a strategy"),
    ({"model": "gsa:4@exact", "extra_body": {"burnish": "gsa:5"}}, "several strategies"),
    ({"model": "exact", "extra_body": {"burnish": {"n": 4}}}, "burnish"),
    ({"model": "exact", "extra_body": {"burnish": ""}}, "burnish"),
    ({"n": 0}, "n is 0"),
    ({"n": 1000}, "n is 1000"),
    ({"seed": "x"}, "seed"),
    ({"logprobs": True}, "log-probabilities"),
    ({"messages": []}, "messages"),
    ({"messages": "x"}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "message of a user"),
    ({"messages": [{"role": "user", "content": 5}]}, "content of a message"),
    ({"messages": [{"role": "user", "content": [5]}]}, "content of a message"),
    ({"model": "gsa:100000@exact"}, "asks for 100,000 answers"),
    ({"model": "rsa(n=100,k=2,loops=50)@exact"}, "asks for 5,000 answers"),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_what_no_strategy_can_do_is_400_before_any_call(
    proxy: Served, recorder: Recorder, fields: dict[str, Any], said: str
):
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        ask(proxy, **fields)
    assert isinstance(caught.value.body, dict) and caught.value.body["type"] == "invalid_request_error"
    assert recorder.bodies == []


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"model": "gsa:2@exact", "messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"\xff", "no JSON"),
        (b"[]", "must be an object"),
    ],
    ids=["half a character", "deep", "bytes", "list"],
)
def test_bodies_that_no_client_would_send_are_400(proxy: Served, recorder: Recorder, raw: bytes, said: str):
    answer = httpx2.post(f"{proxy.url}/chat/completions", content=raw)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert recorder.bodies == []


def test_the_longest_candidate_is_left_out_where_all_are_too_long_and_that_is_said():
    shown = filled(ours("gsa"), ["Final answer: 1"] * 5)
    with ExactServer(context=len(f"?\n\n{shown}") - 1) as behind, Served(Upstream(behind.url), answers=Ends()) as proxy:
        answer = ask(proxy, "gsa:5@exact", messages=[{"role": "user", "content": "?"}])
        assert answer.model_extra["burnish"]["notes"] == [
            "the longest candidate was left out where all were longer than the model's context"
        ]
    with (
        ExactServer(context=100) as behind,
        Served(Upstream(behind.url), answers=Ends()) as proxy,
        pytest.raises(openai.BadRequestError, match="maximum context length"),
    ):
        ask(proxy, "gsa:5@exact", messages=[{"role": "user", "content": "?"}])


def test_names_with_an_at_sign():
    assert parted("gsa:4@org/model@rev") == ("gsa:4", "org/model@rev")
    assert parted("rsa(n=8,k=4)@qwen") == ("rsa(n=8,k=4)", "qwen")
    assert parted("direct@m") == ("direct", "m")
    assert parted("steer:careful@qwen") == ("steer:careful", "qwen")
    assert parted("llama3:8b-instruct@rev") == ("", "llama3:8b-instruct@rev")
    assert parted("@cf/meta/llama") == ("", "@cf/meta/llama")
    assert parted("claude@20240229") == ("", "claude@20240229")


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_clients_key_goes_behind_unless_it_is_this_servers_or_there_is_another(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with Behind(recorder) as behind:
        with Served(Upstream(behind.url), out=tmp_path) as proxy:
            proxy.client(api_key="sk-canary-1234").chat.completions.create(model="direct@exact", messages=CHAT)
            proxy.client(api_key="sk-canary-1234").chat.completions.create(model="exact", messages=CHAT)
        assert recorder.keys == ["Bearer sk-canary-1234"] * 2
        with Served(Upstream(behind.url, forwards_key=False), Guard(key="sk-of-server")) as proxy:
            proxy.client(api_key="sk-of-server").chat.completions.create(model="direct@exact", messages=CHAT)
            proxy.client(api_key="sk-of-server").chat.completions.create(model="exact", messages=CHAT)
            with pytest.raises(openai.AuthenticationError):
                proxy.client(api_key="sk-wrong").chat.completions.create(model="exact", messages=CHAT)
        assert recorder.keys[2:] == ["Bearer none"] * 2
        monkeypatch.setenv("OPENAI_API_KEY", "sk-behind-5678")
        with Served(Upstream(behind.url)) as proxy:
            proxy.client(api_key="sk-canary-1234").chat.completions.create(model="direct@exact", messages=CHAT)
            proxy.client(api_key="sk-canary-1234").chat.completions.create(model="exact", messages=CHAT)
        assert recorder.keys[4:] == ["Bearer sk-behind-5678"] * 2
    for path in tmp_path.iterdir():
        assert b"canary" not in path.read_bytes()


@pytest.mark.parametrize("model", ["exact", "direct@exact"])
def test_a_key_that_an_error_repeats_does_not_reach_the_client(model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-behind-5678")
    with ExactServer(key="another") as behind, Served(Upstream(behind.url)) as proxy:
        answer = httpx2.post(f"{proxy.url}/chat/completions", json={"model": model, "messages": CHAT})
    assert answer.status_code == 401
    assert "sk-behind" not in answer.text
