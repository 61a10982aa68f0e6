"""The forms in which people keep texts and chats, and the two that the rest of the package knows.

| a row has | it is |
|---|---|
| `text` | a text; every token counts |
| `messages`, each {role, content}, perhaps with `tools` beside them | a chat |
| `conversations`, each {from, value} (ShareGPT) or {role, content}, perhaps with `system` | a chat |
| `prompt` and `completion`, both text | a text of which the completion counts |
| `prompt` and `completion`, both messages | a chat of which the completion counts |
| `input_ids` and `labels` beside `messages`, perhaps `kind`, `turn`, `weights` | a chat whose tokens are settled |

Content may be null where a message has tool calls alone, or a list of parts of which all are text. Arguments of a tool
call may be JSON in a string, as APIs send them; chat templates want what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from burnish.core.errors import DataError
from burnish.core.outside import kind_of_json, parse_json

MARKS = ("input_ids", "labels", "kind", "turn", "weights")
LEAST_WEIGHT = -0.1
"""Below 0 a weight is that of a token to unlearn, which soon spoils a model where it is much."""
"""Columns with a number for every token."""
COLUMNS = ("text", "messages", "conversations", "prompt", "completion", "tools", "system", "tokenizer", *MARKS)
SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
"""What the speakers of ShareGPT are called in chat templates."""


class Chat(list[dict[str, Any]]):
    """Messages of a chat, {role, content, ...}.

    Attributes:
        tools: what the assistant may call, as JSON schemas; empty where there is nothing.
        first: number of the first message that counts in the loss, where the assistant says it.
        where: file and line, or row, that it comes from; "" where that is not known.
    """

    def __init__(
        self, messages: list[dict[str, Any]], tools: list[Any] | None = None, first: int = 0, where: str = ""
    ) -> None:
        super().__init__(messages)
        self.tools, self.first, self.where = tools or [], first, where

    def __reduce__(self) -> tuple[Any, ...]:
        return Chat, (list(self), self.tools, self.first, self.where)


class Marked(Chat):
    """A chat whose tokens are settled already, as `burnish data trajectories` writes it.

    Attributes:
        marks: {column of `MARKS`: a number for every token}, `input_ids` and `labels` always among them.
        tokenizer: digest of the tokenizer that the ids are of; "" where that is not said.
    """

    def __init__(self, chat: Chat, marks: dict[str, list[Any]], tokenizer: str = "") -> None:
        super().__init__(list(chat), chat.tools, chat.first, chat.where)
        self.marks, self.tokenizer = marks, tokenizer

    def __reduce__(self) -> tuple[Any, ...]:
        return Marked, (Chat(list(self), self.tools, self.first, self.where), self.marks, self.tokenizer)


class Completion(str):
    """A text whose beginning is given.

    Attributes:
        start: number of the first character that counts in the loss.
    """

    start: int

    def __new__(cls, prompt: str, completion: str) -> Completion:
        whole = super().__new__(cls, prompt + completion)
        whole.start = len(prompt)
        return whole

    def __reduce__(self) -> tuple[Any, ...]:
        return Completion, (str(self)[: self.start], str(self)[self.start :])


Row = str | list[dict[str, Any]]


def as_row(row: Any, *, where: str) -> Row:
    """A text or a chat out of a row in one of the forms above.

    Raises:
        DataError: it is in none of them; the message says what is wrong.
    """
    if not isinstance(row, dict):
        raise DataError(f"is not an object but {kind_of_json(row)}", where=where)
    if isinstance(row.get("text"), str):
        return row["text"]
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(prompt, completion)
    tools = _tools(row.get("tools"), where)
    if isinstance(prompt, list) and isinstance(completion, list):
        return Chat(_messages(prompt + completion, where), tools, len(prompt), where)
    said = row.get("messages") or row.get("conversations")
    if isinstance(said, list):
        messages = _messages(said, where)
        if isinstance(row.get("system"), str) and row["system"].strip() and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": row["system"]})
        chat = Chat(messages, tools, where=where)
        return (
            chat if row.get("input_ids") is None else Marked(chat, _marks(row, where), str(row.get("tokenizer") or ""))
        )
    raise DataError(
        "has neither `text` (a string) nor `messages` (a list of {role, content}), nor `conversations`, nor `prompt` "
        "and `completion`",
        where=where,
    )


def _marks(row: dict[str, Any], where: str) -> dict[str, list[Any]]:
    marks = {name: row[name] for name in MARKS if row.get(name) is not None}
    for name, numbers in marks.items():
        kinds = (int, float) if name == "weights" else (int,)
        if not isinstance(numbers, list) or not all(type(number) in kinds for number in numbers):
            raise DataError(f"has {name} that is no list of numbers", where=where)
        if len(numbers) != len(marks["input_ids"]):
            what = f"has {len(numbers):,} numbers in {name}, but {len(marks['input_ids']):,} tokens"
            raise DataError(what, where=where)
    if "labels" not in marks:
        raise DataError("has input_ids without labels", where=where)
    if not all(LEAST_WEIGHT <= weight < float("inf") for weight in marks.get("weights", ())):
        raise DataError(f"has weights that are no numbers from {LEAST_WEIGHT:g} on", where=where)
    return marks


def _tools(tools: Any, where: str) -> list[Any]:
    if isinstance(tools, str) and tools.strip():
        tools = parse_json(tools, where=f"{where}, tools", error=DataError)
    if not tools:
        return []
    if not isinstance(tools, list):
        raise DataError("`tools` is not a list of schemas", where=where)
    return [_without_nulls(tool) for tool in tools]


def _messages(parts: list[Any], where: str) -> list[dict[str, Any]]:
    if not parts:
        raise DataError("has a chat without messages", where=where)
    return [_message(part, f"{where}, message {number}") for number, part in enumerate(parts, start=1)]


def _message(part: Any, where: str) -> dict[str, Any]:
    """One message in the types of JSON, its content a text."""
    if not isinstance(part, dict):
        raise DataError("is not {role, content}", where=where)
    role, content = part.get("role"), part.get("content")
    if role is None and isinstance(part.get("from"), str):
        speaker, content = part["from"], part.get("value")
        if speaker not in SHAREGPT:
            raise DataError(f"is from {speaker!r}; known are {', '.join(SHAREGPT)}", where=where)
        role, part = SHAREGPT[speaker], {key: value for key, value in part.items() if key not in ("from", "value")}
    if not isinstance(role, str):
        raise DataError("has no role", where=where)
    message = {key: _without_nulls(value) for key, value in part.items() if value is not None}
    message |= {"role": role, "content": _text(content, where)}
    if "tool_calls" in message:
        message["tool_calls"] = [_call(call, where) for call in message["tool_calls"]]
    elif content is None:
        raise DataError("has neither content nor tool calls", where=where)
    try:
        json.dumps(message)
    except (TypeError, ValueError):
        raise DataError("holds what is no JSON (a date or bytes)", where=where) from None
    return message


def _text(content: Any, where: str) -> str:
    """Content as one text; of parts, the texts one after the other."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):  # what a tool has answered
        return json.dumps(content, ensure_ascii=False)
    if not isinstance(content, list):
        raise DataError(f"has content that is {type(content).__name__}, not text", where=where)
    texts = []
    for piece in content:
        if isinstance(piece, dict) and piece.get("type", "text") == "text" and isinstance(piece.get("text"), str):
            texts.append(piece["text"])
        else:
            kind = piece.get("type", "unknown") if isinstance(piece, dict) else type(piece).__name__
            raise DataError(f"has a part of type {kind!r}, and only text can be trained on", where=where)
    return "".join(texts)


def _call(call: Any, where: str) -> dict[str, Any]:
    """A tool call as templates take it: {type, function: {name, arguments}}, with arguments that are an object."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError("has a tool call without a function's name", where=where)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = parse_json(arguments, where=f"{where}, arguments of {function['name']}", error=DataError)
    outside = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
    return {"type": "function", **outside, "function": {**function, "arguments": arguments}}


def _without_nulls(value: Any) -> Any:
    """Tables write null for every key that a row of a nested column does not have."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
