"""Does the simulator schedule as NVIDIA's DynoSim does, and what does each take?

    DYNAMO_PYTHON=/path/to/python python benchmarks/serve_dynosim.py --data DIR

DIR has mooncake_fast25_conversation.jsonl.gz; the interpreter is of an environment with benchmarks/env/dynosim.txt, and
no burnish. First come first served, blocks of 512 tokens, 8,192 tokens and 256 requests a step; our side has DynoSim's
polynomials as its costs. Waits of 300 requests on one engine, with blocks for all and with few; then processor seconds
of the whole trace on eight engines in turn (round robin), three runs of each side, alternated, in a process of its own
each; reading the trace is not counted.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import experiment
import numpy as np

TRACE = "mooncake_fast25_conversation.jsonl.gz"
POOLS = {"for all": 16384, "few": 1000}
NUM, ALL = (50, 200) if experiment.SMOKE else (300, 12_031)
RUNS = 1 if experiment.SMOKE else 3
LIMITS = {"block_size": 512, "max_num_batched_tokens": 8192, "max_num_seqs": 256}
Row = tuple[int, int, int, float, float]
"""Arrival in ms, tokens of prompt and answer, ms to the first token and to the end."""


def theirs(trace: str, num_blocks: int, engines: int) -> tuple[list[Row], float]:
    """In the environment of DynoSim."""
    from dynamo.replay import run_trace_replay  # pyright: ignore[reportMissingImports]

    begun = time.process_time()
    found = run_trace_replay(
        trace,
        extra_engine_args={"engine": {"num_gpu_blocks": num_blocks} | LIMITS},
        num_workers=engines,
        trace_block_size=512,
        capture_per_request=True,
    )
    fields = ("arrival_time_ms", "input_length", "output_length", "ttft_ms", "e2e_latency_ms")
    rows = [tuple(one[field] for field in fields) for one in found.per_request]
    return [(round(row[0]), *row[1:]) for row in rows], time.process_time() - begun


def ours(trace: str, num_blocks: int, engines: int) -> tuple[list[Row], float]:
    from burnish.serve.settings import EngineSettings, PolicySettings
    from burnish.serve.simulate import simulate
    from burnish.serve.traces import read_trace

    engine = EngineSettings.model_validate({"num_blocks": num_blocks, "cost": "dynosim"} | LIMITS)
    costs, policy, workload = engine.costs(), PolicySettings(), read_trace(Path(trace))
    begun = time.process_time()
    found = simulate(
        workload, lambda: policy.objects(costs), engine.shape(), costs, instances=engines, router="round-robin"
    )
    seconds = time.process_time() - begun
    rows = [
        (
            round(job.arrival / 1e6),
            job.prompt,
            job.output,
            (job.first_token - job.arrival) / 1e6,
            (job.finished - job.arrival) / 1e6,
        )
        for job in found.jobs
    ]
    return rows, seconds


SIDES = {"ours": ours, "theirs": theirs}


def run(side: str, trace: Path, num_blocks: int, engines: int) -> tuple[list[Row], float]:
    """A run in a process of its own."""
    python = os.environ["DYNAMO_PYTHON"] if side == "theirs" else sys.executable
    words = [python, __file__, "--inside", side, str(trace), str(num_blocks), str(engines)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    rows, seconds = json.loads(next(line[6:] for line in done.stdout.splitlines() if line.startswith("FOUND ")))
    return [tuple(row) for row in rows], seconds


def compared(mine: list[Row], other: list[Row]) -> dict[str, float]:
    """Requests are paired by arrival and lengths."""
    mine, other = sorted(mine), sorted(other)
    assert [row[:3] for row in mine] == [row[:3] for row in other]
    first, theirs = np.array([row[3] for row in mine]), np.array([row[3] for row in other])
    return {
        "requests": len(mine),
        "ours": float(first.mean()) / 1000,
        "theirs": float(theirs.mean()) / 1000,
        "median": float(np.median(abs(first - theirs) / theirs)),
        "largest": float((abs(first - theirs) / theirs).max()),
    }


def measure(data: Path) -> dict[str, Any]:
    lines = gzip.decompress((data / TRACE).read_bytes()).splitlines(keepends=True)
    with tempfile.TemporaryDirectory() as place:
        few, whole = Path(place) / "few.jsonl", Path(place) / "whole.jsonl"
        few.write_bytes(b"".join(lines[:NUM]))
        whole.write_bytes(b"".join(lines[:ALL]))
        waits = {name: compared(*(run(side, few, blocks, 1)[0] for side in SIDES)) for name, blocks in POOLS.items()}
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        rows: dict[str, list[Row]] = {}
        for _ in range(RUNS):
            for side in SIDES:
                rows[side], taken = run(side, whole, 2000, 8)
                seconds[side].append(taken)
    return {"waits": waits, "seconds": seconds, "whole": compared(rows["ours"], rows["theirs"])}


def tables(results: dict[str, Any]) -> dict[str, str]:
    named = {f"one, blocks {name}": one for name, one in results["waits"].items()} | {"eight": results["whole"]}
    rows = [
        [
            name,
            f"{one['requests']:,}",
            f"{one['theirs']:.3f}",
            f"{one['ours']:.3f} ({one['ours'] / one['theirs'] - 1:+.3%})",
            f"{one['median']:.3%}",
            f"{one['largest']:.1%}",
        ]
        for name, one in named.items()
    ]
    seconds = [[side, *(f"{one:.1f}" for one in results["seconds"][side])] for side in SIDES]
    runs = " | ".join(f"run {place + 1}:" for place in range(len(results["seconds"]["ours"])))
    header = (
        "engines | requests: | mean first token, DynoSim, s: | ours, s: | median difference of a request: | largest:"
    )
    return {"waits": experiment.table(header, rows), "seconds": experiment.table(f"CPU seconds | {runs}", seconds)}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--data", type=Path, required=True, help="directory of the Mooncake traces")
    options = command.read()
    found = measure(options.data)
    experiment.record(options.out, __doc__, found)
    for table in tables(found).values():
        print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        print("FOUND " + json.dumps(SIDES[sys.argv[2]](sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
    else:
        main()
