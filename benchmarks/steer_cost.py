"""What does calibrating for steering cost, against one plain forward pass over the same tokens?

    python benchmarks/steer_cost.py --work runs/steer-cost

SmolLM2 in float32 on one thread, traces of 1,024 tokens whose every fortieth ends a step, half of them checks: what a
trace says has no part in the cost. Plain is its network without the head of the vocabulary, trace by trace; calibrating
is `burnish.steer.calibrate` with 99 permutations, on traces to fit on and traces held out. Every side of every round is
a process of its own, the sides in turns; seconds are processor time without loading, memory is the peak of the process.
With more traces the ratio falls: what calibrating does once, and not for every trace, is spread over more of them.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import experiment

if TYPE_CHECKING:
    from burnish.steer import ReasoningTrace

PLAIN, CALIBRATING = "plain forward pass", "calibrating"
TRACES, LENGTH, ROUNDS = (8, 64, 2) if experiment.SMOKE else (8, 1024, 3)
STEP = 40 if not experiment.SMOKE else 8
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


class Bench(experiment.Kept):
    """A side of a round at a time."""

    def __init__(self, work: Path, model: Path) -> None:
        super().__init__(work)
        self.model = model.resolve()

    def names(self) -> Iterable[str]:
        for number in range(ROUNDS):
            yield from (f"{side}, {number}" for side in (PLAIN, CALIBRATING)[:: -1 if number % 2 else 1])

    def measure(self, name: str) -> dict[str, Any]:
        words = [sys.executable, __file__, "--inside", name.partition(",")[0], str(self.model)]
        smoke = ["--smoke"] if experiment.SMOKE else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run([*words, *smoke], stdout=subprocess.PIPE, text=True, check=True, env=environment)
        return json.loads(done.stdout.splitlines()[-1])


def inside(side: str, place: str) -> dict[str, Any]:
    """One side, in a process of its own."""
    import torch

    from burnish.core.checkpoint import load
    from burnish.steer import Marks, calibrate

    if experiment.SMOKE:
        from transformers import AutoConfig, AutoModelForCausalLM

        made = AutoConfig.for_model("llama", vocab_size=300, **SMALL)
        module: Any = AutoModelForCausalLM.from_config(made).eval()
    else:
        module = load(place, dtype=torch.float32).module
    traces = made_traces(module.config.vocab_size)
    held = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    before = peak()
    begun = time.process_time()
    if side == PLAIN:
        with torch.inference_mode():
            for trace in traces:
                module.base_model(input_ids=torch.tensor([trace.tokens]), use_cache=False)
    else:
        marks = Marks("\n\n", (0,), (), ("wait",), "", ())
        calibrate(module, traces, marks, force=True)
    return {
        "cpu_seconds": time.process_time() - begun,
        "model_bytes": held,
        "bytes_before": before,
        "peak_bytes": peak(),
    }


def made_traces(vocabulary: int) -> list[ReasoningTrace]:
    import torch

    from burnish.steer import ReasoningTrace

    random, found = torch.Generator().manual_seed(0), list[ReasoningTrace]()
    ends = tuple(range(STEP - 1, LENGTH, STEP))
    for _ in range(TRACES):
        tokens = torch.randint(vocabulary, (LENGTH,), generator=random).tolist()
        labels = (2 * torch.randint(2, (len(ends),), generator=random) - 1).tolist()
        found.append(ReasoningTrace(tuple(tokens), ends, tuple(labels)))
    return found


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def summed(bench: Bench) -> dict[str, Any]:
    sides = {side: [bench.read(f"{side}, {number}") for number in range(ROUNDS)] for side in (PLAIN, CALIBRATING)}
    seconds = {side: [one["cpu_seconds"] for one in rows] for side, rows in sides.items()}
    paired = experiment.ratio(seconds[CALIBRATING], seconds[PLAIN])
    return {
        "traces": TRACES,
        "length": LENGTH,
        "ratio": {"mean": paired.value, "low": paired.low, "high": paired.high},
        "sides": sides,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    rows = []
    for side, found in results["sides"].items():
        seconds = statistics.median(one["cpu_seconds"] for one in found)
        most = max(one["peak_bytes"] for one in found)
        grown = most - min(one["bytes_before"] for one in found)
        ratio = experiment.cell(results["ratio"], ".2f") if side == CALIBRATING else ""
        memory = [f"{number / 1e9:.2f}" for number in (found[0]["model_bytes"], most, grown)]
        rows.append([side, f"{seconds:.1f}", ratio, *memory])
    header = (
        f"{results['traces']} traces of {results['length']:,} tokens | CPU seconds: | of a plain pass (95 %): | "
        "model, GB: | peak of the process, GB: | above what loading took, GB:"
    )
    return {"cost": experiment.table(header, rows)}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--model", type=Path, default=Path("models/smollm2"))
    options = command.read()
    bench = Bench(options.work, options.model)
    note = "processor time, one thread, shared with other work"
    experiment.answer(bench, options, __doc__, lambda: summed(bench), tables, note=note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        print(json.dumps(inside(*sys.argv[2:4])))
    else:
        main()
