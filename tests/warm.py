"""Commands of burnish in processes forked from one that has imported everything, so that starting them costs nothing.

What takes seconds in a real start is importing torch and transformers, and nothing there can be lost. Everything after
it is the real thing: the command line, the runner, a process per node, the files. The fork server is a clean process,
which has run nothing.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

IMPORTED = [
    "burnish.align.run",
    "burnish.cli.run",
    "burnish.convert.upcycle",
    "burnish.core.node",
    "burnish.distill.run",
    "burnish.evaluate.measure",
    "burnish.quantize.run",
    "burnish.report",
    "burnish.slim.run",
    "burnish.train.run",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mixtral.modeling_mixtral",
    "trl.trainer.dpo_trainer",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)


class Command:
    """A command that has been started; what it says goes to a file."""

    def __init__(self, log: Path, *arguments: str | Path, fsync_fails: tuple[str, int] | None = None) -> None:
        """
        Args:
            log: where output goes.
            *arguments: of `burnish`.
            fsync_fails: ("command" or "node", n): the n-th fsync of each such process reports a broken disk.
        """
        self.log = log
        log.write_bytes(b"")
        self._process = CONTEXT.Process(target=_command, args=(str(log), list(map(str, arguments)), fsync_fails))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came true before the command ended."""
        while not condition():
            if not self.is_running:
                return False
            time.sleep(0.001)
        return True

    def end(self, signum: int | None = None) -> int:
        """Sends a signal, waits until the command and the nodes it started are gone, and returns its exit status."""
        children = children_of(self.pid)
        if signum is not None and self.is_running:
            os.kill(self.pid, signum)
        self._process.join(600)
        while any(is_alive(child) for child in children):
            time.sleep(0.001)
        assert self._process.exitcode is not None
        return self._process.exitcode


def run(log: Path, *arguments: str | Path) -> str:
    """A command that must succeed, and what it said."""
    command = Command(log, *arguments)
    status = command.end()
    assert status == 0, command.output
    return command.output


def children_of(pid: int) -> list[int]:
    """Processes that this one started."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class _ForkedNode:
    """What the runner asks of `subprocess.Popen`, for `python -m burnish.core.node SPEC`."""

    fsync_fails: tuple[str, int] | None = None

    def __init__(
        self,
        command: list[str],
        *,
        stdin: int,
        stdout: io.BufferedWriter,
        stderr: int,
        env: dict[str, str],
        start_new_session: bool,
    ) -> None:
        reading, writing = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.dup2(stdout.fileno(), 1)
            os.dup2(writing, 2)
            os.closerange(3, 1024)  # the lock of the run among them
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _end_with(lambda: importlib.import_module(command[2]).main(*command[3:]), "node", self.fsync_fails)
        os.close(writing)
        with contextlib.suppress(ProcessLookupError):  # whoever comes first
            os.setpgid(self.pid, self.pid)
        self.stderr = os.fdopen(reading, "rb")

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 600)
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("node", timeout or 600)
            time.sleep(0.001)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


FORKING: Any = SimpleNamespace(
    Popen=_ForkedNode, **{name: getattr(subprocess, name) for name in ("PIPE", "DEVNULL", "TimeoutExpired")}
)
"""In place of `burnish.core.runner.process.subprocess`: nodes are forked from the process that runs the recipe."""


def _command(log: str, arguments: list[str], fsync_fails: tuple[str, int] | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _ForkedNode.fsync_fails = fsync_fails
    from burnish.cli import main
    from burnish.core.runner import process

    process.subprocess = FORKING

    _end_with(lambda: main(arguments), "command", fsync_fails)


def _end_with(work: Callable[[], int | None], role: str, fsync_fails: tuple[str, int] | None) -> None:
    """Ends this process as an interpreter would that did nothing but this work."""
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    if fsync_fails and fsync_fails[0] == role:
        os.fsync = _failing(os.fsync, fsync_fails[1])
    status = 1
    try:
        status = work() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _failing(fsync: Callable[[int], None], number: int) -> Callable[[int], None]:
    calls = 0

    def failing(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    return failing
