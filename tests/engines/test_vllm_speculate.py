"""Proposals from the memory of answers inside vLLM: the same texts in fewer forward passes, by vLLM's own counts."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from burnish.core.engines import EngineProcess, vllm
from burnish.serve.up import foretold, speculating_options

MODEL = Path(__file__).resolve().parents[2] / "models" / "smollm2"
PROMPTS = (
    "Repeat this text and change nothing: The ferry leaves the northern pier at nine, crosses the bay in forty minutes "
    "and returns at noon with the mail, the milk and whoever wants to come back to the city before the evening.",
    "What is the difference between weather and climate?",
    "List these names, each on its own line: Ashford, Brindle, Calder, Dunmore, Elstow, Farley, Garston, Hexham.",
    "Write two sentences about a lighthouse.",
)


CHAIN = 8


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Without proposals."""
    with vllm(os.environ["VLLM_PYTHON"], MODEL, log=tmp_path_factory.mktemp("plain") / "log") as engine:
        return [ask(engine, prompt) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    options = speculating_options(CHAIN)
    with vllm(os.environ["VLLM_PYTHON"], MODEL, *options, log=tmp_path_factory.mktemp("trie") / "log") as one:
        yield one


def ask(engine: EngineProcess, prompt: str, **fields: Any) -> str:
    client = openai.OpenAI(base_url=engine.url, api_key="none", max_retries=0, timeout=600)
    messages: list[Any] = [{"role": "user", "content": prompt}]
    answer = client.chat.completions.create(
        model="smollm2", messages=messages, max_tokens=64, temperature=0, extra_body=fields
    )
    return answer.choices[0].message.content or ""


def passes(engine: EngineProcess, prompt: str, **fields: Any) -> tuple[str, int]:
    """The text, and the forward passes that it took."""
    text, _, num = counted(engine, prompt, **fields)
    return text, num


def counted(engine: EngineProcess, prompt: str, **fields: Any) -> tuple[str, int, int]:
    """The text, its tokens, and the forward passes that it took."""
    before = foretold(engine.url)
    text = ask(engine, prompt, **fields)
    after = foretold(engine.url)
    num = after.tokens - before.tokens
    return text, num, num - (after.accepted - before.accepted)


@pytest.mark.timeout(1800)
def test_texts_are_the_same_and_the_second_request_takes_the_least_passes(texts: list[str], engine: EngineProcess):
    """One over the prompt, and one for every CHAIN + 1 further tokens: less than half of the first request's, unless
    that was told most of its answer by its own prompt."""
    for prompt, text in zip(PROMPTS, texts, strict=True):
        first, tokens, num = counted(engine, prompt)
        second, num_second = passes(engine, prompt)
        least = 1 + math.ceil((tokens - 1) / (1 + CHAIN))
        print(f"{tokens} tokens, {num} passes, then {num_second}, at least {least}: {prompt[:40]}")
        assert first == second == text
        assert num_second <= least + 1  # one more where an end of the text led elsewhere before
        assert num_second < num / 2 or num <= 2 * (least + 1)


@pytest.mark.timeout(1800)
def test_answers_under_a_salt_are_known_to_it_alone(texts: list[str], engine: EngineProcess):
    prompt = "Name three rivers and say where each of them rises."
    _, first = passes(engine, prompt, cache_salt="one")
    _, other = passes(engine, prompt, cache_salt="two")
    _, again = passes(engine, prompt, cache_salt="one")
    assert other == first
    assert again < first / 2


@pytest.mark.timeout(1800)
def test_requests_at_a_time_have_their_own_texts(texts: list[str], engine: EngineProcess):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: ask(engine, prompt), PROMPTS)) == texts
