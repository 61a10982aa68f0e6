"""What layers of a web server share, in the words of ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


def body_again(content: bytes, afterwards: Callable[[], Awaitable[Any]]) -> Receive:
    """What an application receives: a body that was read before, then what comes of the connection."""
    told = False

    async def receive() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await afterwards()
        told = True
        return {"type": "http.request", "body": content, "more_body": False}

    return receive
