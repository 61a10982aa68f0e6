"""Reading what servers send: one meaning for the forms that are found in the field, and a sentence for what is none.

Reasoning comes as `reasoning` (vLLM), as `reasoning_content` (SGLang, DeepSeek) or as a think block in the text; all
three are one thing here. A number of tokens that the server did not give is unknown, not zero.
"""

from __future__ import annotations

import json
import math
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
    body = json_of(content)
    if body is None:
        kind = "an HTML page" if content.lstrip()[:1] == b"<" else "something that is no JSON"
        raise UpstreamError(
            f"answered with {kind}", where=where, fix="check that the address ends with /v1 of an OpenAI-like server"
        )
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UpstreamError("answered without choices", where=where)
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise UpstreamError("answered without a message", where=where)
    text, reasoning = split(message)
    finish = _text(choices[0].get("finish_reason"))
    empty = not text and not reasoning and not may_be_empty
    if empty and finish != "length" and not message.get("tool_calls"):
        raise UpstreamError("answered with an empty text", where=where)
    return Reply(key, endpoint.called, text, reasoning, finish, usage(body.get("usage")), logprobs(choices[0]))


def json_of(content: bytes | str) -> Any:
    """What bytes say in JSON; None where they are none, or nested as no answer is."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def split(message: Mapping[str, Any]) -> tuple[str, str]:
    """Text and reasoning of a message. A think block that was never closed is reasoning whose answer is missing."""
    text = _text(message.get("content"))
    reasoning = _text(message.get("reasoning")) or _text(message.get("reasoning_content"))
    if _CLOSE in text:
        before, _, text = text.rpartition(_CLOSE)
        reasoning = "\n".join(part for part in (reasoning, before.replace(_OPEN, "").strip()) if part)
        text = text.lstrip("\n")
    elif text.lstrip().startswith(_OPEN):
        reasoning, text = text.lstrip().removeprefix(_OPEN).strip(), ""
    return text, reasoning


def _text(given: Any) -> str:
    """A text, or parts that have some; anything else says nothing. Halves of characters, which no file can hold, go."""
    if isinstance(given, list):
        return "".join(_text(part.get("text")) for part in given if isinstance(part, dict))
    return given.encode("utf-8", "replace").decode() if isinstance(given, str) else ""


def usage(given: Any) -> Usage:
    """Unknown where a number is missing, or is none that can be."""
    counts = [_count(given, name) for name in ("prompt_tokens", "completion_tokens")]
    if None in counts:
        return Usage(calls=1, unknown=1)
    prompt, completion = (one or 0 for one in counts)
    cached = _count(given.get("prompt_tokens_details"), "cached_tokens") or 0
    reasoning = _count(given.get("completion_tokens_details"), "reasoning_tokens") or 0
    return Usage(calls=1, prompt=prompt, cached=min(cached, prompt), completion=completion, reasoning=reasoning)


def _count(given: Any, name: str) -> int | None:
    number = given.get(name) if isinstance(given, dict) else None
    fits = isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 2**53
    return number if fits else None


def logprobs(choice: Mapping[str, Any]) -> tuple[tuple[float, ...], ...] | None:
    """For every token its log-probability and those of the alternatives, the token itself left out of these.

    None where there are none, or one is no number: a score of the others would be one of something else.
    """
    given = choice.get("logprobs")
    content = given.get("content") if isinstance(given, dict) else None
    if not isinstance(content, list) or not content:
        return None
    try:
        found = tuple(
            (
                float(token["logprob"]),
                *(float(o["logprob"]) for o in token.get("top_logprobs") or () if o["token"] != token["token"]),
            )
            for token in content
        )
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return None
    return found if all(math.isfinite(one) for token in found for one in token) else None
