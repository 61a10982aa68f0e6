"""How long does simulating an hour of a service take, and does the loader see the prefixes that the trace has?

    python benchmarks/serve_speed.py --data DIR        # DIR has mooncake_fast25_*.jsonl.gz

CPU seconds of one run each, with all that the simulator does: the conversation trace (12,031 requests, 4.1 M output
tokens) on eight engines and on one that is saturated, eight drawn tenants. Shares of prefix blocks are those of a cache
without end, over all blocks of the trace in its order.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import experiment

from burnish.serve.settings import EngineSettings, PolicySettings
from burnish.serve.simulate import simulate
from burnish.serve.traces import hit_share, read_trace, with_tenants

TRACES = {"conversation": "mooncake_fast25_conversation.jsonl.gz", "synthetic": "mooncake_fast25_synthetic.jsonl.gz"}
ENGINE = EngineSettings(num_blocks=2000)
ORDERS = ("fcfs", "vtc", "shares", "programs")
LIMIT = 100 if experiment.SMOKE else None


def measure(data: Path) -> dict[str, Any]:
    hits = {name: hit_share(read_trace(data / file)) for name, file in TRACES.items()}
    trace = read_trace(data / TRACES["conversation"], limit=LIMIT)
    workload, rows = with_tenants(trace, {f"tenant{number}": 1.0 for number in range(8)}), []
    for instances in (8, 1):
        for order in ORDERS:
            policy, costs = PolicySettings.model_validate({"order": order}), ENGINE.costs()
            begun = time.process_time()
            found = simulate(
                workload,
                lambda policy=policy, costs=costs: policy.objects(costs),
                ENGINE.shape(),
                costs,
                instances=instances,
            )
            seconds = time.process_time() - begun
            rows.append([instances, order, seconds, len(found.jobs), found.counters.steps, found.counters.calls])
            print(*rows[-1], flush=True)
    return {"hits": hits, "rows": rows}


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows = [
        [instances, order, f"{seconds:.1f}", f"{jobs:,}", f"{steps:,}", f"{calls:,}"]
        for instances, order, seconds, jobs, steps, calls in results["rows"]
    ]
    hits = [
        [name, f"{found:,}", f"{total:,}", f"{found / total:.2%}"] for name, (found, total) in results["hits"].items()
    ]
    return {
        "speed": experiment.table("engines: | order | CPU seconds: | requests: | engine steps: | plans:", rows),
        "hits": experiment.table("trace | blocks seen before: | blocks: | share:", hits),
    }


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--data", type=Path, required=True, help="directory of the Mooncake traces")
    options = command.read()
    found = measure(options.data)
    experiment.record(options.out, __doc__, found)
    for table in tables(found).values():
        print(table)


if __name__ == "__main__":
    main()
