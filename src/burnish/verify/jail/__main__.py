"""Reads a job, builds the walls, and runs a program behind them, with a judge beside it where the job has a check.

    this process ── first process of the namespaces ─┬─ program   (own user, all limits)
    (waits)         (keeps its rights, runs nothing) └─ judge     (own user, all limits; says "right" to who asked)

The judge holds the tests and what they expect. It calls the program's function through two pipes that carry plain data
alone, so a program can neither see the tests, nor change what they compare, nor speak in the judge's place.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import trial  # pyright: ignore[reportMissingImports] (this directory is the path)
import walls  # pyright: ignore[reportMissingImports]


def main() -> None:
    job = json.load(sys.stdin)
    sys.path.pop(0)
    if not job["isolated"]:
        walls.die_with_parent()
        os._exit(inside(job))
    walls.leave_namespaces()
    first = os.fork()
    if first == 0:
        walls.die_with_parent()
        walls.private_root(job["place"], job["trees"], job["limits"]["directory_bytes"])
        os._exit(inside(job))
    os.close(job["verdict"])
    os._exit(status_of(os.waitpid(first, 0)[1]))


def inside(job: dict[str, Any]) -> int:
    """Runs the program, and the judge where there is one; the exit status of whichever decides."""
    check = job["check"]
    around = 2 if check is None else 3
    calls, asked = os.pipe()
    answered, answers = os.pipe()
    given = os.memfd_create("stdin")
    os.write(given, job["stdin"].encode())
    os.lseek(given, 0, os.SEEK_SET)

    def program() -> None:
        os.dup2(given, 0)
        os.close(job["verdict"])
        for descriptor in (given, asked, answered):
            os.close(descriptor)
        walls.confine(job["limits"], job["users"] and job["users"][0], around)
        if check is None:
            trial.run(job["program"])
        else:
            trial.answer_calls(job["program"], check["name"], calls, answers)

    def judge() -> None:
        for descriptor in (given, calls, answers):
            os.close(descriptor)
        walls.confine(job["limits"], job["users"] and job["users"][1], around)
        verdict = trial.judged(check, asked, answered)
        os.write(job["verdict"], verdict.encode()[:4096])

    deciding = forked(program)
    if check is not None:
        deciding = forked(judge)
    for descriptor in (job["verdict"], given, calls, asked, answered, answers):
        os.close(descriptor)
    while True:
        pid, status = os.wait()
        if pid == deciding:
            return status_of(status)


def forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        work()
        sys.stdout.flush()
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
    except BaseException as error:  # noqa: BLE001 (of a strange program: whatever it is, it is said and ends here)
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(1)
    os._exit(0)


def status_of(status: int) -> int:
    """As a shell says it: 128 and the signal where a signal ended it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


main()
