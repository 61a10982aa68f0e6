"""All programs of the code verifier at once, and what is left of them.

    python tests/verify/trials.py tests/verify/tried.json      # the newest long run

164 solutions and 164 mutants on two threads, then the hostile programs one after the other. Seconds on the wall are
those of the machine as it was; processor seconds are what the programs and their judges took.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hostile import HOSTILE, LIMITS, PROBLEM
from made_problems import made_problems

from burnish.verify import Code, walls
from burnish.verify.walled import FIRST_USER


def processes_of_programs() -> int:
    """Processes of users that only programs have."""
    return sum(entry.stat().st_uid >= FIRST_USER for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def tried() -> dict[str, Any]:
    code, problems = Code(), list(made_problems())
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with ThreadPoolExecutor(2) as pool:
        solved = list(pool.map(lambda row: code.explain(row[1], row[0]), problems))
        broken = list(pool.map(lambda row: code.explain(row[2], row[0]), problems))
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    strict, longest, wrong = Code(LIMITS), 0.0, 0
    for program in HOSTILE.values():
        start = time.monotonic()
        wrong += strict.grade(program, PROBLEM) == 0.0
        longest = max(longest, time.monotonic() - start)
    return {
        "solutions": len(solved),
        "solutions_right": solved.count("right"),
        "mutants": len(broken),
        "mutants_wrong": sum(said.startswith("wrong: AssertionError") for said in broken),
        "wall_seconds": round(wall, 1),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "cores": os.cpu_count(),
        "hostile": len(HOSTILE),
        "hostile_wrong": wrong,
        "longest_hostile_seconds": round(longest, 1),
        "allowed_hostile_seconds": LIMITS.seconds,
        "left_processes": processes_of_programs(),
        "left_directories": len(list(Path(tempfile.gettempdir()).glob(f"burnish-jail-{os.getpid()}-*"))),
    }


if __name__ == "__main__":
    if broken_walls := [wall for wall in walls() if not wall.holds]:
        sys.exit(f"nothing is run here: {broken_walls[0]}")
    found = tried()
    Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
