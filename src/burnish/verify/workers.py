"""Questions to a library that may hang, crash or eat the memory: processes that are asked and, when late, killed.

A time limit by signal works in the main thread alone, and not inside compiled code. Here the asking side waits, with a
clock on the wall, and the process that does not answer is killed with all it started; another takes its place.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Any, Literal

from burnish.core.children import childs_environment
from burnish.core.errors import StageError

Failure = Literal["timeout", "crash"]


class Workers:
    """Processes that run `python -m MODULE`, read one JSON line a question and write one JSON line an answer.

    A process says a line when it is ready, so that its start does not count against the first question. They start
    when they are needed and serve any thread.

    Args:
        module: what they run; see `burnish.verify.worker`.
        number: how many may run at a time.
        seconds: the clock of one question.
        start_seconds: the clock of one start.
    """

    def __init__(self, module: str, *, number: int = 2, seconds: float = 10.0, start_seconds: float = 120.0) -> None:
        self.module, self.seconds, self.start_seconds = module, seconds, start_seconds
        self.failures: Counter[Failure] = Counter()
        self._turn = threading.BoundedSemaphore(number)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def ask(self, question: Any) -> tuple[Any, Failure | None]:
        """The answer, or None and what went wrong.

        Raises:
            StageError: a process that does not start, with what it said.
        """
        with self._turn:
            worker = self._take()
            try:
                answer = worker.ask(question, self.seconds)
            except (TimeoutError, EOFError) as cause:
                worker.kill()
                failure: Failure = "timeout" if isinstance(cause, TimeoutError) else "crash"
                with self._lock:
                    self.failures[failure] += 1
                return None, failure
            except BaseException:  # an interrupt: the answer may still be on its way
                worker.kill()
                raise
            with self._lock:
                self._idle.append(worker)
            return answer, None

    def close(self) -> None:
        """Ends the idle processes."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()

    def _take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        worker = _Worker(self.module)
        try:
            worker.read(self.start_seconds)
        except (TimeoutError, EOFError):
            worker.kill()
            raise StageError(f"python -m {self.module} does not start", fix="run it by hand to see why") from None
        except BaseException:
            worker.kill()
            raise
        return worker


class _Worker:
    """One process and its two pipes."""

    def __init__(self, module: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=childs_environment(),
            start_new_session=True,
        )
        self._rest = b""

    def ask(self, question: Any, seconds: float) -> Any:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise EOFError from None
        return json.loads(self.read(seconds))

    def read(self, seconds: float) -> bytes:
        """The next line."""
        assert self.process.stdout is not None
        descriptor, deadline = self.process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._rest:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            part = os.read(descriptor, 1 << 16)
            if not part:
                raise EOFError
            self._rest += part
        line, self._rest = self._rest.split(b"\n", 1)
        return line

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # what it never read
            self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()
