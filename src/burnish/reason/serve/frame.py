"""The server around a backend: routes, who may ask, errors in OpenAI's form, start and end."""

from __future__ import annotations

import asyncio
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from aiohttp import web

from burnish.core.errors import BurnishError, OutputError
from burnish.reason.calls import Endpoint
from burnish.reason.journal import Journal
from burnish.reason.pool import Transport
from burnish.reason.serve.guard import Guard
from burnish.reason.serve.shapes import error_object, error_of, read_body
from burnish.reason.serve.solving import SCRATCH, Solver, StrategyRequest
from burnish.reason.serve.wanted import wanted, without_strategy
from burnish.reason.session import Answers

LARGEST = 256 * 2**20
"""Bytes of a request; pictures are in it."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Backend(Protocol):
    """Where plain requests and the calls of strategies go: a server or a model in this process."""

    @property
    def called(self) -> str: ...
    @property
    def identity(self) -> dict[str, str]: ...
    @property
    def secrets(self) -> Sequence[str]: ...
    @property
    def transport(self) -> Transport: ...
    def asked_by(self, headers: Mapping[str, str], /) -> AbstractContextManager[None]: ...
    def endpoint(self, model: str) -> Endpoint: ...
    async def models(self, request: web.Request) -> web.StreamResponse: ...
    async def plain(self, request: web.Request, raw: bytes, body: dict[str, Any]) -> web.StreamResponse: ...
    async def close(self) -> None: ...


def application(backend: Backend, guard: Guard, solver: Solver) -> web.Application:
    """The routes."""

    async def answer(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = read_body(raw)
        found = wanted(body, request.headers)
        if found.strategy is not None and not body.get("tools") and not body.get("functions"):
            with backend.asked_by(request.headers):
                return await _solved(
                    request, solver, solver.task(found, body, chat=request.path.endswith("/chat/completions"))
                )
        if found.strategy is not None:  # a call of tools is the client's own turn: its model alone is put right
            raw = without_strategy(body, found)
            body = read_body(raw)
        return await backend.plain(request, raw, body)

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            guard.check(request.headers)
            return await handler(request)
        except web.HTTPException as error:
            body = error_object(f"{request.method} {request.path}: {error.reason}", error.status)
            return web.json_response(body, status=error.status)
        except BurnishError as error:
            status, body = error_of(error)
        except Exception as error:  # noqa: BLE001 - one request's fault is told to its client and ends no other
            traceback.print_exc(file=sys.stderr)
            status, body = error_of(error)
        return web.json_response(body, status=status)

    app = web.Application(client_max_size=LARGEST, middlewares=[guarded])
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_post("/v1/completions", answer)
    app.router.add_get("/v1/models", backend.models)
    app.router.add_get("/v1/models/{name:.+}", backend.models)
    app.router.add_get("/health", health)
    return app


async def _solved(request: web.Request, solver: Solver, task: StrategyRequest) -> web.StreamResponse:
    if not task.stream:
        return web.json_response(await solver.whole(task))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    async with aclosing(solver.events(task)) as events:
        with suppress(ConnectionError):  # the client has gone
            async for one in events:
                await response.write(one)
            await response.write_eof()
    return response


async def serve(backend: Backend, guard: Guard, *, port: int, said: Callable[[str], None], **kept: Any) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        backend: closed at the end.
        guard: whom it serves, and where it listens.
        port: 0 takes a free one.
        said: is told the address, up to and with /v1.
        kept: `out`, `answers` and `prompts` of `listening`.

    Raises:
        OutputError: the place to listen at is taken or not ours.
    """
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)
    for one in signals:
        loop.add_signal_handler(one, ended.set)
    try:
        async with listening(backend, guard, port, **kept) as address:
            said(address)
            await ended.wait()
    finally:
        for one in signals:
            loop.remove_signal_handler(one)


@asynccontextmanager
async def listening(
    backend: Backend,
    guard: Guard,
    port: int = 0,
    *,
    out: Path | None = None,
    answers: Answers | None = None,
    prompts: Mapping[str, str] | None = None,
) -> AsyncIterator[str]:
    """The server at its address; at the end who still waits is cut off and the backend closed.

    Args:
        backend: where requests go.
        guard: whom it serves, and where it listens.
        port: 0 takes a free one.
        out: where calls of strategies are kept; where nothing is said, the newest of them in a directory that goes with
            the server.
        answers: how strategies find and compare answers.
        prompts: texts in place of ours, by name.

    Raises:
        OutputError: the place to listen at is taken or not ours, or the directory holds something else.
    """
    async with AsyncExitStack() as stack:
        stack.push_async_callback(backend.close)
        place = out or Path(stack.enter_context(TemporaryDirectory(prefix="burnish-serve-")))
        most = None if out else SCRATCH
        solver = Solver(backend, Journal(place, backend.identity, secrets=backend.secrets, most=most), answers, prompts)
        stack.push_async_callback(solver.close)
        app = application(backend, guard, solver)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        try:
            await web.TCPSite(runner, guard.host, port).start()
        except OSError as error:
            where = f"{guard.host}:{port}"
            raise OutputError(f"cannot be listened at ({error.strerror})", where=where, fix="try --port 0") from None
        host = f"[{guard.host}]" if ":" in guard.host else guard.host
        yield f"http://{host}:{runner.addresses[0][1]}/v1"
