"""Reading what servers send: one meaning for the forms that are found in the field, and a sentence for what is none.

Reasoning comes as `reasoning` (vLLM), as `reasoning_content` (SGLang, DeepSeek) or as a think block in the text; all
three are one thing here. A number of tokens that the server did not give is unknown, not zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from burnish.reason.calls import Endpoint, Reply, UpstreamError, Usage

_CLOSE, _OPEN = "</think>", "<think>"


def read(content: bytes, endpoint: Endpoint, key: str, *, may_be_empty: bool = False) -> Reply:
    """The reply of a chat completion with one choice.

    Args:
        may_be_empty: an empty text is an answer, as to a turn that was already at its end.

    Raises:
        UpstreamError: what came is no chat completion; such an answer is asked for again.
    """
    where = endpoint.address
    try:
        body = json.loads(content)
    except ValueError:
        kind = "an HTML page" if content.lstrip()[:1] == b"<" else "something that is no JSON"
        raise UpstreamError(
            f"answered with {kind}", where=where, fix="check that the address ends with /v1 of an OpenAI-like server"
        ) from None
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UpstreamError("answered without choices", where=where)
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise UpstreamError("answered without a message", where=where)
    text, reasoning = split(message)
    finish = str(choices[0].get("finish_reason") or "")
    empty = not text and not reasoning and not may_be_empty
    if empty and finish != "length" and not message.get("tool_calls"):
        raise UpstreamError("answered with an empty text", where=where)
    return Reply(key, endpoint.called, text, reasoning, finish, usage(body.get("usage")), logprobs(choices[0]))


def split(message: Mapping[str, Any]) -> tuple[str, str]:
    """Text and reasoning of a message. A think block that was never closed is reasoning whose answer is missing."""
    text = message.get("content") or ""
    if not isinstance(text, str):
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
    if _CLOSE in text:
        before, _, text = text.rpartition(_CLOSE)
        reasoning = "\n".join(part for part in (reasoning, before.replace(_OPEN, "").strip()) if part)
        text = text.lstrip("\n")
    elif text.lstrip().startswith(_OPEN):
        reasoning, text = text.lstrip().removeprefix(_OPEN).strip(), ""
    return text, str(reasoning)


def usage(given: Any) -> Usage:
    if not isinstance(given, dict) or not all(
        isinstance(given.get(name), int) for name in ("prompt_tokens", "completion_tokens")
    ):
        return Usage(calls=1, unknown=1)
    read_of = given.get("prompt_tokens_details") or {}
    written_of = given.get("completion_tokens_details") or {}
    return Usage(
        calls=1,
        prompt=given["prompt_tokens"],
        cached=int(read_of.get("cached_tokens") or 0),
        completion=given["completion_tokens"],
        reasoning=int(written_of.get("reasoning_tokens") or 0),
    )


def logprobs(choice: Mapping[str, Any]) -> tuple[tuple[float, ...], ...] | None:
    """For every token its log-probability and those of the alternatives, the token itself left out of these."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return None
    return tuple(
        (
            float(token["logprob"]),
            *(float(other["logprob"]) for other in token.get("top_logprobs") or () if other["token"] != token["token"]),
        )
        for token in content
    )
