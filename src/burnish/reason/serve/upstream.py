"""Another server behind this one: plain requests pass as they are, byte by byte and piece by piece, both ways."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from aiohttp import ClientConnectorError, ClientError, ClientSession, ClientTimeout, TCPConnector, web

from burnish.core.errors import SettingsError
from burnish.reason.calls import Endpoint, UpstreamError
from burnish.reason.pool import refused, unreachable

_OF_A_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding")
) | {"accept-encoding", "upgrade", "host", "content-length", "expect", "authorization", "origin", "x-burnish-strategy"}
"""Headers of the connection between two, or that this server writes itself. Answers are not packed: keys are looked for
in what an error says."""
_key_of_client: ContextVar[str] = ContextVar("key_of_client", default="")


class Upstream:
    """A server, and the connections to it.

    Args:
        base_url: up to and with /v1.
        forwards_key: whether clients' keys go to it where OPENAI_API_KEY holds none; not where they are this server's.
        timeout: seconds without a byte, after which a request is given up.
        concurrency: calls of strategies at a time, for each model.
    """

    def __init__(
        self, base_url: str, *, forwards_key: bool = True, timeout: float = 600.0, concurrency: int = 256
    ) -> None:
        self._base_url, self._forwards_key = base_url.rstrip("/"), forwards_key
        self._timeout, self._concurrency = timeout, concurrency
        self._kept: ClientSession | None = None
        self._here = self.endpoint("any")

    @property
    def called(self) -> str:
        return self._here.address

    @property
    def identity(self) -> dict[str, str]:
        return {"upstream": self._here.address}

    @property
    def secrets(self) -> tuple[str, ...]:
        return self._here.secrets

    def endpoint(self, model: str) -> Endpoint:
        return Endpoint(self._base_url, model, concurrency=self._concurrency, timeout=self._timeout)

    async def models(self, request: web.Request) -> web.StreamResponse:
        return await self.plain(request, b"", {})

    async def plain(self, request: web.Request, raw: bytes, body: dict[str, Any]) -> web.StreamResponse:
        """Gives a request on, and the answer back as it comes."""
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _OF_A_HOP]
        url = self._url(request.path.removeprefix("/v1"), request.query_string)
        with self.asked_by(request.headers), self._errors(self._here):
            authorization = {"Authorization": self._authorization(self._here)}
            sent = self._session.request(
                request.method, url, data=raw or None, headers=[*headers, *authorization.items()], allow_redirects=False
            )
            async with sent as answer:
                kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _OF_A_HOP]
                if answer.status >= 400:
                    said = _without(await answer.read(), self._here.secrets)
                    response = web.Response(status=answer.status, reason=answer.reason, body=said)
                    response.headers.extend((name, value) for name, value in kept if name.lower() != "content-type")
                    response.headers["Content-Type"] = answer.headers.get("Content-Type", "application/json")
                    return response
                response = web.StreamResponse(status=answer.status, reason=answer.reason)
                response.headers.extend(kept)
                response.content_length = answer.content_length
                await response.prepare(request)
                try:
                    async for piece in answer.content.iter_any():
                        await response.write(piece)
                    await response.write_eof()
                except (ClientError, TimeoutError, ConnectionError):
                    if request.transport is not None:  # half an answer must not look like a whole one
                        request.transport.abort()
                return response

    async def transport(self, endpoint: Endpoint, body: Mapping[str, Any], /) -> bytes:
        """A call of a strategy."""
        headers = {"Authorization": self._authorization(endpoint), "Content-Type": "application/json"}
        content = json.dumps(body, ensure_ascii=False).encode()
        with self._errors(endpoint):
            async with self._session.post(
                self._url("/chat/completions"), data=content, headers=headers, allow_redirects=False
            ) as answer:
                said = await answer.read()
                if answer.status >= 400:
                    secrets = (*endpoint.secrets, _key_of_client.get().removeprefix("Bearer "))
                    text = _without(said, secrets).decode(errors="replace")
                    raise refused(endpoint, answer.status, text, answer.headers)
                return said

    @contextmanager
    def asked_by(self, headers: Mapping[str, str], /) -> Iterator[None]:
        """Calls in this context carry the client's key where there is no other."""
        token = _key_of_client.set(headers.get("Authorization", "") if self._forwards_key else "")
        try:
            yield
        finally:
            _key_of_client.reset(token)

    async def close(self) -> None:
        if self._kept is not None:
            await self._kept.close()

    @property
    def _session(self) -> ClientSession:
        if self._kept is None:
            self._kept = ClientSession(
                connector=TCPConnector(limit=0),
                timeout=ClientTimeout(total=None, sock_connect=10.0, sock_read=self._timeout),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
            )
        return self._kept

    def _url(self, path: str, query: str = "") -> str:
        address, _, own = self._here.bare_url.rstrip("/").partition("?")
        query = "&".join(part for part in (own, query) if part)
        return f"{address}{path}?{query}" if query else f"{address}{path}"

    def _authorization(self, endpoint: Endpoint) -> str:
        own = endpoint.authorization
        return _key_of_client.get() or own if own == "Bearer none" else own

    @contextmanager
    def _errors(self, endpoint: Endpoint) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise UpstreamError(f"did not answer within {self._timeout:g} s", where=endpoint.address) from None
        except ClientConnectorError as error:
            raise unreachable(endpoint, f"no connection, {error.strerror or 'no such host'}") from None
        except ClientError as error:
            raise unreachable(endpoint, type(error).__name__) from None


def _without(said: bytes, secrets: Sequence[str]) -> bytes:
    """What a server said, without keys that it repeats."""
    for secret in secrets:
        if len(secret) >= 8:
            said = said.replace(secret.encode(), b"[secret]")
    return said


def checked(base_url: str) -> str:
    """An address of a server.

    Raises:
        SettingsError: it does not end with /v1 or the like, but with a route.
    """
    for route in ("/chat/completions", "/completions", "/models"):
        if base_url.rstrip("/").endswith(route):
            raise SettingsError("ends with a route", where=f"--upstream {base_url}", fix="write it up to and with /v1")
    return base_url
