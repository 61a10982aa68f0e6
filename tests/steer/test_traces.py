"""What stands before an answer: the chat as the tokenizer's template writes it, which is a program that may fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import burnish.generate
from burnish.core.checkpoint import Model
from burnish.core.errors import DataError
from burnish.data.chain import Chains, chain_rows
from burnish.steer import traces
from burnish.steer.traces import prompt_ids
from burnish.verify import verifier
from small_models import make, small_tokenizer

CHAT = [{"role": "user", "content": "3 + 4"}]
TEMPLATE = "{% for one in messages %}{{ one['content'] }}{% endfor %}{% if add_generation_prompt %} =>{% endif %}"


def test_a_prompt_is_what_the_template_writes():
    tokenizer = small_tokenizer()
    tokenizer.chat_template = TEMPLATE
    written = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)
    assert prompt_ids(tokenizer, CHAT, where="a problem") == written["input_ids"]


def test_a_template_that_fails_is_told_with_the_problem():
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(DataError, match=r"traces\.jsonl, 7: the tokenizer's chat template cannot write it out"):
        prompt_ids(tokenizer, CHAT, where="traces.jsonl, 7")


def test_answers_that_were_written_before_a_stop_are_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two at a time, stopped at the third problem; together they are what one call draws."""
    model = Model(module=make("llama"), tokenizer=small_tokenizer())
    problems = list(chain_rows(Chains(), 3, seed=0))
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 5, "seed": 4}
    drawn, asked = burnish.generate.generate, []

    def generate(module: Any, tokenizer: Any, prompts: Any, **more: Any) -> Any:
        asked.append(len(prompts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return drawn(module, tokenizer, prompts, **more)

    monkeypatch.setattr(traces, "TOGETHER", 2)
    monkeypatch.setattr(burnish.generate, "generate", generate)
    with verifier("chain") as judge:
        with pytest.raises(KeyboardInterrupt):
            traces.sampled(model, problems, judge, tmp_path, **options)
        rows = traces.sampled(model, problems, judge, tmp_path, **options)
        assert asked == [2, 1, 1]
        prompts = [traces.question_ids(model.tokenizer, judge, problem) for problem in problems]
        whole = drawn(model.module, model.tokenizer, prompts, **options)
        assert [row["completion"] for row in rows] == [sample.text for sample in whole]
        traces.sampled(model, problems, judge, tmp_path, **options | {"seed": 5})
        assert asked == [2, 1, 1, 2, 1]
