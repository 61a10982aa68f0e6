"""Commands of burnish, nodes and scripts in processes forked from one that has imported everything.

What takes seconds in a real start is importing torch and transformers, and nothing there can be lost. Everything after
it is the real thing: the command line, the runner, a process per node, the files. The fork server is a clean process,
which has run nothing. Tests of the starting itself (working directory, isolation, signals, terminals, torchrun) are
marked `real_process`; in all others the runner's nodes are forked as well (see `conftest.py`).
"""

from __future__ import annotations

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
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).resolve().parent.parent / "src" / "burnish"
WORK = ("run", "stage")
IMPORTED = [
    "burnish.cli",
    "burnish.core.node",
    "burnish.core.launch",
    "burnish.evaluate.measure",
    "burnish.report",
    *(f"burnish.{file.parent.name}.{file.stem}" for file in sorted(SOURCE.glob("*/*.py")) if file.stem in WORK),
    "peft",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mixtral.modeling_mixtral",
    "trl.trainer.dpo_trainer",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)


class Command:
    """A command that has been started; what it says goes to a file."""

    def __init__(
        self, log: Path, *arguments: str | Path, cwd: Path | None = None, fsync_fails: tuple[str, int] | None = None
    ) -> None:
        """
        Args:
            log: where output goes.
            *arguments: of `burnish`.
            cwd: where it runs; here when not given.
            fsync_fails: ("command" or "node", n): the n-th fsync of each such process reports a broken disk.
        """
        given = (str(log), list(map(str, arguments)), fsync_fails, str(cwd or Path.cwd()), dict(os.environ))
        self._start(log, _command, given)

    def _start(self, log: Path, target: Callable[..., None], given: tuple[Any, ...]) -> None:
        self.log = log
        log.write_bytes(b"")
        self._process = CONTEXT.Process(target=target, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def wait_until(self, condition: Callable[[], object]) -> bool:
        """Whether the condition came true before the command ended."""
        while not _holds(condition):
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


def _holds(condition: Callable[[], object]) -> bool:
    """Whether it holds; a directory that the command removed while the condition walked through it is not there yet."""
    try:
        return bool(condition())
    except FileNotFoundError:
        return False


class Script(Command):
    """Python code that has been started, as `python -c CODE ARGUMENTS` would be."""

    def __init__(self, log: Path, code: str, *arguments: str | Path) -> None:
        self._start(log, _script, (str(log), code, list(map(str, arguments)), str(Path.cwd()), dict(os.environ)))


def run(log: Path, *arguments: str | Path, cwd: Path | None = None) -> str:
    """A command that must succeed, and what it said."""
    return _succeeded(Command(log, *arguments, cwd=cwd))


def run_script(log: Path, code: str, *arguments: str | Path) -> str:
    """Python code that must succeed, and what it said."""
    return _succeeded(Script(log, code, *arguments))


def _succeeded(command: Command) -> str:
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


class _Node:
    """What the runner asks of `subprocess.Popen`, for `python ... -m MODULE ARGUMENTS`."""

    pid: int
    stderr: io.BufferedReader | None

    def poll(self) -> int | None:
        raise NotImplementedError

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (timeout or 600)
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("node", timeout or 600)
            time.sleep(0.001)
        return status

    def wait_for_its_session(self) -> None:
        """As `Popen` does, which returns when the new program has begun."""
        with suppress(ProcessLookupError):
            while os.getsid(self.pid) != self.pid:
                time.sleep(0.001)


class _ForkedNode(_Node):
    """Forked from a command that was itself forked from the clean process."""

    fsync_fails: tuple[str, int] | None = None

    def __init__(self, command: list[str], *, stdin: int, stdout: io.BufferedWriter, stderr: int, **own: Any) -> None:
        reading, writing = os.pipe()
        sys.stdout.flush()
        self._status: int | None = None
        # Python's own hooks around a fork swallow what a handler of a signal raises in them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        self.pid = os.fork()
        if self.pid == 0:
            _become_node(stdout.fileno(), writing, own)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            _end_with(lambda: _main_of(command), "node", self.fsync_fails)
        self.wait_for_its_session()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writing)
        self.stderr = os.fdopen(reading, "rb")

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status


class ServedNode(_Node):
    """Forked from the clean process, for a runner in the tests' own process."""

    def __init__(self, command: list[str], *, stdin: int, stdout: io.BufferedWriter, stderr: int, **own: Any) -> None:
        assert stderr == subprocess.PIPE, "a node that is forked for the tests does not share their terminal"
        ours, theirs = CONTEXT.Pipe(duplex=False)
        self._process = CONTEXT.Process(
            target=_served, args=(command, stdout.name, theirs, own, str(Path.cwd()), dict(os.environ))
        )
        self._process.start()
        theirs.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.wait_for_its_session()
        self.stderr = os.fdopen(os.dup(ours.fileno()), "rb")
        ours.close()

    def poll(self) -> int | None:
        return self._process.exitcode


def popen_of(node: type[_Node]) -> Any:
    """A stand-in for the module `subprocess` whose `Popen` forks a node."""
    names = {name: getattr(subprocess, name) for name in ("PIPE", "DEVNULL", "TimeoutExpired")}
    return SimpleNamespace(Popen=node, **names)


def _become_node(stdout: int, stderr: int, own: dict[str, Any]) -> None:
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.closerange(3, 1024)  # the lock of the run among them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    os.environ.update(own["env"])
    assert own.keys() == {"env", "start_new_session"} and own["start_new_session"]


def _main_of(command: list[str]) -> int | None:
    """Runs what `python OPTIONS -m MODULE ARGUMENTS` would."""
    module, *arguments = command[command.index("-m") + 1 :]
    main = importlib.import_module(module).main
    return main(*(int(argument) if argument.isdigit() else argument for argument in arguments))


def _served(
    command: list[str], log: str, stderr: Connection, own: dict[str, Any], cwd: str, environment: dict[str, str]
) -> None:
    from burnish.core import launch, node

    _move_to(cwd, environment)
    node.die_with = launch.die_with = lambda parent: None  # its parent is the fork server, which does not die
    _become_node(os.open(log, os.O_WRONLY | os.O_APPEND), stderr.fileno(), own)
    _end_with(lambda: _main_of(command), "node", None)


def _command(
    log: str, arguments: list[str], fsync_fails: tuple[str, int] | None, cwd: str, environment: dict[str, str]
) -> None:
    _speak_into(log)
    _move_to(cwd, environment)
    _ForkedNode.fsync_fails = fsync_fails
    from burnish.cli import main
    from burnish.core.runner import process

    process.subprocess = popen_of(_ForkedNode)

    _end_with(lambda: main(arguments), "command", fsync_fails)


def _script(log: str, code: str, arguments: list[str], cwd: str, environment: dict[str, str]) -> None:
    _speak_into(log)
    _move_to(cwd, environment)
    from burnish.core.runner import process

    process.subprocess = popen_of(_ForkedNode)
    sys.argv = ["-c", *arguments]
    _end_with(lambda: exec(code, {"__name__": "__main__"}), "command", None)


def _speak_into(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _move_to(cwd: str, environment: dict[str, str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)


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
