"""Runs the benchmarks of a method: `python scripts/bench.py NAME [ARGUMENT ...]`; without a name, lists them.

NAME is a method of `burnish methods`, its page, or a benchmark. The table of methods says what each is run with, and
what it needs that a clone does not have; arguments given here take the place of the table's. Each writes
benchmarks/results/NAME.json, and the tables of the docs are made from that afterwards.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from burnish.methods import BENCHMARKS, METHODS, Benchmark

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str]) -> int:
    if not arguments:
        for benchmark in BENCHMARKS.values():
            print(f"{benchmark.name:<20}{benchmark.needs or 'needs a clone only'}")
        return 0
    name, *given = arguments
    found = chosen(name)
    if not found:
        print(f"no method and no benchmark is called {name!r}; `make bench` lists them", file=sys.stderr)
        return 1
    if not (ROOT / "models" / "smollm2").is_dir():
        run("-m", "burnish", "fetch", "smollm2", "--out", "models/smollm2")
    lacking = [benchmark for benchmark in found if benchmark.needs and not benchmark.arguments and not given]
    for benchmark in found:
        if benchmark not in lacking:
            print(f"== {benchmark.name}", flush=True)
            run(f"benchmarks/{benchmark.name}.py", *(given or benchmark.arguments))
    run("benchmarks/check.py", "--write")
    for benchmark in lacking:
        print(f"{benchmark.name} was not run, it needs {benchmark.needs}", file=sys.stderr)
        print(f"    python scripts/bench.py {benchmark.name} ARGUMENTS    (benchmarks/{benchmark.name}.py says which)")
    return 1 if lacking else 0


def chosen(name: str) -> list[Benchmark]:
    """The benchmarks that a name stands for."""
    if name in BENCHMARKS:
        return [BENCHMARKS[name]]
    return [b for method in METHODS if name.lower() in (method.name.lower(), method.page) for b in method.benchmarks]


def run(*command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
