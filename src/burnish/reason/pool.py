"""The client: calls by name, each issued once, retried by us, durable before it is seen.

    async with Pool([Endpoint("http://127.0.0.1:8000/v1", "qwen")], Journal("runs/a")) as pool:
        reply = await pool.call("qwen", [{"role": "user", "content": "2 + 2?"}], path="p1/sample/0")

`openai` carries the requests over its aiohttp transport and gives its errors; retries are ours, so that each of them is
in the journal. Every call asks for one choice with a seed that follows from its path: a server that drops `n`, or gives
one text for one seed, changes nothing. Two who ask for one name at the same time share one request.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from burnish.core.errors import MissingExtraError, SettingsError, nearest
from burnish.reason.calls import (
    ContextExceeded,
    Conversation,
    Endpoint,
    Reply,
    UpstreamError,
    Usage,
    call_key,
    derived_number,
)
from burnish.reason.journal import Journal
from burnish.reason.limits import START, Budget, Limiter
from burnish.reason.replies import Unscored, read, read_score

_TOO_LONG = (
    "context length",
    "context_length",
    "context size",
    "context window",
    "maximum context",
    "prompt is too long",
)
RETRIED = (408, 409, 425, 429)
LONGEST_WAIT = 60.0


class Transport(Protocol):
    """What carries a body to `/chat/completions` of an endpoint and returns the bytes of the reply."""

    async def __call__(self, endpoint: Endpoint, body: Mapping[str, Any], /) -> bytes: ...


class Pool:
    """Endpoints behind one journal.

    Args:
        endpoints: models by name; the first is the default.
        journal: where calls are kept.
        budget: of the run, what an earlier process used included.
        seed: from which seeds of calls follow.
        concurrency: most calls at a time in all.
        start: calls at a time to one endpoint at first.
        attempts: requests for one call before it is given up.
        first_wait: seconds, at most, before the second attempt; each further one may wait twice as long.
        transport: for tests and servers in this process.

    Raises:
        SettingsError: no endpoint, or two of one name.
        MissingExtraError: without openai.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        journal: Journal,
        *,
        budget: Budget | None = None,
        seed: int = 0,
        concurrency: int = 256,
        start: int = START,
        attempts: int = 8,
        first_wait: float = 0.5,
        transport: Transport | None = None,
    ) -> None:
        self.endpoints = {endpoint.called: endpoint for endpoint in endpoints}
        if not endpoints or len(self.endpoints) < len(endpoints):
            raise SettingsError("there must be one model or more", fix="give every model a name of its own")
        self.journal, self.seed, self._budget = journal, seed, budget or Budget()
        self._attempts, self._first_wait, self._limited = attempts, first_wait, self._budget != Budget()
        self._start = start
        self._limiters = {name: Limiter(one.concurrency, start) for name, one in self.endpoints.items()}
        self._all = asyncio.Semaphore(concurrency)
        self._scoring = {name: asyncio.Semaphore(one.scoring) for name, one in self.endpoints.items()}
        self._transport = transport or OpenAITransport(self.endpoints.values())
        self._under_way: dict[str, tuple[asyncio.Task[Reply], list[int]]] = {}
        before = journal.paid()
        self._used = {name: before[name].usage if name in before else Usage() for name in self.endpoints}
        self._num_calls = sum(usage.calls for usage in self._used.values())
        self._began = time.monotonic()

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends what is under way and gives connections back; the journal stays open."""
        tasks = [task for task, _ in self._under_way.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(self._transport, OpenAITransport):
            await self._transport.close()

    def add(self, endpoint: Endpoint) -> None:
        """One more endpoint, for a pool with a transport that reaches it."""
        self.endpoints[endpoint.called] = endpoint
        self._limiters[endpoint.called] = Limiter(endpoint.concurrency, self._start)
        self._scoring[endpoint.called] = asyncio.Semaphore(endpoint.scoring)
        self._used[endpoint.called] = Usage()

    def endpoint(self, name: str | None = None) -> Endpoint:
        if name is None:
            return next(iter(self.endpoints.values()))
        if name not in self.endpoints:
            guess = nearest(name, list(self.endpoints))
            fix = f"did you mean {guess!r}?" if guess else f"use one of {', '.join(self.endpoints)}"
            raise SettingsError(f"there is no model {name!r}", fix=fix)
        return self.endpoints[name]

    async def call(
        self, model: str | None, conversation: Conversation, path: str, fields: Mapping[str, Any] | None = None
    ) -> Reply:
        """The answer of a call, from the journal where it is finished.

        Raises:
            BudgetSpent: before the request.
            ContextExceeded: the conversation is too long for the model.
            UpstreamError: the server refuses, or fails each time.
        """
        endpoint = self.endpoint(model)
        body = endpoint.body(conversation, fields or {}, derived_number(self.seed, endpoint.called, path))
        return await self._once(endpoint, body, path)

    async def score(self, model: str | None, conversation: Conversation, path: str, num_tops: int) -> Reply:
        """The last turn of a conversation with its log-probabilities, in a reply that says nothing itself.

        Few texts are scored at a time, and whoever waits for that takes nobody's place.

        Raises:
            BudgetSpent, ContextExceeded, UpstreamError: as of `call`, and where the server scores no texts.
        """
        endpoint = self.endpoint(model)
        return await self._once(
            endpoint, endpoint.scoring_body(conversation, num_tops), path, scored=conversation[-1]["content"]
        )

    async def _once(self, endpoint: Endpoint, body: Mapping[str, Any], path: str, scored: str | None = None) -> Reply:
        """The answer of a call that is issued where nobody has it or waits for it; `scored` is a text to be scored."""
        key = call_key(endpoint, body, path)
        if key not in self._under_way:
            kept = self.journal.find(key)
            if kept is not None:
                return kept
            task = asyncio.create_task(self._issue_in_turn(endpoint, body, path, key, scored))
            self._under_way[key] = (task, [0])
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        task, waiting = self._under_way[key]
        waiting[0] += 1
        try:
            return await asyncio.shield(task)
        finally:
            waiting[0] -= 1
            if not waiting[0] and not task.done():
                task.cancel()  # nobody wants it any more

    async def _issue_in_turn(
        self, endpoint: Endpoint, body: Mapping[str, Any], path: str, key: str, scored: str | None
    ) -> Reply:
        if scored is None:
            return await self._issue(endpoint, body, path, key, None)
        async with self._scoring[endpoint.called]:
            return await self._issue(endpoint, body, path, key, scored)

    async def _issue(
        self, endpoint: Endpoint, body: Mapping[str, Any], path: str, key: str, scored: str | None
    ) -> Reply:
        limiter = self._limiters[endpoint.called]
        for attempt in range(self._attempts):
            entered = await limiter.enter()
            trouble = False
            try:
                async with self._all:
                    return await self._fly(endpoint, body, path, key, scored)
            except UpstreamError as error:
                trouble = worth_another(error) and error.status not in (408, 409, 425)
                if not worth_another(error) or attempt + 1 == self._attempts:
                    raise
                wait = self._wait(error, attempt)
            finally:
                limiter.leave(entered, trouble=trouble)
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _fly(self, endpoint: Endpoint, body: Mapping[str, Any], path: str, key: str, scored: str | None) -> Reply:
        """One request, noted before it leaves and when it is back."""
        name = endpoint.called
        if self._limited:
            prices = {each: one.price for each, one in self.endpoints.items()}
            self._budget.check(self._used, prices, self._num_calls, time.monotonic() - self._began)
        self._num_calls += 1
        flight = await self.journal.depart(key, path, name)
        began = time.monotonic()
        try:
            content = await self._transport(endpoint, body)
            continues = body["messages"][-1].get("role") == "assistant"
            if scored is None:
                reply = read(content, endpoint, key, may_be_empty=continues)
            else:
                reply = read_score(content, endpoint, key, scored)
        except UpstreamError as error:
            status = str(error.status or "no answer")
            await self.journal.fail(flight, time.monotonic() - began, status, f"{error.what} {error.body}".strip())
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self.journal.fail(flight, time.monotonic() - began, "cancelled", ""))
            raise
        await self.journal.arrive(flight, time.monotonic() - began, path, body, reply)
        self._used[name] += reply.usage
        return reply

    def _wait(self, error: UpstreamError, attempt: int) -> float:
        """Full jitter under a bound that doubles; a server that names its time is asked again after it."""
        named = getattr(error, "retry_after", None)
        if named is not None:
            return min(named, LONGEST_WAIT)
        return random.uniform(0, min(LONGEST_WAIT, self._first_wait * 2**attempt))


class Refused(UpstreamError):
    """A reply with an error's status.

    Attributes:
        retry_after: seconds, where the server named them.
    """

    retry_after: float | None = None


class OpenAITransport:
    """`openai` over aiohttp, without retries of its own."""

    def __init__(self, endpoints: Any, *, read_timeout: Callable[[Endpoint], float] = lambda one: one.timeout) -> None:
        for package in ("openai", "aiohttp"):
            if find_spec(package) is None:
                raise MissingExtraError(package, "reason", "asking a server")
        from openai import AsyncOpenAI, DefaultAioHttpClient

        self._clients = {
            endpoint.called: AsyncOpenAI(
                base_url=endpoint.bare_url,
                api_key="none",
                default_headers={"Authorization": endpoint.authorization},
                max_retries=0,
                timeout=read_timeout(endpoint),
                http_client=DefaultAioHttpClient(limits=_limits(endpoint)),
            )
            for endpoint in endpoints
        }

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def __call__(self, endpoint: Endpoint, body: Mapping[str, Any], route: str = "/chat/completions") -> bytes:
        import httpx2
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            client = self._clients[endpoint.called]
            return (await client.post(route, cast_to=httpx2.Response, body=dict(body))).content
        except APITimeoutError as error:
            if isinstance(error.__cause__, httpx2.ConnectTimeout):  # what this transport calls a refused connection
                raise unreachable(endpoint, "no connection") from None
            raise UpstreamError(f"did not answer within {endpoint.timeout:g} s", where=endpoint.address) from None
        except APIStatusError as error:
            raise refused(endpoint, error.status_code, error.response.text, error.response.headers) from None
        except APIConnectionError as error:
            cause = error.__cause__
            raise unreachable(endpoint, type(cause).__name__ if cause else str(error)) from None
        except httpx2.HTTPError as error:
            raise UpstreamError(f"broke off ({type(error).__name__})", where=endpoint.address) from None


def unreachable(endpoint: Endpoint, why: str) -> UpstreamError:
    fix = "check that a server runs there"
    return UpstreamError(f"cannot be reached or broke off ({why})", where=endpoint.address, fix=fix)


def refused(endpoint: Endpoint, status: int, body: str, headers: Mapping[str, str]) -> UpstreamError:
    """The error of a status, without the credentials that some servers repeat."""
    for secret in endpoint.secrets:
        body = body.replace(secret, "[secret]")
    lowered = body.lower()
    if status in (400, 413, 422) and any(sign in lowered for sign in _TOO_LONG):
        return ContextExceeded(
            "the conversation is longer than the model's context", where=endpoint.address, status=status, body=body
        )
    advice = {
        401: "check the key",
        403: "check the key",
        404: f"check the address and the model's name {endpoint.model!r}",
    }
    error = Refused(
        f"refused with status {status} ({' '.join(body.split())[:200] or 'no text'})",
        where=endpoint.address,
        status=status,
        body=body,
        fix=advice.get(status),
    )
    named = headers.get("retry-after", "")
    error.retry_after = float(named) if named.replace(".", "", 1).isdigit() else None
    return error


def worth_another(error: UpstreamError) -> bool:
    passing = error.status is None or error.status in RETRIED or error.status >= 500
    return passing and not isinstance(error, Unscored)


def _limits(endpoint: Endpoint) -> Any:
    import httpx2

    return httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
