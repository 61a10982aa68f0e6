"""A node's process: started, listened to, and its end turned into a result or one clear error.

It has a session of its own, so that Ctrl-C on a terminal reaches burnish alone, which then stops the process and
whatever that has started.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from burnish.core import errors
from burnish.core.checkpoint import write_atomically
from burnish.core.children import childs_environment
from burnish.core.errors import StageError, located
from burnish.core.interrupts import handle

NODE_ERROR_STATUS = 3
"""Exit status of a node's process that ended with a `BurnishError` and wrote it down."""


def spawn(
    directory: Path, name: str, spec: dict[str, Any], *, where: str, processes: int = 1, memory_settings: str = ""
) -> None:
    """Runs `burnish.core.node` in a fresh process and turns its end into a result or one clear error, which says where.

    Args:
        directory: of the run.
        name: of the node.
        spec: what the process reads.
        where: the file, line and node of the recipe.
        processes: started by torchrun where there are several.
        memory_settings: what to lower when memory runs out.
    """
    work = directory / "work"
    work.mkdir(parents=True, exist_ok=True)
    spec_file = work / f"{name}.{spec['task']}.json"
    error_file = spec_file.with_suffix(".error")
    error_file.unlink(missing_ok=True)
    write_atomically(spec_file, json.dumps(spec | {"error_file": str(error_file), "parent": os.getpid()}))
    start = ["burnish.core.node"] if processes == 1 else ["burnish.core.launch", str(processes)]
    command = [sys.executable, "-m", *start, str(spec_file)]
    logs = directory / "logs"
    logs.mkdir(exist_ok=True)
    log_file = logs / f"{name}.log"
    with log_file.open("ab") as log:
        show = sys.stderr.isatty()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=None if show else subprocess.PIPE,
            env=childs_environment(spec["stage"].partition(":")[0]),
            start_new_session=True,
        )
        try:
            if process.stderr is not None:
                for line in process.stderr:
                    log.write(line)
                    log.flush()
                    sys.stderr.buffer.write(line)
                    sys.stderr.flush()
            status = process.wait()
        except BaseException:
            _end(process)
            raise
    if status == 0:
        spec_file.unlink()
        return
    if error_file.is_file():
        content = json.loads(error_file.read_text(encoding="utf-8"))
        error_file.unlink()
        spec_file.unlink()
        error = getattr(errors, content["type"], StageError)
        raise located(errors.remade(error, content["what"], where=content["where"], fix=content["fix"]), where)
    raise located(_death(status, log_file, memory_settings), where)


def _death(status: int, log_file: Path, memory_settings: str) -> StageError:
    if status < 0:
        cause = killed_by(-status)
        advice = "run the same command again to continue"
        if -status == signal.SIGKILL:
            lower = f"lower {memory_settings}, " if memory_settings else ""
            advice = f"{lower}close other programs, then run the same command again"
        return StageError(f"its process {cause}", fix=advice)
    return StageError(f"its process failed with status {status}", fix=f"the traceback is in {log_file}")


def killed_by(number: int) -> str:
    """What happened to a process that a signal ended. The kernel sends SIGKILL where memory runs out."""
    memory = ", most likely because memory ran out" if number == signal.SIGKILL else ""
    return f"was killed by signal {number} ({signal.Signals(number).name}){memory}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks a child and what it has started to stop, then makes them, at once where Ctrl-C is pressed again.

    A bar that it had on the terminal is closed.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(timeout=10)
            break
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
    if sys.stderr.isatty():
        from rich.console import Console

        Console(stderr=True).show_cursor()
        print(file=sys.stderr)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: the child is stopped and the lock released."""
    try:
        before = handle(signal.SIGTERM)
    except ValueError:  # not in the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
