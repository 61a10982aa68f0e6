"""What a call is: who is asked, what is asked, what came back, what it used.

A call is one sample of one conversation from one endpoint. Its *path* is its name, such as `problem-7/sample/3` or
`problem-7/rsa(n=8,k=4)/loop2/slot5`: two equal prompts under two paths are two samples. Its key is the SHA-256 of the
path, the endpoint's name and model and the body; the body holds neither the address nor any credential.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from burnish.core.errors import BurnishError, SettingsError

SCHEMA = 1
"""Of keys and of the journal; raised when either changes."""

Message = Mapping[str, Any]
Conversation = Sequence[Message]


class UpstreamError(BurnishError):
    """A server refused, failed or answered with something that is no answer.

    Attributes:
        status: of its reply; None where there was none.
        body: what it said, without credentials.
    """

    def __init__(self, what: str, *, where: str, status: int | None = None, body: str = "", fix: str | None = None):
        super().__init__(what, where=where, fix=fix)
        self.status, self.body = status, body


class ContextExceeded(UpstreamError):
    """The conversation is longer than the model's context."""


class BudgetSpent(BurnishError):
    """The next call would go beyond a budget; a strategy answers with what it has."""


@dataclass(frozen=True)
class Price:
    """Money for a million tokens; a cached token costs as any other where nothing else is said."""

    input: float
    output: float
    cached_input: float | None = None


@dataclass(frozen=True)
class Endpoint:
    """One model on one server.

    Attributes:
        base_url: up to and with `/v1`; credentials in it are used and never stored.
        model: as the server calls it.
        name: by which strategies and the journal call it; the model's where empty.
        api_key: the key, or what `key_variable` of the environment holds.
        price: None is unknown, which is never 0.
        concurrency: most calls at a time.
        sampling: fields of every body, such as `temperature`; a call's own fields go before them.
        token_field: what the server calls the limit, `max_tokens` or `max_completion_tokens`.
        seeds: whether a seed, derived from the path, is sent.
        timeout: seconds for one reply.
        continuing: fields that make the server continue an assistant turn.
        scoring: most texts at a time that it scores; each holds the logits of a whole prompt, which has ended servers.
    """

    base_url: str
    model: str
    name: str = ""
    api_key: str = field(default="", repr=False)
    key_variable: str = "OPENAI_API_KEY"
    price: Price | None = None
    concurrency: int = 64
    sampling: Mapping[str, Any] = field(default_factory=dict)
    token_field: str = "max_tokens"
    seeds: bool = True
    timeout: float = 600.0
    continuing: Mapping[str, Any] = field(
        default_factory=lambda: {"continue_final_message": True, "add_generation_prompt": False}
    )
    scoring: int = 4

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
        except ValueError:  # brackets that are no IPv6 address; what may be a password is not repeated
            raise SettingsError("base_url is no address of a server", fix="write http://HOST:PORT/v1") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingsError("is no address of a server", where=self.address, fix="write http://HOST:PORT/v1")
        if parts.username is not None and self.api_key:
            raise SettingsError("has credentials in its address and a key", where=self.address, fix="give one of them")
        if ours := sorted({"n", "stream", "messages", "model"} & set(self.sampling)):
            raise SettingsError(f"{ours[0]!r} is no sampling field", where=self.called, fix="leave it to the strategy")
        if min(self.concurrency, self.scoring) < 1:
            raise SettingsError(f"concurrency is {self.concurrency}, but at least one call must be possible")

    @property
    def called(self) -> str:
        return self.name or self.model

    @property
    def address(self) -> str:
        """Without what could be a credential; this is what messages and files show."""
        parts = urlsplit(self.base_url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @property
    def key(self) -> str:
        return self.api_key or os.environ.get(self.key_variable, "")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Whatever must not be written anywhere."""
        parts = urlsplit(self.base_url)
        basic = self.authorization.removeprefix("Basic ").removeprefix("Bearer ")
        found = [self.key, parts.password or "", parts.username or "", parts.query, basic]
        return tuple(secret for secret in found if len(secret) >= 4)

    @property
    def authorization(self) -> str:
        """The header: credentials of the address where it has some, else the key."""
        parts = urlsplit(self.base_url)
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        return f"Bearer {self.key or 'none'}"

    @property
    def bare_url(self) -> str:
        """Where requests go: credentials are in a header, a query stays."""
        parts = urlsplit(self.base_url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def body(self, conversation: Conversation, fields: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """What is sent; `max_tokens` of a caller is called what the server calls it."""
        body = {"model": self.model, "messages": list(conversation), **self.sampling, **fields}
        if "max_tokens" in body and self.token_field != "max_tokens":
            body[self.token_field] = body.pop("max_tokens")
        if self.seeds:
            body.setdefault("seed", seed)
        return body

    def scoring_body(self, conversation: Conversation, num_tops: int) -> dict[str, Any]:
        """What is sent to have the last turn scored: nothing is drawn, and no sampling field matters."""
        limit = {self.token_field: 1, "temperature": 0.0, "prompt_logprobs": num_tops}
        return {"model": self.model, "messages": list(conversation), **limit, **self.continuing}


@dataclass(frozen=True)
class Usage:
    """Tokens of some calls; `unknown` counts those of which the server did not say."""

    calls: int = 0
    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    unknown: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.calls + other.calls,
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
            self.unknown + other.unknown,
        )

    def cost(self, price: Price | None) -> float | None:
        """In the price's money; None where a price or a number of tokens is unknown."""
        if price is None or self.unknown:
            return None
        cached = price.input if price.cached_input is None else price.cached_input
        tokens = (self.prompt - self.cached) * price.input + self.cached * cached + self.completion * price.output
        return tokens / 1e6


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        key: of its call.
        text: what is shown to a reader.
        reasoning: what was thought before it, in whichever of three forms the server gave it.
        finish: the server's reason for the end; `cut` where that was the limit of tokens.
        logprobs: of the generated tokens, one list per token with its own first and then the alternatives' ones.
    """

    key: str
    endpoint: str
    text: str
    reasoning: str
    finish: str
    usage: Usage
    logprobs: tuple[tuple[float, ...], ...] | None = None

    @property
    def cut(self) -> bool:
        return self.finish == "length"

    @property
    def whole(self) -> str:
        """Reasoning and text as one trajectory."""
        return f"<think>{self.reasoning}</think>\n{self.text}" if self.reasoning else self.text


def call_key(endpoint: Endpoint, body: Mapping[str, Any], path: str) -> str:
    parts = [SCHEMA, endpoint.called, endpoint.model, path, body]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """Names JSON data by its content."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def derived_number(*parts: object) -> int:
    """31 bits that follow from the parts: a seed that no order of events can change."""
    return int.from_bytes(hashlib.sha256(canonical([str(part) for part in parts]).encode()).digest()[:4]) >> 1
