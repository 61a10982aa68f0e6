"""Servers of models, started for as long as a block of code needs them.

    with vllm(python, "models/smollm2", log=Path("vllm.log")) as engine:
        ask(engine.url)                                              # http://127.0.0.1:PORT/v1, and it answers

A guard stands between us and the engine: a small process that starts it in a process group of its own and ends the
whole group when it is told to, or when we are gone, however that came. So an exception, Ctrl-C and kill -9 leave
nothing running, and the port is free again.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from burnish.core.children import childs_environment
from burnish.core.errors import EngineError
from burnish.core.outside import check_kind

HOST = "127.0.0.1"
GRACE = 20.0
"""Seconds that an engine has to end by itself."""
_POLL = 0.05
_BEGIN = "# what an engine says, begun by burnish\n"
"""Of a log, so that no other file is written over."""


class EngineProcess:
    """A server from the beginning of a block to its end.

    Args:
        command: what starts it; `{port}` in it stands for a free port.
        log: file that what it says is written to, anew for each start.
        health: path that answers once it is ready.
        environment: variables beside those of this process; `{port}` as well.
        within: seconds until it must be ready.
        port: at which it listens; 0 is a free one.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        health: str = "/v1/models",
        environment: Mapping[str, str] | None = None,
        within: float = 900.0,
        port: int = 0,
    ) -> None:
        self._command, self._environment, self._health, self._within = command, environment or {}, health, within
        self._wanted = port
        self.log, self.port = log, 0
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Up to and with /v1."""
        return f"http://{HOST}:{self.port}/v1"

    def __enter__(self) -> Self:
        """
        Raises:
            EngineError: it ends, or is not ready in time; what it said last is in the message.
        """
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts it and waits until it is ready. Raises as the block does."""
        self.port = free_port(self._wanted)
        command = [part.replace("{port}", str(self.port)) for part in self._command]
        added = {name: value.replace("{port}", str(self.port)) for name, value in self._environment.items()}
        with self.log.open("wb") as log:
            log.write(_BEGIN.encode())
            log.flush()
            self._guard = subprocess.Popen(
                [sys.executable, "-P", "-m", "burnish.core.engines", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; the guard ends the engine when our end of the pipe closes
                # The engine finds this package, and decides the rest.
                env=os.environ | {"PYTHONPATH": childs_environment()["PYTHONPATH"]} | added,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """
        Raises:
            EngineError: it has ended.
        """
        status = self._guard.poll() if self._guard else 0
        if status is not None:
            how = f"ended with status {status}" if self._guard else "was not started"
            raise EngineError(f"{how}{self._last_words()}", where=self._command[0], fix=f"see {self.log}")

    def stop(self) -> None:
        """Ends it and everything it started; on return the port is free."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        with suppress(OSError):
            self._guard.stdin.close()
        try:
            self._guard.wait(GRACE + 10)
        finally:
            self._guard.kill()
            self._guard.wait()
            self._guard = None

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + self._within
        while not _answers(f"http://{HOST}:{self.port}{self._health}"):
            self.check()
            if time.monotonic() > end:
                what = f"was not ready within {self._within:g} s{self._last_words()}"
                raise EngineError(what, where=self._command[0], fix=f"see {self.log}")
            time.sleep(_POLL)

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").removeprefix(_BEGIN).split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f" ({said[-300:]})" if said else ""


def vllm(
    python: str | Path,
    model: str | Path,
    *options: str,
    log: Path,
    name: str | None = None,
    plugins: Sequence[str] = (),
    dtype: str = "float32",
    max_model_len: int = 2048,
    port: int = 0,
) -> EngineProcess:
    """vLLM's server on CPUs, small: no compilation, 1 GiB of keys and values.

    Args:
        python: interpreter of an environment with vLLM (`scripts/vllm-env` makes one and prints it).
        model: a checkpoint directory.
        options: further ones of `vllm serve`.
        log: file for what it says.
        name: by which clients call the model; the directory's where nothing is said.
        plugins: names of the plug-ins that it loads, of those installed in its environment; all others stay inert.
        dtype: float32 is what its texts depend least on their company in.
        max_model_len: tokens of a conversation, at most.
        port: at which it listens; 0 is a free one.
    """
    # Not `vllm serve`: that asks for the version of a package `vllm`, which the one for CPUs is not.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", HOST, "--port", "{port}"]
    command += ["--served-model-name", name or Path(model).resolve().name, "--dtype", dtype, "--enforce-eager"]
    # 0.32 for CPUs ends with "CPU Generator does not use offset" where a prompt with a seed is read in pieces.
    command += ["--max-model-len", str(max_model_len), "--no-enable-chunked-prefill", *options]
    environment = {
        "VLLM_PLUGINS": ",".join(plugins),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than the small models that CPUs serve
        "HF_HUB_OFFLINE": "1",
    }
    return EngineProcess(command, log=log, health="/health", environment=environment, port=port)


def check_log(path: Path) -> None:
    """Refuses to write a log over a file of another kind.

    Raises:
        OutputError: it is no log of an engine.
    """
    check_kind(path, lambda head: head.startswith(_BEGIN.encode()))


def free_port(wanted: int = 0) -> int:
    """A port of the loopback at which nothing listens now; the one that is wanted, where one is.

    Raises:
        EngineError: something listens at that one.
    """
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, wanted))
        except OSError as error:
            raise EngineError(f"cannot be listened at ({error.strerror})", where=f"port {wanted}") from None
        return int(found.getsockname()[1])


def _answers(url: str) -> bool:
    """Whether a server answers; one that wants a key does."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status < 500)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False


# -- the guard ---------------------------------------------------------------------------------------------------------


def main(command: Sequence[str]) -> int:
    """Runs a command in a group of its own until it ends or standard input closes; returns its status."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        engine = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    try:
        while engine.poll() is None:
            ready, _, _ = select.select([sys.stdin], [], [], _POLL)
            if ready and not os.read(sys.stdin.fileno(), 1):
                break
    finally:
        _end_group(engine)
    return engine.returncode


def _end(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def _end_group(engine: subprocess.Popen[bytes]) -> None:
    """SIGTERM for the group, SIGKILL for what is left of it."""
    with suppress(ProcessLookupError):
        os.killpg(engine.pid, signal.SIGTERM)
    end = time.monotonic() + GRACE
    while _alive(engine) and time.monotonic() < end:
        time.sleep(_POLL)
    with suppress(ProcessLookupError):
        os.killpg(engine.pid, signal.SIGKILL)
    engine.wait()
    while _alive(engine):
        time.sleep(_POLL)


def _alive(engine: subprocess.Popen[bytes]) -> bool:
    """Whether anything of the group runs; what has ended and was not fetched by its parent does not."""
    import psutil

    engine.poll()
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == engine.pid and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
