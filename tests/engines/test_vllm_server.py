"""Strategies inside vLLM's own server, and in front of it through the proxy."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from burnish.core.engines import EngineProcess, vllm
from burnish.reason import Endpoint, Journal, JournalReader, Pool, Reply
from burnish.reason.serve import Upstream
from served import Served
from small_models import small_llama, small_tokenizer

CHAT: list[Any] = [{"role": "user", "content": "The licence"}]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    place = tmp_path_factory.mktemp("vllm")
    small_llama(max_position_embeddings=2048, head_dim=32).save_pretrained(place / "tiny")
    tokenizer = small_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(place / "tiny")
    os.environ["BURNISH_SERVE_OUT"] = str(place / "calls")
    with vllm(
        os.environ["VLLM_PYTHON"],
        place / "tiny",
        "--api-key",
        "sk-right",
        log=place / "log",
        plugins=["burnish-strategies"],
    ) as one:
        yield one


def client(url: str, key: str = "sk-right") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def ask(url: str, model: str, **fields: Any) -> Any:
    return client(url).chat.completions.create(
        **{"model": model, "messages": CHAT, "max_tokens": 8, "seed": 3} | fields
    )


@pytest.mark.timeout(1800)
def test_a_strategy_runs_inside_the_server_with_one_bill(engine: EngineProcess):
    answer = ask(engine.url, "gsa:3@tiny")
    bill = answer.model_extra["burnish"]
    assert bill["calls"] == 4
    assert answer.usage.completion_tokens == bill["models"]["tiny"]["completion"] <= 32
    assert ask(engine.url, "gsa:3@tiny").choices[0].message.content == answer.choices[0].message.content
    reader = JournalReader(Path(os.environ["BURNISH_SERVE_OUT"]))
    assert reader.paid()["tiny"].usage.calls == 4  # a seed is an answer: the second came from the journal
    assert reader.problems() == []


@pytest.mark.timeout(1800)
def test_a_plain_request_is_the_servers_own_also_its_stream(engine: EngineProcess):
    whole = ask(engine.url, "tiny", temperature=0)
    chunks = ask(engine.url, "tiny", temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert "burnish" not in (whole.model_extra or {})


@pytest.mark.timeout(1800)
def test_a_stream_of_a_strategy_says_at_once_that_it_lives(engine: EngineProcess):
    body = {"model": "gsa:2@tiny", "messages": CHAT, "max_tokens": 8, "stream": True}
    headers = {"Authorization": "Bearer sk-right"}
    with httpx2.stream("POST", f"{engine.url}/chat/completions", json=body, headers=headers, timeout=600) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert lines[0].startswith(": gsa(n=2")
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["burnish"]["calls"] == 3


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("model", "key", "status"), [("gas:2@tiny", "sk-right", 400), ("gsa:2@tiny", "no", 401)])
def test_what_is_refused_is_an_error_object(engine: EngineProcess, model: str, key: str, status: int):
    with pytest.raises(openai.APIStatusError) as caught:
        client(engine.url, key).chat.completions.create(model=model, messages=CHAT, max_tokens=2)
    assert caught.value.status_code == status


@pytest.mark.timeout(1800)
def test_an_unknown_model_keeps_the_servers_words(engine: EngineProcess):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        ask(engine.url, "direct@nothing")


@pytest.mark.timeout(1800)
def test_the_proxy_in_front_of_the_server(engine: EngineProcess):
    with Served(Upstream(engine.url)) as proxy:
        assert ask(proxy.url, "rsa(n=3,k=2,loops=2)@tiny").model_extra["burnish"]["calls"] == 6
        with pytest.raises(openai.BadRequestError, match="max_model_len=2048"):  # the server's own words
            ask(proxy.url, "direct@tiny", max_tokens=5000)


def test_a_foreign_answer_is_scored_as_by_a_full_forward_pass(
    engine: EngineProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    place, text = Path(os.environ["BURNISH_SERVE_OUT"]).parent / "tiny", "The work is given as it stands."
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place)
    start = len(tokenizer(CHAT[0]["content"])["input_ids"])
    ids = tokenizer(CHAT[0]["content"] + text)["input_ids"]
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    wanted = [logprobs[i - 1, ids[i]].item() for i in range(start, len(ids))]

    async def go() -> Reply:
        with Journal(tmp_path) as journal:
            async with Pool([Endpoint(engine.url, "tiny", sampling={"top_logprobs": 3})], journal) as pool:
                turns = [*CHAT, {"role": "assistant", "content": text}]
                return await pool.score("tiny", turns, "p/score", 3)

    found = asyncio.run(go())
    assert found.usage.prompt == len(ids) and found.usage.cached == 0
    assert found.logprobs is not None and {len(one) for one in found.logprobs} <= {3, 4}
    assert [one[0] for one in found.logprobs] == pytest.approx(wanted, abs=0.05)
