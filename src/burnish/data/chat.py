"""Chats as tokens, with a mark on what the assistant says.

The chat template writes out the whole conversation and, for every assistant message, the conversation up to it with the
assistant's opening. What lies between the two ends is what the assistant says. This needs no `{% generation %}` mark in
the template, and it notices a template that writes the past differently once more is said (one that drops earlier
reasoning, for example): training on such text would teach what the model never sees when it answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.core.errors import DataError
from burnish.core.outside import answered_for, bounded
from burnish.data.forms import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE_SECONDS, TEMPLATE_BYTES = 20.0, 2_000_000_000
"""What a template may take for one conversation."""


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], *, where: str = "chat"
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a conversation and whether each is said by the assistant, its end-of-turn token included.

    Of a `burnish.data.forms.Chat` the tools are written out, and what the assistant says before its `first` message
    does not count.

    Raises:
        DataError: no chat template, no fast tokenizer, no assistant message, or a template that rewrites the past.
    """
    check_template(tokenizer, where=where)
    text = written_out(tokenizer, messages, where=where)
    spans = assistant_spans(tokenizer, messages, text, where=where)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = np.array(encoded["offset_mapping"]).reshape(-1, 2)
    said = np.zeros(len(offsets), dtype=bool)
    for start, end in spans:
        said |= (offsets[:, 0] >= start) & (offsets[:, 0] < end)
    return np.array(encoded["input_ids"]), said


def check_template(tokenizer: PreTrainedTokenizerBase, *, where: str) -> None:
    """Refuses a tokenizer that can neither write a chat out nor say which token is of which letters.

    Raises:
        DataError: no chat template, or no fast tokenizer.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "is a chat (`messages`), but the tokenizer has no chat template",
            where=where,
            fix="use rows with `text`, or a model with a chat template",
        )
    if not tokenizer.is_fast:
        raise DataError("needs a fast tokenizer to find what the assistant says", where=where)


def written_out(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    *,
    where: str,
    add_generation_prompt: bool = False,
) -> str:
    """A conversation as text, by the tokenizer's chat template.

    Raises:
        DataError: the template, which is a program of the checkpoint, refuses the conversation, fails, or does not end.
    """
    what = "the tokenizer's chat template cannot write it out"
    fix = "check the roles and their order, or give the tokenizer another chat template"
    with answered_for(what, where=where, fix=fix, error=DataError), bounded(TEMPLATE_SECONDS, TEMPLATE_BYTES):
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tools=(messages.tools or None) if isinstance(messages, Chat) else None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        )


def said_in(chat: Sequence[dict[str, Any]]) -> str:
    """What is said and called in a conversation, a line each and no template's work: to learn a tokenizer from."""
    lines: list[str] = []
    for message in chat:
        lines.append(message["content"])
        for call in message.get("tool_calls", ()):
            called = call["function"]
            lines.append(f"{called['name']} {json.dumps(called.get('arguments'), ensure_ascii=False)}")
    return "\n".join(lines)


def check_questions(tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes out one question, as it is put to a model that shall answer it.

    Raises:
        DataError: no chat template, or one that cannot write it out.
    """
    if not tokenizer.chat_template:
        raise DataError(
            "problems are put to the model as chats, but its tokenizer has no chat template",
            fix="use a model with a chat template",
        )
    question = [{"role": "user", "content": "?"}]
    written_out(tokenizer, question, where="a question (role user)", add_generation_prompt=True)


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, Any]], text: str, *, where: str
) -> list[tuple[int, int]]:
    """First and last + 1 character of everything that the assistant says in the written-out conversation."""
    spans = []
    chat = messages if isinstance(messages, Chat) else Chat(list(messages))
    for number, message in enumerate(chat):
        if message["role"] != "assistant" or number < chat.first:
            continue
        before = written_out(tokenizer, Chat(chat[:number], chat.tools), where=where, add_generation_prompt=True)
        through = written_out(tokenizer, Chat(chat[: number + 1], chat.tools), where=where)
        if not text.startswith(through) or not through.startswith(before):
            raise DataError(
                f"the chat template writes message {number + 1} differently than it would when the assistant answers",
                where=where,
                fix="use one question and answer per row, or a template that only appends",
            )
        spans.append((len(before), assistant_end(tokenizer, through, len(before))))
    if not spans:
        raise DataError("has no assistant message, so nothing to learn from", where=where)
    return spans


def assistant_end(tokenizer: PreTrainedTokenizerBase, through: str, start: int) -> int:
    """Last + 1 character of what the assistant says from `start` on, where a written-out conversation ends with it.

    White space after the end-of-turn token is written by the template, never by the model.
    """
    trimmed, end_token = through.rstrip(), str(tokenizer.eos_token or "")
    return len(trimmed) if end_token and len(trimmed) > start and trimmed.endswith(end_token) else len(through)
