"""An engine runs while its block does, and nothing of it afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from burnish.core.engines import EngineProcess, _answers
from burnish.core.errors import EngineError

pytestmark = pytest.mark.real_process

SERVER = """
import http.server, subprocess, sys, signal, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "300"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v1/models" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def engine(log: Path, *more: str, code: str = SERVER, **options: float) -> EngineProcess:
    return EngineProcess([sys.executable, "-c", code, "{port}", *more], log=log, **options)  # type: ignore[arg-type]


def child_of(log: Path) -> int:
    while "child" not in log.read_text():
        time.sleep(0.01)
    return int(log.read_text().split("child")[1].split()[0])


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_answers_in_the_block_and_is_gone_with_its_children_after_it(tmp_path: Path):
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt), engine(log) as one:
        assert _answers(f"{one.url}/models")
        child = child_of(log)
        assert not gone(child)
        one.check()
        raise KeyboardInterrupt
    assert gone(child)
    assert not _answers(f"{one.url}/models")
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", one.port))
    with pytest.raises(EngineError, match="was not started"):
        one.check()


def test_one_that_ignores_the_request_to_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = "from burnish.core import engines; import sys; engines.GRACE = 0.2; sys.exit(engines.main(sys.argv[1:]))"
    guard = subprocess.Popen(
        [sys.executable, "-c", script, sys.executable, "-c", SERVER, "0", "stubborn"],
        stdin=subprocess.PIPE,
        stdout=(tmp_path / "log").open("wb"),
    )
    child = child_of(tmp_path / "log")
    assert guard.stdin is not None
    guard.stdin.close()
    assert guard.wait() == -signal.SIGKILL & 0xFF
    assert gone(child)


def test_it_is_gone_when_we_are_killed(tmp_path: Path):
    log = tmp_path / "log"
    script = f"""
from pathlib import Path
import sys, time
from burnish.core.engines import EngineProcess
with EngineProcess([sys.executable, "-c", {SERVER!r}, "{{port}}"], log=Path({str(log)!r})):
    print("ready", flush=True)
    time.sleep(300)
"""
    us = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert us.stdout is not None and us.stdout.readline()
    child = child_of(log)
    os.kill(us.pid, signal.SIGKILL)
    us.wait()
    while not gone(child):
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('no such model'); raise SystemExit(3)", r"ended with status 3 \(no such model\)"),
        ("import time; print('loading', flush=True); time.sleep(300)", r"was not ready within 1.5 s \(loading\)"),
    ],
)
def test_one_that_never_answers_is_an_error_with_its_last_words(tmp_path: Path, code: str, said: str):
    with pytest.raises(EngineError, match=said), engine(tmp_path / "log", code=code, within=1.5):
        pass


def test_a_command_that_does_not_exist_is_an_error(tmp_path: Path):
    one = EngineProcess(["/nowhere/vllm"], log=tmp_path / "log")
    with pytest.raises(EngineError, match="/nowhere/vllm: No such file"), one:
        pass
