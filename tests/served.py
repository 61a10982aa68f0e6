"""Servers in threads of the test's own process: `burnish reason serve`, and any handler in place of one behind it."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

from aiohttp import web
from openai import AsyncOpenAI, OpenAI

from burnish.reason.serve import Backend, Guard, listening


class InThread(ABC):
    """Use as a context; `url` ends with /v1."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._ready, self._ended = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @abstractmethod
    def _listening(self) -> AbstractAsyncContextManager[str]:
        """What listens, and its address."""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _serve(self) -> None:
        async def go() -> None:
            async with self._listening() as self.url:
                self._ready.set()
                await self._ended.wait()

        self.loop.run_until_complete(go())
        self.loop.close()

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=self.url, **{"api_key": "none", "max_retries": 0, **options})

    def asking(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url, **{"api_key": "none", "max_retries": 0, **options})


class Served(InThread):
    """A backend behind the real server."""

    def __init__(self, backend: Backend, guard: Guard | None = None, **kept: Any) -> None:
        super().__init__()
        self._backend, self._guard, self._kept = backend, guard or Guard(), kept

    def _listening(self) -> AbstractAsyncContextManager[str]:
        return listening(self._backend, self._guard, **self._kept)


class Behind(InThread):
    """A server whose every request is answered by a function; those that were cancelled are counted."""

    def __init__(self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
        super().__init__()
        self._handler, self.cancelled = handler, 0

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[str]:
        async def counted(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await self._handler(request)  # type: ignore[arg-type]
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

        runner = web.ServerRunner(web.Server(counted, handler_cancellation=True), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        await runner.cleanup()
