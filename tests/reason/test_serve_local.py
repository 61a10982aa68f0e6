"""A checkpoint in this process, asked through the unchanged `openai` client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from burnish.core.errors import SettingsError
from burnish.generate import Engine
from burnish.reason.serve import Guard, Local
from served import Served
from small_models import small_llama, small_tokenizer

CHAT: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The licence"}]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(small_llama(initializer_range=0.4).double(), small_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Served]:
    with Served(Local(engine)) as one:
        yield one


def ask(server: Served, **fields: Any) -> Any:
    return server.client().chat.completions.create(
        **{"model": "tiny", "messages": CHAT, "max_tokens": 12, "seed": 5} | fields
    )


def test_a_seed_is_an_answer_and_each_of_n_another(server: Served):
    texts = [choice.message.content for choice in ask(server, n=3).choices]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in ask(server, n=3).choices] == texts
    assert ask(server).choices[0].message.content == texts[0]
    assert ask(server, seed=6).choices[0].message.content != texts[0]
    assert ask(server, seed=openai.omit).choices[0].message.content != ask(server, seed=openai.omit).choices[0]


def test_without_a_chat_template_the_contents_stand_one_after_the_other(server: Served):
    said = ask(server).choices[0].message.content
    text = "Be brief.\n\nThe licence"
    whole = server.client().completions.create(model="tiny", prompt=text, max_tokens=12, seed=5)
    assert whole.choices[0].text == said


def test_a_stream_is_the_answer_in_pieces_and_ends_with_its_usage(server: Served):
    whole = ask(server, n=2, stop=["e", "zz"])
    chunks = list(ask(server, n=2, stop=["e", "zz"], stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        mine = [one for chunk in chunks for one in chunk.choices if one.index == choice.index]
        assert "".join(one.delta.content or "" for one in mine) == choice.message.content
        assert "e" not in (choice.message.content or "")
        assert mine[-1].finish_reason == choice.finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert not chunks[-1].choices
    assert all(chunk.usage is None for chunk in ask(server, stream=True))


def test_every_token_has_its_logprob(server: Served):
    whole = ask(server, logprobs=True, top_logprobs=3)
    rows = whole.choices[0].logprobs.content
    assert len(rows) == whole.usage.completion_tokens == 12
    assert all(len(row.top_logprobs) == 3 and row.logprob <= row.top_logprobs[0].logprob for row in rows)
    streamed = [one for chunk in ask(server, logprobs=True, stream=True) for one in chunk.choices]
    found = [row.logprob for one in streamed if one.logprobs for row in one.logprobs.content]
    assert found == [row.logprob for row in rows]
    text = server.client().completions.create(model="tiny", prompt=["A", "or"], max_tokens=4, logprobs=2, n=2)
    assert [choice.index for choice in text.choices] == [0, 1, 2, 3]
    assert all(len(choice.logprobs.token_logprobs) == 4 for choice in text.choices if choice.logprobs)


REFUSED = [
    ({"model": "large"}, 404, "model_not_found"),
    ({"max_tokens": 5000}, 400, "context_length_exceeded"),
    ({"messages": []}, 400, "messages is"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "reads text alone"),
    ({"messages": [{"content": "x"}]}, 400, "needs a role"),
    ({"temperature": -1}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"n": 0}, 400, "n is 0"),
    ({"stop": [""]}, 400, "stop"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "calls no tools"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"extra_body": {"min_p": 0.1}}, 400, "min_p"),
]


@pytest.mark.parametrize(("fields", "status", "said"), REFUSED, ids=[said for *_, said in REFUSED])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_served_is_an_error_object(
    server: Served, fields: dict[str, Any], status: int, said: str, stream: bool
):
    with pytest.raises(openai.APIStatusError) as caught:
        ask(server, stream=stream, **fields)
    assert caught.value.status_code == status
    assert said in str(caught.value.body)
    assert isinstance(caught.value.body, dict) and caught.value.body["message"]


@pytest.mark.parametrize(
    ("content", "path", "status"),
    [("{", "chat/completions", 400), ("[]", "completions", 400), ("{}", "completions", 400), ("{}", "nothing", 404)],
)
def test_what_is_no_request_is_an_error_object(server: Served, content: str, path: str, status: int):
    answer = server.client()._client.post(f"{server.url}/{path}", content=content)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


HEADERS = [
    ({"Host": "evil.example"}, 403),
    ({"Host": "evil.example:80"}, 403),
    ({"Host": "[::1"}, 403),
    ({"Origin": "http://evil.example"}, 403),
    ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost:3000", "Host": "localhost"}, 200),
    ({}, 200),
]


@pytest.mark.parametrize(("headers", "status"), HEADERS)
def test_pages_of_others_are_refused(server: Served, headers: dict[str, str], status: int):
    answer = server.client()._client.get(f"{server.url}/models", headers=headers)
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"]["type"] == "permission_error"


def test_a_token_that_does_not_exist_is_refused_and_hurts_nobody(server: Served):
    with pytest.raises(openai.BadRequestError, match="none of the 384"):
        server.client().completions.create(model="tiny", prompt=[5, 384], max_tokens=2)
    assert server.client().completions.create(model="tiny", prompt=[5, 383], max_tokens=2).choices


def test_a_key_is_asked_for_where_there_is_one_and_must_be_where_others_can_ask():
    guard = Guard("0.0.0.0", "sk-right", ["box.example"])
    guard.check({"Host": "192.168.1.7:80", "Authorization": "Bearer sk-right"})
    guard.check({"Host": "box.example", "Authorization": "Bearer sk-right"})
    for headers, status in (
        ({"Host": "192.168.1.7", "Authorization": "Bearer sk-wrong"}, 401),
        ({"Host": "192.168.1.7"}, 401),
        ({"Host": "evil.example", "Authorization": "Bearer sk-right"}, 403),
    ):
        with pytest.raises(Exception, match=r"key|Host") as caught:
            guard.check(headers)
        assert caught.value.status == status  # type: ignore[attr-defined]
    with pytest.raises(SettingsError, match="would let everybody"):
        Guard("0.0.0.0")


def test_a_client_that_goes_away_leaves_the_batch(server: Served, engine: Engine):
    async def go() -> None:
        async with server.asking() as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=CHAT, max_tokens=200, n=20, stream=True, temperature=5.0
            )
            async for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            assert engine._batch.rows
            await stream.close()
        while engine._batch.rows:
            await asyncio.sleep(0.005)

    asyncio.run(go())


def test_requests_at_a_time_share_forward_passes(server: Served, engine: Engine, monkeypatch: pytest.MonkeyPatch):
    passes = 0
    forward = engine._batch._forward

    def counted(*given: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(*given)

    monkeypatch.setattr(engine._batch, "_forward", counted)

    async def go() -> list[Any]:
        async with server.asking() as client:
            fields: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 40, "temperature": 2.0}
            asked = [client.chat.completions.create(**fields, seed=i) for i in range(32)]
            return await asyncio.gather(*asked)

    written = sum(one.usage.completion_tokens for one in asyncio.run(go()))
    assert passes < written / 2
