"""Keys that decide the tenant."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from burnish.core.errors import SettingsError
from burnish.serve.vllm import keys
from burnish.serve.vllm.keys import KeyedTenants, NamedInHeaders, read_keys


def ask(
    key: str | None,
    body: bytes = b"{}",
    *,
    path: str = "/v1/completions",
    method: str = "POST",
    named: dict[str, str] | None = None,
    keyed: bool = True,
) -> tuple[int, Any]:
    """What the server behind got, or the status that the layer answered with."""
    got: list[Any] = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        got.append((dict(scope["headers"]), (await receive())["body"] if method == "POST" else b""))

    answers: list[Any] = []

    async def send(message: Any) -> None:
        answers.append(message)

    parts = [body[:5], body[5:]]

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    headers = [(b"content-length", b"%d" % len(body)), (b"authorization", b"Bearer %s" % (key or "").encode())]
    headers += [(name.encode(), value.encode("latin-1")) for name, value in (named or {}).items()]
    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    layer = KeyedTenants(server, {"k1": "acme/anna", "k2": "umbrella"}) if keyed else NamedInHeaders(server)
    asyncio.run(layer(scope, receive, send))
    if answers:
        return answers[0]["status"], None
    return 200, got[0]


def test_the_key_decides_whatever_the_client_says():
    body = {"prompt": "x", "vllm_xargs": {"tenant": "umbrella", "program": "p"}}
    status, (headers, got) = ask("k1", json.dumps(body).encode())
    assert status == 200
    assert json.loads(got)["vllm_xargs"] == {"tenant": "acme/anna", "program": "p"}
    assert int(headers[b"content-length"]) == len(got)
    for given in (None, [1], "x"):
        _, (_, got) = ask("k2", json.dumps({"vllm_xargs": given}).encode())
        assert json.loads(got)["vllm_xargs"] == {"tenant": "umbrella"}


NAMED = {"X-Burnish-Tenant": "acme/ben", "x-burnish-program": "p7", "x-burnish-turn": "3", "x-burnish-tool": "größe"}


def test_headers_say_what_the_scheduler_is_told():
    body = b'{"vllm_xargs": {"tenant": "umbrella", "last": 1}}'
    _, (headers, got) = ask(None, body, named=NAMED, keyed=False)
    said = {"tenant": "acme/ben", "last": 1, "program": "p7", "turn": 3, "tool": "größe"}
    assert json.loads(got)["vllm_xargs"] == said
    assert int(headers[b"content-length"]) == len(got)
    _, (_, got) = ask("k2", body, named=NAMED)
    assert json.loads(got)["vllm_xargs"] == said | {"tenant": "umbrella"}  # the key's own


@pytest.mark.parametrize("turn", ["", "-1", "1.5", "9" * 4000, "²", "x"])
def test_a_turn_that_is_no_number_is_left_out(turn: str):
    _, (_, got) = ask(None, named={"x-burnish-turn": turn, "x-burnish-program": "p"}, keyed=False)
    assert json.loads(got)["vllm_xargs"] == {"program": "p"}


def test_without_headers_a_body_passes_as_it_is():
    assert ask(None, b"no JSON", keyed=False)[1][1] == b"no JS"  # its first piece: nothing was read here
    assert ask(None, b"no JSON", named=NAMED, keyed=False)[1][1] == b"no JSON"
    assert ask(None, method="GET", named=NAMED, keyed=False)[0] == 200


@pytest.mark.parametrize("key", [None, "", "k", "k11", "K1"])
def test_without_a_known_key_nothing_gets_through(key: str | None):
    assert ask(key)[0] == 401


def test_what_is_no_request_for_tokens_passes():
    assert ask(None, path="/health", method="GET")[0] == 200
    assert ask("k1", path="/v1/models", method="GET")[0] == 200
    assert ask("k1", b"[1, 2")[1][1] == b"[1, 2"  # for the server to refuse


def test_a_body_without_end_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "MOST_BYTES", 10)
    assert ask("k1", b"x" * 20)[0] == 413


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("k1: acme\n", 0o644, "can be read by others"),
        ("- k1\n", 0o600, "holds no keys"),
        ("k1: 5\n", 0o600, "key number 1 is not a text"),
        ("k1: a//b\n", 0o600, "key number 1"),
        ("secret: [\n", 0o600, "is not YAML"),
        ("k1: a\nk1: b\n", 0o600, "has a key twice"),
        ("k1ü: a\n", 0o600, "key number 1 has a character that no header brings"),
        ('"k1\\n": a\n', 0o600, "key number 1 has a character"),
        ("k1: ' '\n", 0o600, "key number 1 is not a text"),
        (f"k1: {'a' * 201}\n", 0o600, "key number 1 is not a text"),
    ],
)
def test_a_file_that_is_no_list_of_keys_is_refused_without_naming_one(tmp_path: Path, text: str, mode: int, told: str):
    (tmp_path / "keys.yaml").write_text(text)
    (tmp_path / "keys.yaml").chmod(mode)
    with pytest.raises(SettingsError, match=told) as refused:
        read_keys(tmp_path / "keys.yaml")
    assert "k1" not in str(refused.value) and "secret" not in str(refused.value)


def test_a_list_of_keys_is_read(tmp_path: Path):
    (tmp_path / "keys.yaml").write_text("k1: acme/anna\n")
    (tmp_path / "keys.yaml").chmod(0o600)
    assert read_keys(tmp_path / "keys.yaml") == {"k1": "acme/anna"}
