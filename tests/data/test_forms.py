"""Texts and chats in the forms in which people keep them."""

import gzip
import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from burnish.core.errors import DataError
from burnish.data import check_disjoint, data_hash, read_rows, read_texts
from burnish.data.chat import chat_tokens
from burnish.data.forms import Chat, Completion, as_row
from burnish.data.packing import documents
from burnish.train.scratch import learn_tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Bern"}'}}
TOOL_CHAT = {
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Weather in Bern?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": {"sky": "clear"}},
        {"role": "assistant", "content": "It is clear."},
    ],
    "tools": [WEATHER],
}
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments.town }}</call>"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAREGPT = {
    "system": "Be brief.",
    "conversations": [
        {"from": "human", "value": "Who jumps?"},
        {"from": "gpt", "value": "The quick brown fox."},
    ],
}


@pytest.fixture(scope="module")
def tokenizer():
    words = learn_tokenizer(["The quick brown fox jumps over the lazy dog. Weather in Bern is clear. " * 5], 280)
    words.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    words.chat_template = TEMPLATE
    return words


def said(tokenizer, row):
    """What counts in the loss, as text."""
    (document,) = documents(tokenizer, [as_row(row, where="row")])
    return tokenizer.decode(document.tokens[document.supervised])


def test_calls_of_tools_and_answers_are_learned_and_what_tools_say_is_not(tokenizer):
    assert said(tokenizer, TOOL_CHAT) == "<call>weather Bern</call><|im_end|>It is clear.<|im_end|>"


def test_the_tools_are_written_out(tokenizer):
    tokens, _ = chat_tokens(tokenizer, as_row(TOOL_CHAT, where="row"))
    assert tokenizer.decode(tokens).startswith('<tools>[{"type": "function", "function": {"name": "weather"')


def test_a_row_is_the_same_chat_as_json_lines_json_and_table_and_with_text_for_its_tools(tmp_path):
    written = {**TOOL_CHAT, "tools": json.dumps(TOOL_CHAT["tools"])}
    (tmp_path / "lines.jsonl").write_text(json.dumps(TOOL_CHAT) + "\n" + json.dumps(written) + "\n")
    (tmp_path / "list.json").write_text(json.dumps([TOOL_CHAT, written], indent=2))
    (tmp_path / "lines.json").write_text(json.dumps(TOOL_CHAT) + "\n" + json.dumps(written) + "\n")
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(json.dumps([TOOL_CHAT, written]).encode()))
    # A table has one type for a column, so that every message has every key.
    flat = [{"role": m["role"], "content": m.get("content")} | {"tool_calls": m.get("tool_calls")} for m in _flat()]
    table = pyarrow.table({"messages": [flat, flat], "tools": [written["tools"]] * 2, "id": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "table.parquet")
    chats = {name: read_rows(tmp_path / name) for name in ("lines.jsonl", "list.json", "lines.json", "list.json.gz")}
    first = chats["lines.jsonl"][0]
    for rows in chats.values():
        assert rows == [first, first] and [row.tools for row in rows] == [[WEATHER]] * 2
    (row, _) = read_rows(tmp_path / "table.parquet")
    assert [m["content"] for m in row] == [m["content"] for m in first] and row.tools == [WEATHER]
    assert row[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"town": "Bern"}}
    assert "tool_calls" not in row[1]


def _flat():
    for message in as_row(TOOL_CHAT, where="row"):
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message.get("tool_calls", [])
        ]
        yield {**message, "tool_calls": calls or None}


def test_sharegpt_is_a_chat(tokenizer):
    row = as_row(SHAREGPT, where="row")
    assert [m["role"] for m in row] == ["system", "user", "assistant"]
    assert said(tokenizer, SHAREGPT) == "The quick brown fox.<|im_end|>"


def test_of_prompt_and_completion_the_completion_counts(tokenizer):
    assert said(tokenizer, {"prompt": "Who jumps?", "completion": " The fox."}) == " The fox.<|im_end|>"
    chat = {
        "prompt": [*SHAREGPT_MESSAGES, {"role": "user", "content": "Over what?"}],
        "completion": [{"role": "assistant", "content": "The dog."}],
    }
    assert said(tokenizer, chat) == "The dog.<|im_end|>"


SHAREGPT_MESSAGES = [{"role": "user", "content": "Who jumps?"}, {"role": "assistant", "content": "The fox."}]


def test_what_counts_belongs_to_the_hash():
    whole, completed = {"text": "ab"}, {"prompt": "a", "completion": "b"}
    assert data_hash([whole]) != data_hash([completed]) != data_hash([{"prompt": "", "completion": "ab"}])
    assert data_hash([TOOL_CHAT]) != data_hash([{"messages": TOOL_CHAT["messages"]}])


@pytest.mark.parametrize("row", [TOOL_CHAT, {"prompt": "a", "completion": "b"}])
def test_rows_survive_a_pickle_with_what_comes_with_them(row):
    row = as_row(row, where="row")
    again = pickle.loads(pickle.dumps(row))
    assert again == row and type(again) is type(row) and vars(again) == vars(row)


@pytest.mark.parametrize(
    "row, words",
    [
        ({"messages": [{"role": "user", "content": None}]}, "message 1: has neither content nor tool calls"),
        ({"messages": [{"content": "x"}]}, "message 1: has no role"),
        ({"messages": []}, "has neither `text`"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "part of type 'image_url'"),
        ({"messages": [{"role": "user", "content": 3}]}, "content that is int"),
        ({"messages": ["x"]}, "message 1: is not {role, content}"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "is from 'alien'"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]}, "tool call without a function's name"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "arguments of f: is not valid JSON",
        ),
        ({"messages": [{"role": "user", "content": "x"}], "tools": 3}, "`tools` is not a list"),
        ({"prompt": "x"}, "has neither"),
        ([1], "is not an object but a list"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row, words):
    with pytest.raises(DataError, match=f"row 7.*{words}"):
        as_row(row, where="row 7")


LINES = ['{"text": "one"}', "{", '{"messages": []}', '{"text": "two"}']


def test_bad_rows_are_refused_or_left_out_and_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(LINES))
    with pytest.raises(DataError, match=r"rows.jsonl:2"):
        read_rows(path)
    skipped: list[str] = []
    assert read_rows(path, skipped=skipped) == ["one", "two"]
    assert [text.split(": ")[0].rpartition("/")[2] for text in skipped] == ["rows.jsonl:2", "rows.jsonl:3"]
    assert data_hash(path) == data_hash(["one", "two"])
    check_disjoint(path, ["three"])


def test_a_chat_that_the_template_cannot_write_is_left_out_like_a_row(tokenizer):
    skipped: list[str] = []
    unanswered = Chat([{"role": "user", "content": "Why?"}])
    found = list(documents(tokenizer, [unanswered, Completion("a", "b")], where="rows", skipped=skipped))
    assert len(found) == 1 and skipped[0].startswith("rows, chat 1: has no assistant message")


def test_chats_become_texts_with_their_tools(tokenizer):
    (text,) = read_texts([TOOL_CHAT], tokenizer=tokenizer)
    assert text.startswith("<tools>") and text.rstrip().endswith("It is clear.<|im_end|>")
