"""Strange programs behind walls: what a model wrote is run, and whatever it does stays there.

A program runs in a fresh process group, in namespaces without network and without other processes, with a root that
holds the interpreter alone, an empty environment, a directory of its own in memory, limits on processor time, memory,
files, output and processes, as a user that nobody else is. `burnish.verify.sandbox` asks whether
each of these holds here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

JAIL = Path(__file__).parent / "jail"
FIRST_USER = 2_000_000_000
FIRST_JUDGE = 2_100_000_000
"""User numbers: these and the number of the process, so that no two programs share one."""


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        seconds: on the wall, start included.
        cpu_seconds: of processor time, each process.
        memory_bytes: of address space, each process.
        processes: at a time, threads included.
        file_bytes: of one file.
        directory_bytes: of all its files; they lie in memory.
        output_bytes: of standard output, and of standard error.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20
    processes: int = 8
    file_bytes: int = 16 << 20
    directory_bytes: int = 64 << 20
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Check:
    """Tests of one function, run by a judge in a process of its own.

    Attributes:
        name: of the function, or of a method of `Solution`.
        test: Python that defines `check(candidate)`, which raises where the function is wrong.
        before: Python with what the tests use.
        data: JSON that the tests see as `DATA`.
    """

    name: str
    test: str
    before: str = ""
    data: Any = None


@dataclass(frozen=True)
class Execution:
    """How a program ended.

    Attributes:
        end: "done" by itself, or stopped for its "time" or its "output".
        code: exit status, as a shell says it: 128 and the signal where a signal ended it; None where it was stopped.
        output: what it wrote.
        errors: what it wrote to standard error.
        verdict: what the judge said: "right", or why not; empty without one, or where it could not speak.
    """

    end: Literal["done", "time", "output"]
    code: int | None
    output: str
    errors: str
    verdict: str


def run(limits: Limits, program: str, *, stdin: str = "", check: Check | None = None, isolated: bool) -> Execution:
    """Runs a program without asking whether the walls hold; see `Sandbox`, which does."""
    place = tempfile.mkdtemp(prefix=f"burnish-jail-{os.getpid()}-")
    reading, verdict = os.pipe()
    try:
        process = subprocess.Popen(
            [os.path.realpath(sys.executable), "-I", "-S", "-X", "utf8", JAIL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[verdict],
            cwd=place,
            env={},
            start_new_session=True,
        )
        job = {
            "verdict": verdict,
            "isolated": isolated,
            "place": place,
            "trees": trees() if isolated else [],
            "limits": asdict(limits),
            "users": [FIRST_USER + process.pid, FIRST_JUDGE + process.pid] if isolated and os.getuid() == 0 else None,
            "program": program,
            "stdin": stdin,
            "check": asdict(check) if check else None,
        }
        os.close(verdict)
        verdict = -1
        return _watched(process, json.dumps(job).encode(), reading, limits)
    finally:
        os.close(reading)
        if verdict >= 0:
            os.close(verdict)
        shutil.rmtree(place, ignore_errors=True)


def _watched(process: subprocess.Popen[bytes], job: bytes, verdict: int, limits: Limits) -> Execution:
    """Feeds the job, reads what comes until all is closed, and stops the group at a limit."""
    assert process.stdin and process.stdout and process.stderr
    deadline = time.monotonic() + limits.seconds
    said: dict[int, bytearray] = {
        pipe: bytearray() for pipe in (process.stdout.fileno(), process.stderr.fileno(), verdict)
    }
    end: Literal["done", "time", "output"] = "done"
    with selectors.DefaultSelector() as selector, process.stdin, process.stdout, process.stderr:
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        for pipe in said:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                end = "time"
                break
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    job = _written(process.stdin.fileno(), job)
                    if not job:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                part = os.read(key.fd, 1 << 16)
                said[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
            if max(map(len, said.values())) > limits.output_bytes:
                end = "output"
                break
        with contextlib.suppress(ProcessLookupError):  # all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    output, errors, spoken = (bytes(part[: limits.output_bytes]).decode(errors="replace") for part in said.values())
    return Execution(end, code if end == "done" else None, output, errors, spoken if end == "done" else "")


def _written(pipe: int, job: bytes) -> bytes:
    """What is left after a pipe has taken what it can."""
    try:
        return job[os.write(pipe, job[: 1 << 16]) :]
    except BrokenPipeError:
        return b""


@functools.cache
def trees() -> list[str]:
    """What a program sees of this machine, read-only: the interpreter and the libraries it stands on."""
    found = [sys.base_prefix]
    for tree in ("/lib", "/lib64", "/usr/lib", "/usr/lib64"):
        if Path(tree).exists() and not Path(tree).is_relative_to(sys.base_prefix):
            found.append(tree)
    return found
