"""Is a light tenant served beside a heavy one as if it were alone, and what does that cost the server?

    VLLM_PYTHON=$(scripts/vllm-env) python benchmarks/serve_light.py --data DIR --work runs/serve-light

DIR has mooncake_fast25_conversation.jsonl.gz. **In vLLM** 0.32 (an engine of one narrow layer, eight places): a tenant
asks for 60 answers at once, and a light one for one at a time; counts are of steps, so the machine does not matter.
**Simulated**: the first 3,000 requests of the Mooncake conversations on one engine that is saturated by them; a
twentieth of them, drawn, are of the light tenant, the others of the heavy one. Alone, the light tenant has the engine
to itself. Ways: first come first served; fair shares; a place left free for who has less than his share (`spare`);
taking the place of who has more (`take_places`); and, simulated only, with long prompts in pieces of 2,048 tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import experiment
import numpy as np

from burnish.serve.settings import EngineSettings, PolicySettings
from burnish.serve.simulate import Simulation, simulate
from burnish.serve.traces import read_trace, with_tenants
from burnish.serve.workload import Workload

ROOT = Path(__file__).resolve().parent.parent
TRACE = "mooncake_fast25_conversation.jsonl.gz"
WAYS: dict[str, dict[str, Any]] = {
    "first come first served": {"order": "fcfs"},
    "fair shares": {"order": "shares"},
    "fair shares, a place spared": {"order": "shares", "credit": 1, "spare": 1},
    "fair shares, places taken": {"order": "shares", "credit": 1, "take_places": True},
}
PIECES = "fair shares, places taken, pieces"
NUM = 300 if experiment.SMOKE else 3000
ENGINE = EngineSettings(num_blocks=2000)


class Bench(experiment.Kept):
    def __init__(self, work: Path, data: Path) -> None:
        super().__init__(work)
        self.work, self.data = work, data

    def names(self) -> list[str]:
        return [f"simulated, {PIECES}", *(f"{where}, {way}" for where in ("simulated", "live") for way in WAYS)]

    def measure(self, name: str) -> dict[str, Any]:
        where, way = name.split(", ", 1)
        if where == "live":
            return live(self.work, WAYS[way])
        engine = ENGINE.model_copy(update={"long_prefill_token_threshold": 2048}) if way == PIECES else ENGINE
        return self.simulated(WAYS[way.removesuffix(", pieces")], engine)

    def simulated(self, way: dict[str, Any], engine: EngineSettings) -> dict[str, Any]:
        trace = with_tenants(read_trace(self.data / TRACE, limit=NUM), {"heavy": 19.0, "light": 1.0})
        light = replace(trace, workflows=tuple(one for one in trace.workflows if one.tenant == "light"))
        alone, beside = served(light, {"order": "fcfs"}, engine), served(trace, way, engine)
        return {
            "alone": waits(alone),
            "beside": waits(beside),
            "heavy": float(np.mean([one.first_token - one.arrival for one in beside.jobs if one.tenant == "heavy"]))
            / 1e9,
            "outputs per busy second": sum(job.output for job in beside.jobs) / (beside.counters.busy / 1e9),
            "redone": sum(job.redone for job in beside.jobs) / beside.counters.scheduled,
            "lost": beside.counters.preemptions,
        }


def served(workload: Workload, way: dict[str, Any], engine: EngineSettings) -> Simulation:
    policy, costs = PolicySettings.model_validate(way), engine.costs()
    return simulate(workload, lambda: policy.objects(costs), engine.shape(), costs)


def waits(found: Simulation) -> dict[str, float]:
    """Seconds to the first token of the light tenant."""
    first = np.array([job.first_token - job.arrival for job in found.jobs if job.tenant == "light"]) / 1e9
    return {"median": float(np.median(first)), "p99": float(np.quantile(first, 0.99)), "num": len(first)}


def live(work: Path, way: dict[str, Any]) -> dict[str, Any]:
    """What the engine counts, as the tests of `make test-serve` have it."""
    with tempfile.TemporaryDirectory() as place:
        policy = Path(place) / "policy.yaml"
        policy.write_text(json.dumps(way))
        done = subprocess.run(
            [os.environ["VLLM_PYTHON"], str(ROOT / "tests/engines/dummy_engine.py"), place, "light", str(policy)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )
    return json.loads(next(line[6:] for line in done.stdout.splitlines() if line.startswith("FOUND ")))


def tables(results: dict[str, Any]) -> dict[str, str]:
    in_vllm, simulated = [], []
    base = results["live, first come first served"]["tokens a step, beside"]
    plain = results["simulated, first come first served"]["outputs per busy second"]
    for way in WAYS:
        one = results[f"live, {way}"]
        tokens = one["tokens a step, beside"]
        row = [way, max(one["alone"]), one["beside"][0], max(one["beside"][1:])]
        in_vllm.append([*row, f"{tokens:.1f} ({tokens / base:.0%})", one["places taken, beside"]])
        in_vllm[-1].append(one["computed twice, beside"])
    for way in (*WAYS, PIECES):
        one = results[f"simulated, {way}"]
        alone, beside, rate = one["alone"], one["beside"], one["outputs per busy second"]
        row = [way, f"{alone['p99']:.2f}", f"{beside['p99']:.2f} ({beside['p99'] / alone['p99']:.2f})"]
        row += [f"{alone['median']:.2f}", f"{beside['median']:.2f}", f"{one['heavy']:.0f}"]
        simulated.append([*row, f"{rate:.0f} ({rate / plain:.1%})", one["lost"], f"{one['redone']:.2%}"])
    return {
        "live": experiment.table(
            "policy | steps alone: | the first beside: | most of the others: | tokens a step: | places taken: | "
            "computed twice:",
            in_vllm,
        ),
        "simulated": experiment.table(
            "policy | p99 first token alone, s: | beside, s (times): | median alone, s: | beside, s: | "
            "heavy, mean, s: | output tokens a busy second: | places lost: | computed twice:",
            simulated,
        ),
    }


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--data", type=Path, required=True, help="directory of the Mooncake traces")
    options = command.read()
    bench = Bench(Path(options.work), options.data)

    def content() -> dict[str, Any]:
        return {name: bench.read(name) for name in bench.names()}

    experiment.answer(bench, options, __doc__, content, tables, note="counts of steps, and simulated time")


if __name__ == "__main__":
    main()
