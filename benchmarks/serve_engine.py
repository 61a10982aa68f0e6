"""Does the simulator predict what vLLM does: the wait for a first token, and which of three policies is best?

    VLLM_PYTHON=$(scripts/vllm-env) python benchmarks/serve_engine.py --data DIR --work runs/serve-engine

DIR has mooncake_fast25_conversation.jsonl.gz. vLLM 0.32 for CPUs runs a small model with random weights in one process.
Its clock is the processor time of its own steps: requests are given to it when that clock has reached their arrival, so
that other work on the machine moves nothing. A tuning run of 100 requests under first come first served gives the
costs of a step by the fit that recordings have. Then 200 other requests are served under three policies, by the engine
and by the simulator with those costs. Lengths are a sixteenth of the trace's, conversations of at most 1,900 tokens,
four drawn tenants, and arrivals so close that all would take 1.25 times as long to serve as to come.
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
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_PLUGINS": "",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def workload(data: Path, name: str, span: float | None) -> Workload:
    """Of the tuning or the reporting slice; all of it comes within `span` seconds."""
    trace = scaled(read_trace(data / TRACE, limit=1000), shrink=16, longest=1900)
    rows = trace.workflows[NUM : NUM + TUNING] if name == "tuning" else trace.workflows[:NUM]
    rows = tuple(replace(row, arrival=row.arrival - rows[0].arrival) for row in rows)
    found = with_tenants(replace(trace, workflows=rows), {f"tenant{place}": 1 / place for place in range(1, 5)}, 0)
    last = found.workflows[-1].arrival
    return scaled(found, speed=last / 1e9 / span) if span else found


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
        task = {"data": str(self.data), "name": name, "span": span, "model": str(model)}
        done = subprocess.run(
            [os.environ["VLLM_PYTHON"], __file__, "--inside", json.dumps(task), *SMOKE],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | QUIET,
        )
        return json.loads(next(line[6:] for line in done.stdout.splitlines() if line.startswith("FOUND ")))

    def span(self) -> float:
        """Seconds within which the reporting slice comes: what it takes to serve, by the tuning run, over the load."""
        tuned = self.read("tuning")
        return sum(step[0] for step in tuned["steps"]) / 1e9 * NUM / TUNING / LOAD

    def summed(self) -> dict[str, Any]:
        tuned, rows = costs_of(self.read("tuning")), {}
        for name in POLICIES:
            kept = self.read(name)
            steps, measured = np.array(kept["steps"], dtype=float), kept["ttft"]
            fitted = tuned["step"] + steps[:, 2:] @ np.array([tuned["prefill"], tuned["decode"], tuned["context"]])
            rows[name] = {
                "measured": fmean(measured.values()),
                "steps": len(steps),
                "seconds": float(steps[:, 0].sum() / 1e9),
                "fit": float(fitted.sum() / steps[:, 0].sum()),
                "tuned costs": self.simulated(name, tuned),
                "own costs": self.simulated(name, costs_of(kept)),
            }
        return {"costs": tuned, "span": self.span(), "policies": rows}

    def simulated(self, name: str, costs: dict[str, float]) -> dict[str, float]:
        """Seconds to the first token, and how far single requests are off."""
        measured = self.read(name)["ttft"]
        engine = EngineSettings.model_validate(self.read("tuning")["engine"] | {"linear": costs})
        policy, of_step = PolicySettings.model_validate({"order": name}), engine.costs()
        made = simulate(
            workload(self.data, name, self.span()), lambda: policy.objects(of_step), engine.shape(), of_step
        )
        first = {job.name: (job.first_token - job.arrival) / 1e9 for job in made.jobs}
        return {
            "ttft": fmean(first[one] for one in measured),
            "median error": float(np.median([abs(first[one] - measured[one]) for one in measured])),
            "steps": made.counters.steps,
            "seconds": made.counters.busy / 1e9,
        }


def costs_of(kept: dict[str, Any]) -> dict[str, float]:
    fitted = fit_linear(np.array(kept["steps"], dtype=float))
    return dict(zip(("step", "prefill", "context", "decode"), fitted, strict=True))


def tables(results: dict[str, Any]) -> dict[str, str]:
    rows = []
    for name, one in results["policies"].items():
        row = [name, f"{one['measured']:.3f}"]
        for which in ("tuned costs", "own costs"):
            found = one[which]
            row += [f"{found['ttft']:.3f} ({found['ttft'] / one['measured'] - 1:+.0%})", f"{found['median error']:.3f}"]
        rows.append([*row, f"{one['fit'] - 1:+.0%}", f"{one['steps']:,} / {one['own costs']['steps']:,}"])
    header = (
        "policy | mean first token, vLLM, s: | simulated, s: | median error of a request, s: | "
        "with the run's own costs, s: | median error, s: | costs of the tuning run are off: | steps, vLLM / simulated:"
    )
    return {"policies": experiment.table(header, rows)}


# -- inside the environment of vLLM ------------------------------------------------------------------------------------


def inside(task: dict[str, Any]) -> dict[str, Any]:
    """Serves a slice on the engine's own processor time."""
    from vllm import EngineArgs, LLMEngine, SamplingParams

    asked = workload(Path(task["data"]), task["name"], task["span"])
    policy = "fcfs" if task["name"] == "tuning" else task["name"]
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
            additional_config={"burnish": {"policy": policy, "trust_client_tenant": True}},
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
    clock, steps, first, place = 0, [], {}, 0
    arrivals = {one.name: one.arrival for one in asked.workflows}
    warm(engine)
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
    about = scheduler.about()
    limits = {name: about[name] for name in EngineSettings.model_fields if name in about}
    return {"engine": limits, "steps": steps, "ttft": first}


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
