"""A draft of ours inside vLLM (method `eagle3`): the same texts, and as many tokens accepted as in transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

import burnish
from burnish.core.checkpoint import load
from burnish.core.engines import EngineProcess, vllm
from burnish.distill.speculator import Drafting, read_draft
from burnish.generate import generate
from burnish.serve.up import foretold, speculating_options

MODEL = Path(__file__).resolve().parents[2] / "models" / "smollm2"
PROMPTS = ("The city lies on the river", "In 1912 the company began to build", "The album was released in")
TOKENS = 32
SHORT: dict[str, Any] = {"answers": 48, "answer_tokens": 48, "context": 96, "epochs": 6, "vocabulary": 3072}
SHORT |= {"precision": "bfloat16"}


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = burnish.Speculator(**SHORT)(load(MODEL, dtype=torch.float32), data="wikitext2-valid")
    return made.save(tmp_path_factory.mktemp("draft") / "draft")


@pytest.fixture(scope="module")
def engine(draft: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    log = tmp_path_factory.mktemp("vllm") / "log"
    with vllm(os.environ["VLLM_PYTHON"], MODEL, *speculating_options(3, draft), log=log) as one:
        yield one


@pytest.mark.timeout(1800)
def test_texts_are_those_of_transformers_and_so_is_what_is_accepted(draft: Path, engine: EngineProcess):
    model = load(MODEL, dtype=torch.float32)
    drafting = Drafting(model, read_draft(draft), length=3)
    client = openai.OpenAI(base_url=engine.url, api_key="none", max_retries=0, timeout=600)
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "temperature": 0}
    for prompt in PROMPTS:
        saved, before = drafting.counts.saved, foretold(engine.url)
        ids = list(model.tokenizer(prompt)["input_ids"])
        plain = generate(model.module, model.tokenizer, [ids], **options)[0]
        ours = generate(model.module, model.tokenizer, [ids], speculate=drafting, **options)[0]
        said = client.completions.create(model="smollm2", prompt=ids, max_tokens=TOKENS, temperature=0)
        accepted = foretold(engine.url).accepted - before.accepted
        assert said.choices[0].text == ours.text == plain.text
        print(f"accepted: {accepted} in vLLM, {drafting.counts.saved - saved} in transformers")
        # The last pass may verify tokens past the limit, which vLLM counts and drops.
        assert abs(accepted - (drafting.counts.saved - saved)) <= 3
    assert drafting.counts.saved > 5
