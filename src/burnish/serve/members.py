"""Members of an ensemble that are models behind OpenAI-compatible servers: one question, one answer, what it used.

A member is asked `POST {url}/chat/completions` with one message of a user. A call that is cancelled closes its
connection, by which servers stop computing; what it had used by then nobody says, so it counts as unknown and not as 0.
Nothing is retried: where answers have deadlines, the other members are the second try.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from burnish.core.errors import BurnishError, SettingsError
from burnish.core.outside import parse_json, shown
from burnish.serve.replay import check_url

MAX_REPLY = 8 << 20
"""Bytes of a reply."""


class MemberError(BurnishError):
    """A member gave no answer.

    Attributes:
        is_away: whether nobody was there, or the server said that it cannot serve now.
    """

    def __init__(self, what: str, *, where: str, is_away: bool = False) -> None:
        super().__init__(what, where=where)
        self.is_away = is_away


@dataclass(frozen=True)
class EnsembleMember:
    """A model behind an address.

    Attributes:
        url: of the server, up to and with /v1.
        model: by its name there.
        places: questions that it is asked at a time.
        fields: of every request, such as max_tokens and temperature.
        key_variable: of the environment, which holds the server's key.
    """

    url: str
    model: str
    places: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        check_url(self.url)
        if self.places < 1:
            raise SettingsError(f"has {self.places} places", where=self.called, fix="give it one at least")
        if taken := sorted({"model", "messages", "stream", "n"} & set(self.fields)):
            raise SettingsError(f"{taken[0]!r} is no field of yours", where=self.called, fix="leave it out")

    @property
    def called(self) -> str:
        return f"{self.model} at {shown(self.url)}"

    def body(self, question: str) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": question}], **self.fields}

    def headers(self) -> dict[str, str]:
        key = os.environ.get(self.key_variable, "")
        return {"Authorization": f"Bearer {key}"} if key else {}


class AnswerReader(Protocol):
    """What of a text is the answer, and which answers are the same: every verifier of `burnish.verify` is one."""

    def extract(self, text: str) -> str | None: ...

    def equivalent(self, first: str, second: str) -> bool: ...


class WholeText:
    """The answer is the text without spaces around it; an empty one is none."""

    def extract(self, text: str) -> str | None:
        return text.strip() or None

    def equivalent(self, first: str, second: str) -> bool:
        return first == second


@dataclass
class MemberUsage:
    """What the calls of a member used.

    Attributes:
        calls: that were begun.
        prompt_tokens, completion_tokens: as its server counts them.
        unknown: calls of which no server said what they used, cancelled and failed ones among them.
        cancelled: calls that were under way when the answer was due, or nobody waited for it any more.
        failed: calls that ended without an answer.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unknown: int = 0
    cancelled: int = 0
    failed: int = 0

    def __sub__(self, before: MemberUsage) -> MemberUsage:
        return MemberUsage(*(getattr(self, one.name) - getattr(before, one.name) for one in fields(self)))

    def add(self, said: Any) -> None:
        """The `usage` of a reply."""
        told = said if isinstance(said, dict) else {}
        prompt, completion = told.get("prompt_tokens"), told.get("completion_tokens")
        if type(prompt) is int and type(completion) is int and min(prompt, completion) >= 0:
            self.prompt_tokens += prompt
            self.completion_tokens += completion
        else:
            self.unknown += 1


async def ask_member(session: Any, member: EnsembleMember, question: str, usage: MemberUsage) -> str:
    """The text of its answer; what it used is added to `usage`, whatever happens.

    Args:
        session: an aiohttp.ClientSession.
        member: who is asked.
        question: the one message.
        usage: of that member.

    Raises:
        MemberError: it is not there, refused, or answered with something that is no answer.
    """
    import aiohttp

    usage.calls += 1
    place = f"{member.url.rstrip('/')}/chat/completions"
    try:
        async with session.post(place, json=member.body(question), headers=member.headers()) as reply:
            content = await reply.content.read(MAX_REPLY)
            while not reply.content.at_eof() and len(content) < MAX_REPLY:
                content += await reply.content.read(MAX_REPLY - len(content))
            if reply.status != 200:
                busy = reply.status in (429, 502, 503, 504)
                raise MemberError(f"refused with status {reply.status}", where=member.called, is_away=busy)
            text = _taken(content, member, usage)
    except asyncio.CancelledError:
        usage.cancelled += 1
        usage.unknown += 1
        raise
    except (aiohttp.ClientError, TimeoutError) as error:
        usage.failed += 1
        usage.unknown += 1
        raise MemberError(f"is not there ({error})", where=member.called, is_away=True) from None
    except MemberError:
        usage.failed += 1
        usage.unknown += 1
        raise
    return text


def _taken(content: bytes, member: EnsembleMember, usage: MemberUsage) -> str:
    said = parse_json(content, where=member.called, error=_NoAnswer)
    try:
        text = said["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        text = None
    if not isinstance(text, str):
        raise MemberError("answered with something that is no answer", where=member.called)
    usage.add(said.get("usage"))
    return text


class _NoAnswer(MemberError):
    """A reply that is no JSON."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what, where=where or "")
