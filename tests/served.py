"""A server of `burnish reason serve` in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from openai import AsyncOpenAI, OpenAI

from burnish.reason.serve import Backend, Guard, listening


class Served:
    """Use as a context; `url` ends with /v1."""

    def __init__(self, backend: Backend, guard: Guard | None = None) -> None:
        self._backend, self._guard = backend, guard or Guard()
        self._loop = asyncio.new_event_loop()
        self._ready, self._ended = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _serve(self) -> None:
        async def go() -> None:
            async with listening(self._backend, self._guard) as self.url:
                self._ready.set()
                await self._ended.wait()

        self._loop.run_until_complete(go())
        self._loop.close()

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=self.url, **{"api_key": "none", "max_retries": 0, **options})

    def asking(self, **options: Any) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=self.url, **{"api_key": "none", "max_retries": 0, **options})
