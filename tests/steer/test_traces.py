"""What stands before an answer: the chat as the tokenizer's template writes it, which is a program that may fail."""

from __future__ import annotations

import pytest

from burnish.core.errors import DataError
from burnish.steer.traces import prompt_ids
from small_models import small_tokenizer

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
