"""Who a request is of, decided before vLLM's server sees it: by its key, or by headers.

    BURNISH_KEYS=keys.yaml vllm serve MODEL --middleware burnish.serve.vllm.keys.KeyedTenants ...
    vllm serve MODEL --middleware burnish.serve.vllm.keys.NamedInHeaders ...

`keys.yaml` has one line `key: organisation/team/tenant` for each key, and is readable by its owner alone. A request to
/v1 without one of the keys is answered with status 401. In all others `vllm_xargs.tenant` is set to that of the key,
whatever the client wrote there, so the plug-in may trust it.

vLLM hands no header to its scheduler. Both layers therefore write those of `HEADERS` into `vllm_xargs`, over what the
body says: a gateway sets headers, a client behind it writes the body. With keys the tenant's is not looked at.

Nor does a request's `cache_salt` reach what proposes tokens and must keep answers apart by it: `SaltNamed` copies it.
"""

from __future__ import annotations

import hmac
import json
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from burnish.core.asgi import Receive, body_again
from burnish.core.errors import SettingsError
from burnish.core.outside import read_bytes
from burnish.core.yaml12 import Loader
from burnish.serve.vllm.requests import MAX_NAME

HEADERS = {b"x-burnish-" + name.encode(): name for name in ("tenant", "program", "turn", "tool", "last")}
"""Of a request, and the field of `vllm_xargs` that each becomes."""
MOST_BYTES = 64 << 20
"""Of a request's body."""
Send = Callable[[dict[str, Any]], Awaitable[None]]


def read_keys(path: Path) -> dict[str, str]:
    """Tenants by key.

    Raises:
        SettingsError: no such file, one that others can read, or one with something else in it; no key is named.
    """
    fix = "write one line `key: organisation/team/tenant` for each key"
    text = read_bytes(path, error=SettingsError).decode("utf-8", "replace")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise SettingsError("can be read by others", where=str(path), fix=f"chmod 600 {path}")
    try:
        found = yaml.load(text, Loader=Loader)
    except (yaml.YAMLError, RecursionError):
        what = "is not YAML, or has a key twice"
        raise SettingsError(what, where=str(path), fix=fix) from None  # its error would show a key
    if not isinstance(found, dict) or not found:
        raise SettingsError("holds no keys", where=str(path), fix=fix)
    for place, (key, tenant) in enumerate(found.items(), start=1):
        if not isinstance(key, str) or not key or not _is_tenant(tenant):
            raise SettingsError(f"key number {place} is not a text with a tenant", where=str(path), fix=fix)
        if not key.isascii() or not key.isprintable() or " " in key:
            what = f"key number {place} has a character that no header brings"
            raise SettingsError(what, where=str(path), fix="take letters, digits and signs of ASCII, without spaces")
    return found


def _is_tenant(name: object) -> bool:
    """Whether the plug-in takes it as it is: a longer one would count as none, as all of those do."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not name.isprintable():
        return False
    return all(part.strip() for part in name.split("/"))


class NamedInHeaders:
    """The layer that reads headers, as ASGI has it.

    Args:
        app: the server.
    """

    names_salts = False

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith("/v1"):
            await self._app(scope, receive, send)
            return
        said = self._arguments(scope["headers"])
        if said is None:
            await _answer(send, 401, "the request has no key that is known")
            return
        if scope["method"] != "POST" or not (said or self.names_salts):
            await self._app(scope, receive, send)
            return
        body = await _body(receive)
        if body is None:
            await _answer(send, 413, "the request is too long")
            return
        body = _said(body, said, salt=self.names_salts)
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._app(scope | {"headers": headers}, body_again(body, receive), send)

    def _arguments(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any] | None:
        """What is written into `vllm_xargs`; None refuses the request."""
        found: dict[str, Any] = {}
        for name, value in headers:
            if field := HEADERS.get(name.lower()):
                found[field] = value.decode("latin-1")
        if "turn" in found:
            turn = found.pop("turn")
            found |= {"turn": int(turn)} if turn.isdecimal() and len(turn) < 10 else {}
        return found


class KeyedTenants(NamedInHeaders):
    """The layer that knows keys.

    Args:
        app: the server.
        keys: tenants by key; of the file that BURNISH_KEYS names where nothing is said.
    """

    def __init__(self, app: Callable[[Any, Receive, Send], Awaitable[None]], keys: Mapping[str, str] | None = None):
        super().__init__(app)
        self._keys = dict(keys) if keys is not None else read_keys(Path(os.environ["BURNISH_KEYS"]))

    def _arguments(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any] | None:
        """Of a key; every key is compared, in a time that does not tell how much of it is right."""
        headers = list(headers)
        given = dict(headers).get(b"authorization", b"").removeprefix(b"Bearer ")
        tenant = None
        for key, name in self._keys.items():
            if hmac.compare_digest(key.encode(), given):
                tenant = name
        return None if tenant is None else (super()._arguments(headers) or {}) | {"tenant": tenant}


class SaltNamed(NamedInHeaders):
    """The layer that writes a request's `cache_salt` into `vllm_xargs` as well; no header is looked at.

    Args:
        app: the server.
    """

    names_salts = True

    def _arguments(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, Any] | None:
        return {}


def _said(body: bytes, said: Mapping[str, Any], *, salt: bool = False) -> bytes:
    """A request with its arguments; what is no JSON object is for the server to refuse."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(asked, dict):
        return body
    if salt:
        found = asked.get("cache_salt")
        if not isinstance(found, str):
            return body
        said = {**said, "cache_salt": found}
    given = asked.get("vllm_xargs")
    asked["vllm_xargs"] = (given if isinstance(given, dict) else {}) | dict(said)
    return json.dumps(asked).encode()


async def _body(receive: Receive) -> bytes | None:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(send: Send, status: int, why: str) -> None:
    body = json.dumps({"error": {"message": why, "type": "invalid_request_error", "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
