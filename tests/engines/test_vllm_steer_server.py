"""`burnish serve up --steer`: what a client asks for over HTTP, what is refused, and what /metrics says."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from burnish.core.checkpoint import Lineage, Model, load
from burnish.steer import steer
from burnish.steer.vectors import Vectors
from made_vectors import MARKS, some_vectors
from small_models import small_llama, small_tokenizer

pytestmark = pytest.mark.timeout(1800)
MANY = dataclasses.replace(
    MARKS,
    separator_ids=tuple(range(0, 384, 3)),
    blank_ids=tuple(range(0, 384, 5)),
    think_end_ids=tuple(range(1, 384, 90)),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Model, Vectors]]:
    place = tmp_path_factory.mktemp("steer")
    torch.manual_seed(0)
    Model(module=small_llama(initializer_range=0.2, head_dim=32), tokenizer=small_tokenizer()).save(place / "tiny")
    model = load(place / "tiny", dtype=torch.float32)
    vectors = some_vectors(model.module, marks=MANY, model=model.identity)
    vectors.save(place / "careful", Lineage(stage="steer"))
    command = [sys.executable, "-m", "burnish", "serve", "up", str(place / "tiny"), "--steer", str(place / "careful")]
    command += ["--dtype", "float32", "--max-model-len", "256", "--log", str(place / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as running:
        assert running.stdout
        said = ""
        for line in running.stdout:
            said += line
            if found := re.search(r"steered by careful at (\S+)", line):
                yield found[1], model, vectors
                break
        else:
            pytest.fail(said + (place / "log").read_text()[-3000:])
        running.send_signal(signal.SIGINT)


def ask(url: str, prompt: list[int], arguments: dict[str, Any], num_tokens: int = 30) -> Any:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    more: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True, "vllm_xargs": arguments}
    return client.completions.create(
        model="tiny", prompt=prompt, max_tokens=num_tokens, temperature=0, extra_body=more
    ).choices[0]


def metrics(url: str) -> dict[str, float]:
    text = urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=30).read().decode()
    found = re.findall(r'^burnish_steer_tokens_total\{.*?vectors="careful".*?\} (\S+)$', text, re.MULTILINE)
    names = re.findall(r'^burnish_steer_tokens_total\{.*?what="(\w+)".*?\} ', text, re.MULTILINE)
    return dict(zip(names, map(float, found), strict=True))


def test_a_request_is_steered_and_counted_in_metrics(served: tuple[str, Model, Vectors]):
    url, model, vectors = served
    prompt = torch.randint(12, 384, (9,), generator=torch.Generator().manual_seed(3)).tolist()
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with steer(model, vectors, coef=-4.0) as steering:
        made = model.module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    plain = ask(url, prompt, {}).model_extra["token_ids"]
    turned = ask(url, prompt, {"steer": "careful:-4"}).model_extra["token_ids"]
    assert turned == made[0, len(prompt) :].tolist() != plain
    ask(url, prompt, {}, num_tokens=1)  # a further step, in which the end of the request is told
    assert metrics(url) == vars(steering.counts)


@pytest.mark.parametrize(
    ("value", "told"), [("carefree:-1", "has not loaded"), ("careful:much", "no finite number"), (3, "no text")]
)
def test_what_cannot_be_had_is_refused(served: tuple[str, Model, Vectors], value: Any, told: str):
    with pytest.raises(openai.BadRequestError, match=told):
        ask(served[0], [12, 13], {"steer": value})
