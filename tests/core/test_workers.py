"""Several processes give what one gives, in the same order, and leave nobody behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from burnish.core.children import childs_environment
from burnish.core.errors import StageError
from burnish.core.workers import in_order


def test_what_comes_out_is_in_the_order_of_the_items_and_an_error_comes_at_its_turn():
    items = [4.0, 1.0, -1.0, 9.0]
    for workers in (1, 2):
        found = in_order(math.sqrt, items, workers)
        assert [next(found), next(found)] == [2.0, 1.0]
        with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
            next(found)


def test_items_are_taken_as_workers_become_free_and_not_all_at_once():
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    found = in_order(math.factorial, items(), 2)
    next(found)
    assert len(taken) <= 5
    found.close()


def test_a_worker_that_is_ended_from_outside_is_said():
    with pytest.raises(StageError, match="a worker process ended without a result"):
        list(in_order(_end, [0], 2))


def _end(code: int) -> None:
    os._exit(code)


def test_workers_end_with_the_process_that_started_them(tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, time\n"
        "from burnish.core.workers import in_order\n"
        "def items():\n"
        "    yield 0.0\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    found = in_order(time.sleep, items(), 2)\n"
        "    next(found)\n",
        encoding="utf-8",
    )
    started = subprocess.Popen([sys.executable, str(program)], env=childs_environment(), start_new_session=True)
    try:
        wait_for(lambda: len(session(started.pid)) >= 2)
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
        wait_for(lambda: not session(started.pid))
    finally:
        started.kill()


def test_a_script_that_asks_for_workers_as_it_is_imported_is_told_where_to_do_so(tmp_path: Path):
    """A worker reads the script anew, and would start workers of its own."""
    program = tmp_path / "program.py"
    program.write_text("from burnish.core.workers import in_order\nprint(list(in_order(abs, range(4), 2)))\n")
    ran = subprocess.run([sys.executable, str(program)], env=childs_environment(), capture_output=True, text=True)
    assert ran.returncode != 0 and "below if __name__ == '__main__'" in ran.stderr


def session(number: int) -> list[int]:
    """Processes of a session that are still there, by the kernel's table."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # gone meanwhile
            continue
        if int(fields[3]) == number and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "not in half a minute"
        time.sleep(0.05)
