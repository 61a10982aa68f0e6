"""Does the simulator predict what vLLM does: the wait for a first token, and which of three policies is best?

    VLLM_PYTHON=$(scripts/vllm-env) python benchmarks/serve_engine.py --data DIR --work runs/serve-engine

DIR has mooncake_fast25_conversation.jsonl.gz. vLLM 0.32 for CPUs runs a small model with random weights in one process.
Its clock is the processor time of its own steps: requests are given to it when that clock has reached their arrival, so
that other work on the machine moves nothing. 200 requests are served under three policies, by the engine and by the
simulator. The costs of a step come from the fit that recordings have, to 100 other requests, half of which are there
at once and half of which come when the engine is idle: served by another process under first come first served, or by
the same process before, of a tenant of their own, and with the prefix cache emptied between; and, to tell the
scheduling from the costs, to the run itself. Lengths are a sixteenth of the trace's, conversations of at most 1,900
tokens, four drawn tenants, and arrivals so close that all would take 1.25 times as long to serve as to come.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import experiment
import numpy as np

from burnish.serve.recorded import fit_linear
from burnish.serve.replay import prompt_of
from burnish.serve.settings import EngineSettings, PolicySettings
from burnish.serve.simulate import simulate
from burnish.serve.traces import read_trace, scaled, with_tenants
from burnish.serve.workload import Workload

TRACE = "mooncake_fast25_conversation.jsonl.gz"
POLICIES = ("fcfs", "vtc", "dlpm")
NUM, TUNING = (20, 10) if experiment.SMOKE else (200, 100)
SMOKE = ["--smoke"] if experiment.SMOKE else []
LOAD = 1.25
HOUR = 3_600_000_000_000
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "vocab_size": 256,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
COUNTS = ("steps", "prompt tokens", "decodes", "seconds")
OTHER, SAME, ITSELF = "costs of another process", "of this process before", "of the run itself"
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_PLUGINS": "",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def workload(data: Path, span: float | None) -> Workload:
    """The reporting slice, all of which comes within so many seconds; without a span the tuning slice, one by one."""
    trace = scaled(read_trace(data / TRACE, limit=1000), shrink=16, longest=1900)
    if span is None:
        rows = enumerate(trace.workflows[NUM : NUM + TUNING])
        return replace(trace, workflows=tuple(replace(row, arrival=place * HOUR) for place, row in rows))
    rows = tuple(replace(row, arrival=row.arrival - trace.workflows[0].arrival) for row in trace.workflows[:NUM])
    found = with_tenants(replace(trace, workflows=rows), {f"tenant{place}": 1 / place for place in range(1, 5)}, 0)
    return scaled(found, speed=found.workflows[-1].arrival / 1e9 / span)


def at_once(tuning: Workload) -> Workload:
    """The first half of the tuning slice."""
    return replace(tuning, workflows=tuple(replace(one, arrival=0) for one in tuning.workflows[: TUNING // 2]))


class Bench(experiment.Kept):
    def __init__(self, work: Path, data: Path) -> None:
        super().__init__(work)
        self.work, self.data = work, data

    def names(self) -> list[str]:
        return ["tuning", *POLICIES]

    def measure(self, name: str) -> dict[str, Any]:
        span = None if name == "tuning" else self.span()
        model = self.work / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text(json.dumps(MODEL))
        task = {"data": str(self.data), "policy": name if span else "fcfs", "span": span, "model": str(model)}
        done = subprocess.run(
            [os.environ["VLLM_PYTHON"], __file__, "--inside", json.dumps(task), *SMOKE],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | QUIET,
        )
        return json.loads(next(line[6:] for line in done.stdout.splitlines() if line.startswith("FOUND ")))

    def span(self) -> float:
        """Seconds within which the reporting slice comes: what it takes to serve, by the half of the tuning slice that
        was there at once, over the load."""
        return self.together() * NUM / (TUNING // 2) / LOAD

    def together(self) -> float:
        """Seconds in which the half of the tuning slice that was there at once was served."""
        kept = self.read("tuning")
        return sum(step[0] for step in kept["tuning"][: kept["num together"]]) / 1e9

    def summed(self) -> dict[str, Any]:
        other, rows = self.read("tuning")["tuning"], {}
        for name in POLICIES:
            kept = self.read(name)
            rows[name] = {
                "measured": fmean(kept["ttft"].values()),
                "steps": len(kept["steps"]),
                "seconds": sum(step[0] for step in kept["steps"]) / 1e9,
                "costs": {
                    what: self.simulated(name, steps) | {"off": off(steps, kept["steps"])}
                    for what, steps in ((OTHER, other), (SAME, kept["tuning"]), (ITSELF, kept["steps"]))
                },
            }
        return {"at once": self.at_once(), "runs": rows}

    def at_once(self) -> dict[str, Any]:
        """Counts of the half of the tuning slice that was there at once, where no time of a step decides anything."""
        kept = self.read("tuning")
        steps = np.array(kept["tuning"][: kept["num together"]], dtype=float)
        engine = EngineSettings.model_validate(kept["engine"] | {"linear": costs_of(kept["tuning"])})
        costs = engine.costs()
        made = simulate(
            at_once(workload(self.data, None)), lambda: PolicySettings().objects(costs), engine.shape(), costs
        )
        return {
            "requests": len(made.jobs),
            "steps": [len(steps), made.counters.steps],
            "prompt tokens": [int(steps[:, 2].sum()), sum(job.scheduled - job.output + 1 for job in made.jobs)],
            "decodes": [int(steps[:, 3].sum()), sum(job.output - 1 for job in made.jobs)],
            "seconds": [self.together(), made.counters.busy / 1e9],
        }

    def simulated(self, name: str, steps: list[list[float]]) -> dict[str, Any]:
        """Seconds to the first token, and how far single requests are off, with costs by a fit to steps."""
        measured, costs = self.read(name)["ttft"], costs_of(steps)
        engine = EngineSettings.model_validate(self.read("tuning")["engine"] | {"linear": costs})
        policy, of_step = PolicySettings.model_validate({"order": name}), engine.costs()
        asked = workload(self.data, self.span())
        made = simulate(asked, lambda: policy.objects(of_step), engine.shape(), of_step)
        first = {job.name: (job.first_token - job.arrival) / 1e9 for job in made.jobs}
        return {
            "ttft": fmean(first[one] for one in measured),
            "median error": float(np.median([abs(first[one] - measured[one]) for one in measured])),
            "steps": made.counters.steps,
            "seconds": made.counters.busy / 1e9,
            "costs": costs,
        }


def costs_of(steps: list[list[float]]) -> dict[str, float]:
    fitted = fit_linear(np.array(steps, dtype=float))
    return dict(zip(("step", "prefill", "context", "decode"), fitted, strict=True))


def off(steps: list[list[float]], others: list[list[float]]) -> float:
    """How far costs by a fit to some steps are off in the sum of others."""
    costs, rows = costs_of(steps), np.array(others, dtype=float)
    fitted = costs["step"] + rows[:, 2:] @ np.array([costs["prefill"], costs["decode"], costs["context"]])
    return float(fitted.sum() / rows[:, 0].sum()) - 1


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows = []
    for name, one in results["runs"].items():
        row = [name, f"{one['measured']:.3f}"]
        for found in one["costs"].values():
            row.append(f"{found['ttft']:.3f} ({found['ttft'] / one['measured'] - 1:+.0%}; {found['off']:+.0%})")
        itself = one["costs"][ITSELF]
        rows.append([*row, f"{itself['median error']:.3f}", f"{one['steps']:,} / {itself['steps']:,}"])
    header = (
        f"policy | mean first token, vLLM, s: | {OTHER}: | {SAME}: | {ITSELF}: | "
        "median error of a request, s: | steps, vLLM / simulated:"
    )
    alike = results["at once"]
    counts = [[name, *(f"{one:,}" if type(one) is int else f"{one:.2f}" for one in alike[name])] for name in COUNTS]
    title = f"{alike['requests']} requests that are there at once"
    return {
        "policies": experiment.table(header, rows),
        "counts": experiment.table(f"{title} | vLLM: | simulated:", counts),
    }


# -- inside the environment of vLLM ------------------------------------------------------------------------------------


def inside(task: dict[str, Any]) -> dict[str, Any]:
    """Serves the tuning slice, and then the reporting slice, on the engine's own processor time."""
    from vllm import EngineArgs, LLMEngine

    data = Path(task["data"])
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=task["model"],
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=2048,
            max_num_seqs=8,
            max_num_batched_tokens=2048,
            num_gpu_blocks_override=129,
            dtype="float32",
            disable_log_stats=True,
            scheduler_cls="burnish.serve.vllm.Scheduler",
            additional_config={"burnish": {"policy": task["policy"], "trust_client_tenant": True}},
        )
    )
    scheduler = engine.engine_core.engine_core.scheduler
    planned: list[dict[str, int]] = []
    schedule = scheduler.schedule

    def watched(*arguments: Any, **keywords: Any) -> Any:
        from burnish.serve.vllm.v0_32 import computed

        made = schedule(*arguments, **keywords)
        planned.append(computed(made))
        return made

    scheduler.schedule = watched
    warm(engine)
    tuning = workload(data, None)
    together, _ = served(engine, at_once(tuning), planned)
    apart, _ = served(engine, replace(tuning, workflows=tuning.workflows[TUNING // 2 :]), planned)
    found: dict[str, Any] = {"tuning": together + apart, "num together": len(together)}
    if task["span"]:
        assert engine.reset_prefix_cache()
        found["steps"], found["ttft"] = served(engine, workload(data, task["span"]), planned)
    about = scheduler.about()
    limits = {name: about[name] for name in EngineSettings.model_fields if name in about}
    return found | {"engine": limits}


def served(engine: Any, asked: Workload, planned: list[dict[str, int]]) -> tuple[list[list[float]], dict[str, float]]:
    """What each step took and computed, and seconds to the first token of each request."""
    from vllm import SamplingParams

    clock, steps, first, place = 0, [], {}, 0
    arrivals = {one.name: one.arrival for one in asked.workflows}
    planned.clear()
    while place < len(asked.workflows) or engine.has_unfinished_requests():
        if not engine.has_unfinished_requests():
            clock = max(clock, asked.workflows[place].arrival)
        while place < len(asked.workflows) and asked.workflows[place].arrival <= clock:
            one = asked.workflows[place]
            parameters = SamplingParams(
                max_tokens=one.turns[0].output,
                ignore_eos=True,
                detokenize=False,
                temperature=0,
                extra_args={"tenant": one.tenant},
            )
            engine.add_request(one.name, {"prompt_token_ids": prompt_of(asked, one, 0, [])}, parameters)
            place += 1
        begun = time.process_time_ns()
        outputs = engine.step()
        taken = time.process_time_ns() - begun
        clock += taken
        what = planned.pop()
        if what["prompt"] or what["decodes"]:
            steps.append([taken, taken, what["prompt"], what["decodes"], what["context"]])
        for output in outputs:
            if output.outputs[0].token_ids and output.request_id not in first:
                first[output.request_id] = (clock - arrivals[output.request_id]) / 1e9
    return steps, first


def warm(engine: Any) -> None:
    """The first steps of a process take longer than all others."""
    from vllm import SamplingParams

    for number in range(8):
        parameters = SamplingParams(max_tokens=8, ignore_eos=True, detokenize=False, temperature=0)
        engine.add_request(f"warm{number}", {"prompt_token_ids": [5 + number] * 700}, parameters)
    while engine.has_unfinished_requests():
        engine.step()


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--data", type=Path, required=True, help="directory of the Mooncake traces")
    options = command.read()
    bench = Bench(Path(options.work), options.data)
    slices = {"tuning": [f"rows {NUM} to {NUM + TUNING}"], "reporting": [f"rows 0 to {NUM}"]}
    note = "processor time of the engine's steps"
    experiment.answer(bench, options, __doc__, lambda: bench.summed() | {"slices": slices}, tables, note=note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        print("FOUND " + json.dumps(inside(json.loads(sys.argv[2]))))
    else:
        main()
