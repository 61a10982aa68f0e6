"""Reading what servers send: one meaning for the forms that are found in the field, and a sentence for what is none.

Reasoning comes as `reasoning` (vLLM), as `reasoning_content` (SGLang, DeepSeek) or as a think block in the text; all
three are one thing here. A number of tokens that the server did not give is unknown, not zero.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from burnish.reason.calls import Endpoint, Reply, UpstreamError, Usage

_CLOSE, _OPEN, _UNKNOWN = "</think>", "<think>", "\ufffd"


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


def read_score(content: bytes, endpoint: Endpoint, key: str, text: str) -> Reply:
    """The reply of a chat completion that was asked for the log-probabilities of its prompt, whose last turn is a text.

    Its `logprobs` are those of the text alone. Servers read such a prompt anew, so that nothing of it counts as cached.

    Raises:
        UpstreamError: what came has none, or the tokens at its end are not those of the text.
    """
    reply, body = read(content, endpoint, key, may_be_empty=True), json_of(content)
    positions = body.get("prompt_logprobs")
    if not isinstance(positions, list) or not positions:
        raise Unscored(
            "gave no log-probabilities of a given text", where=endpoint.address, fix="name another model as the scorer"
        )
    try:
        tokens = [_position(one) for one in positions if one is not None]
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        what = "gave log-probabilities of a given text that are none"
        raise Unscored(what, where=endpoint.address, fix="name another model as the scorer") from None
    try:
        scores = _of_text(tokens, text)
    except ValueError:
        what = "gave log-probabilities of another text than the one it was given"
        fix = "its chat template may rewrite answers; name another model as the scorer"
        raise Unscored(what, where=endpoint.address, fix=fix) from None
    return replace(reply, usage=replace(reply.usage, cached=0), logprobs=scores)


class Unscored(UpstreamError):
    """A server that does not score texts; to ask it again would change nothing."""


Scored = tuple[str, tuple[float, ...]]
"""A token as it is written, and its log-probability with those of the alternatives."""


def _position(given: Mapping[str, Any]) -> Scored:
    """Of a position, by the ids of tokens: the one that stands there is named first, then the likeliest."""
    (_, own), *others = given.items()
    found = (float(own["logprob"]), *(float(one["logprob"]) for _, one in others))
    if not all(math.isfinite(one) for one in found):
        raise ValueError("a score that is no number")
    return str(own["decoded_token"]), found


def _of_text(tokens: list[Scored], text: str) -> tuple[tuple[float, ...], ...]:
    """Those tokens at the end that write the text, blanks left out of the comparison: servers show them in many ways.

    A letter in several tokens shows as a sign for what is unknown; the next known token says where such a run began.

    Raises:
        ValueError: they write something else.
    """
    letters = "".join(text.split())
    left, first, unknown = len(letters), len(tokens), False
    while left > 0:
        if first == 0:
            raise ValueError("the text is longer than what was scored")
        written = "".join(tokens[first - 1][0].split())
        if _UNKNOWN in written:
            unknown = True
        elif letters.endswith(written, 0, left):
            left, unknown = left - len(written), unknown and not written
        elif written.endswith(letters[:left]):  # it begins in what stands before the text
            left = 0
        elif not unknown:
            raise ValueError("another text")
        elif (place := letters.rfind(written, 0, left)) >= 0:
            left, unknown = place, False
        elif letters[:left].isascii():
            raise ValueError("another text")
        else:  # the text begins with letters that are unknown
            break
        first -= 1
    return tuple(scores for _, scores in tokens[first:])
