"""Masks of fuzzed conversations equal a character-level oracle, which writes the templates out by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from burnish.core.checkpoint.tokenizer import read_tokenizer
from burnish.core.errors import DataError
from burnish.data.forms import Chat
from burnish.data.packing import IGNORED
from burnish.data.trajectories.kinds import TokenKind
from burnish.data.trajectories.masks import MaskedRow, masked_rows

TOOLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content and m.role == 'assistant' %}"
    "{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content }}"
    "{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + (c.function.arguments | tojson) + '</call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETS = TOOLS.replace(
    "m.role == 'assistant' %}", "loop.index0 > (messages | map(attribute='role') | list).index('user') and loop.last %}"
)
"""The same, but thoughts are written in the last message alone."""


@pytest.fixture(scope="module")
def plain(smollm2: Path) -> PreTrainedTokenizerBase:
    return read_tokenizer(smollm2)


@pytest.fixture(scope="module")
def tools(smollm2: Path) -> PreTrainedTokenizerBase:
    tokenizer = read_tokenizer(smollm2)
    tokenizer.chat_template = TOOLS
    return tokenizer


Spans = list[tuple[str, bool]]
"""Pieces of a conversation, and whether the model has written each."""


def in_smollm2(chat: list[dict[str, Any]]) -> Spans:
    first = chat[0]["role"] != "system"
    said: Spans = []
    if first:
        said.append(
            (
                "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n",
                False,
            )
        )
    for message in chat:
        mine = message["role"] == "assistant"
        said += [(f"<|im_start|>{message['role']}\n", False), (f"{message['content']}<|im_end|>", mine), ("\n", False)]
    return said


def in_tools(chat: list[dict[str, Any]]) -> Spans:
    said: Spans = []
    for message in chat:
        mine = message["role"] == "assistant"
        thought = f"<think>{message['reasoning_content']}</think>" if mine and message.get("reasoning_content") else ""
        calls = "".join(
            f"<call>{c['function']['name']} {json.dumps(c['function']['arguments'], ensure_ascii=False)}</call>"
            for c in message.get("tool_calls", ())
        )
        said += [
            (f"<|im_start|>{message['role']}\n", False),
            (f"{thought}{message['content']}{calls}<|im_end|>", mine),
            ("\n", False),
        ]
    return said


def oracle(tokenizer: PreTrainedTokenizerBase, said: Spans) -> tuple[list[int], list[int], bool]:
    """Ids and labels through the last character that the model has written: a token counts where its letters do.

    And whether the ids of everything before each border, tokenized anew, are the first ids of the whole.
    """
    last = max(number for number, (_, mine) in enumerate(said) if mine)
    text = "".join(piece for piece, _ in said[: last + 1])
    letters = [mine for piece, mine in said[: last + 1] for _ in piece]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    borders = [place for place in range(1, len(text)) if letters[place] != letters[place - 1]]
    alone = [tokenizer(text[:place], add_special_tokens=False)["input_ids"] for place in borders]
    labels = [token if letters[start] else IGNORED for token, (start, _) in zip(ids, offsets, strict=True)]
    return ids, labels, all(ids[: len(before)] == before for before in alone)


PARTS = [*'ab {}"\n\\\t<|', "é", "漢", "🙂", "\u0301", "<|im_", "assistant\n", "</call>"]
WORDS = st.lists(st.sampled_from(PARTS), max_size=10).map("".join)
ARGUMENTS = st.dictionaries(st.sampled_from(["path", "command", "n"]), st.one_of(WORDS, st.integers(-9, 9)), max_size=2)
CALL = st.builds(
    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
    st.sampled_from(["ls", "edit_file", "finish"]),
    ARGUMENTS,
)


@st.composite
def conversations(draw: st.DrawFn, with_calls: bool) -> Chat:
    chat: list[dict[str, Any]] = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    chat.append({"role": "user", "content": draw(WORDS)})
    for _ in range(draw(st.integers(1, 3))):
        message: dict[str, Any] = {"role": "assistant", "content": draw(WORDS)}
        calls = draw(st.lists(CALL, max_size=2)) if with_calls else []
        if with_calls and draw(st.booleans()):
            message["reasoning_content"] = draw(WORDS)
        if calls:
            message["tool_calls"] = calls
        chat.append(message)
        chat += [{"role": "tool", "content": draw(WORDS)} for _ in calls] or [{"role": "user", "content": draw(WORDS)}]
    return Chat(chat)


def agrees(tokenizer: PreTrainedTokenizerBase, chat: Chat, written: Callable[[list[dict[str, Any]]], Spans]) -> None:
    ids, labels, separable = oracle(tokenizer, written(chat))
    if not separable:
        with pytest.raises(DataError, match="a token lies across the border"):
            masked_rows(tokenizer, chat, where="fuzz")
        return
    (row,) = masked_rows(tokenizer, chat, where="fuzz")
    assert row.input_ids.tolist() == ids
    assert row.labels.tolist() == labels
    assert ((row.kind > 0) == (row.labels != IGNORED)).all()
    assert sorted(set(row.turn.tolist()) - {-1}) == list(range(sum(m["role"] == "assistant" for m in chat)))


@settings(max_examples=100, deadline=None)
@given(chat=conversations(with_calls=False))
def test_masks_equal_the_oracle_in_the_template_of_smollm2(plain: PreTrainedTokenizerBase, chat: Chat):
    agrees(plain, chat, in_smollm2)


@settings(max_examples=100, deadline=None)
@given(chat=conversations(with_calls=True))
def test_masks_equal_the_oracle_in_a_template_with_calls_and_thoughts(tools: PreTrainedTokenizerBase, chat: Chat):
    agrees(tools, chat, in_tools)


def turn(content: str = "", thought: str = "", *calls: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    made = [{"type": "function", "function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    message: dict[str, Any] = {"role": "assistant", "content": content}
    return message | ({"reasoning_content": thought} if thought else {}) | ({"tool_calls": made} if made else {})


def shown(tokenizer: PreTrainedTokenizerBase, row: MaskedRow, kind: TokenKind) -> str:
    return str(tokenizer.decode(row.input_ids[row.kind == kind]))


def test_every_token_has_the_kind_of_its_piece(tools: PreTrainedTokenizerBase):
    chat = Chat(
        [
            {"role": "user", "content": "Mend it."},
            turn("I look.", "First of all.", ("bash", {"command": "cat bash"})),
            {"role": "tool", "content": "x"},
            turn("", "", ("edit_file", {"path": "a.py", "new": "x = 2"}), ("bash", {"command": "ls"})),
            {"role": "tool", "content": "ok"},
            {"role": "tool", "content": "ok"},
            turn("It is mended.", "Good."),
        ]
    )
    (row,) = masked_rows(tools, chat, where="here")
    of = {kind: shown(tools, row, kind) for kind in TokenKind}
    assert of[TokenKind.REASONING] == "<think>First of all.</think>I look.<call><think>Good.</think>"
    assert of[TokenKind.ACTION] == "bash<call>edit_filebash"
    assert of[TokenKind.ARGUMENTS] == ' {"command": "cat bash"}</call><|im_end|> {"command": "ls"}</call><|im_end|>'
    assert of[TokenKind.EDIT] == ' {"path": "a.py", "new": "x = 2"}</call><call>'
    assert of[TokenKind.FINAL] == "It is mended.<|im_end|>"


def test_an_agent_that_acts_in_text_reasons_before_its_last_block_of_code(plain: PreTrainedTokenizerBase):
    act = {"role": "assistant", "content": "I look.\n```bash\nls\n```"}
    (row,) = masked_rows(
        plain, Chat([{"role": "user", "content": "?"}, act, {"role": "user", "content": "a"}, act]), where=""
    )
    assert shown(plain, row, TokenKind.REASONING) == "I look.\n"
    assert shown(plain, row, TokenKind.ARGUMENTS) == "```bash\nls\n```<|im_end|>"
    assert shown(plain, row, TokenKind.FINAL) == act["content"] + "<|im_end|>"


def test_a_template_that_forgets_thoughts_gives_a_row_for_each_rewrite_and_counts_every_turn_once(smollm2: Path):
    tokenizer = read_tokenizer(smollm2)
    tokenizer.chat_template = FORGETS
    chat = Chat(
        [
            {"role": "user", "content": "one"},
            turn("first", "think 1"),
            {"role": "user", "content": "two"},
            turn("second"),
            {"role": "user", "content": "three"},
            turn("third", "think 3"),
        ]
    )
    rows = masked_rows(tokenizer, chat, where="here")
    trained = [tokenizer.decode(row.input_ids[row.labels != IGNORED]) for row in rows]
    assert trained == ["<think>think 1</think>first<|im_end|>", "second<|im_end|><think>think 3</think>third<|im_end|>"]
    assert [row.messages for row in rows] == [2, 6]
    assert "think 1" not in tokenizer.decode(rows[1].input_ids)
    assert [sorted(set(row.turn.tolist()) - {-1}) for row in rows] == [[0], [1, 2]]
    for row, messages in zip(rows, (2, 6), strict=True):  # what the model saw then
        whole = str(tokenizer.apply_chat_template(list(chat[:messages]), tokenize=False))
        assert whole.startswith(str(tokenizer.decode(row.input_ids)))


def test_an_opening_that_changes_once_it_is_answered_is_refused_with_both_pieces(smollm2: Path):
    tokenizer = read_tokenizer(smollm2)
    tokenizer.chat_template = TOOLS.replace("assistant\n'", "assistant\n<think>\n'")
    with pytest.raises(DataError) as caught:
        masked_rows(tokenizer, Chat([{"role": "user", "content": "?"}, turn("yes")]), where="here")
    message = str(caught.value)
    assert "here: turn 1 cannot be told from its prompt" in message
    assert "'<think>\\n'" in message
    assert "'yes<|im_end|>\\n'" in message


def test_a_token_across_the_border_is_refused_with_both_pieces(smollm2: Path):
    tokenizer = read_tokenizer(smollm2)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(DataError, match=r"in turn 1 a token lies across the border .*'[^']*: ' ends in other tokens"):
        masked_rows(tokenizer, Chat([{"role": "user", "content": "?"}, turn("yes")]), where="here")


def test_calls_that_a_template_leaves_out_are_refused(plain: PreTrainedTokenizerBase):
    chat = Chat(
        [
            {"role": "user", "content": "?"},
            turn("I look.", "", ("bash", {"command": "ls"})),
            {"role": "tool", "content": "a"},
        ]
    )
    with pytest.raises(DataError, match="calls 'bash', which the chat template does not write out"):
        masked_rows(plain, chat, where="here")


def test_ids_at_a_border_are_compared_as_if_each_prompt_were_tokenized_alone(tools: PreTrainedTokenizerBase):
    chat = Chat(
        [
            {"role": "user", "content": "a"},
            *(part for n in range(5) for part in (turn(f"b {n}"), {"role": "user", "content": " c"})),
        ]
    )
    (row,) = masked_rows(tools, chat, where="here")
    for number in range(5):
        prompt = tools.apply_chat_template(list(chat[: 1 + 2 * number]), tokenize=False, add_generation_prompt=True)
        alone = tools(str(prompt), add_special_tokens=False)["input_ids"]
        assert int(np.flatnonzero(row.turn == number)[0]) == len(alone)
        assert row.input_ids[: len(alone)].tolist() == alone
