"""Who may ask: programs of this machine, and others only with the key.

A page in a browser can send requests to the loopback as well. Its requests name another Host (after a name was bound to
127.0.0.1) or carry its Origin, and both are refused.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from burnish.core.errors import SettingsError
from burnish.reason.serve.shapes import Refusal

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Guard:
    """
    Attributes:
        host: address that is listened at.
        key: that requests must carry; empty asks for none.
        names: further names by which clients call this server.
    """

    host: str = "127.0.0.1"
    key: str = ""
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.key:
            raise SettingsError(
                "would let everybody on the network ask",
                where=f"--host {self.host}",
                fix="set BURNISH_SERVE_KEY to a key",
            )

    def check(self, headers: Mapping[str, str]) -> None:
        """
        Raises:
            Refusal: 403 for a foreign Host or Origin, 401 for a wrong key.
        """
        if not self._known(_name(f"//{headers.get('Host', '')}")):
            raise Refusal("the Host header names another server", status=403, code="foreign_host")
        origin = headers.get("Origin")
        if origin is not None and not self._known(_name(origin)):
            raise Refusal("requests of a foreign page are refused", status=403, code="foreign_origin")
        if self.key:
            given = headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                raise Refusal("the API key is missing or wrong", status=401, code="invalid_api_key")

    def _known(self, name: str) -> bool:
        if name in LOOPBACK or name in self.names:
            return True
        if self.host in LOOPBACK:
            return False
        return name == self.host or _is_address(name)  # an address cannot be bound to another by a name server


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
