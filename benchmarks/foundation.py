"""How long burnish itself takes, and how much memory a streamed checkpoint needs.

    python benchmarks/foundation.py --work DIR [--only plan large_plan restart report rtn gptq] [--repeats 5]

Questions: does planning a recipe of 40 nodes take less than 1 s once the libraries are imported? How long does
`burnish plan` need for a mixture of experts with 42 billion parameters, of which only config.json is there? Does a
finished run of 10 nodes notice in less than 2 s, start of the interpreter included, that there is nothing to do? Does a
ledger of 10,000 rows become a report in less than 3 s? And is the peak of resident memory, as the kernel counts it, at
most 0.6 of the checkpoint's bytes while 1.5 GB are quantized layer by layer?

Every time is that of a process of its own, and quoted as median and range. Each part is measured by itself and written
into the results, so that a part can be measured again; DIR keeps the models and the run of 10 nodes.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import experiment

ROOT = Path(__file__).resolve().parent.parent
PROSE = ROOT / "LICENSE"

PLAN = """
import sys, time
from pathlib import Path
from burnish.core.recipe import read_recipe
from burnish.core.runner import Run
from burnish.stages import ROOMS
def plan(recipe):
    work = Run(read_recipe(recipe), Path(sys.argv[3]), ROOMS)
    work.plan(work.decide())
plan(sys.argv[1])  # imports every library that planning needs
started, cpu = time.perf_counter(), time.process_time()
plan(sys.argv[2])
print(time.perf_counter() - started, time.process_time() - cpu)
"""

REPORT = """
import sys, time
from pathlib import Path
from burnish.report import write
started, cpu = time.perf_counter(), time.process_time()
write(Path(sys.argv[1]))
print(time.perf_counter() - started, time.process_time() - cpu)
"""

STREAM = """
import sys, time
from burnish.core.checkpoint import load
from burnish.core.memory import peak_resident_bytes
from burnish.quantize.stage import Quantize
import burnish.quantize.run, transformers
transformers.AutoModelForCausalLM
libraries = peak_resident_bytes()
settings = {"method": sys.argv[3], "group_size": 64, "tokens": 3072, "length": 256, "stream": True}
Quantize(**settings)(load(sys.argv[1]), calibration=[open(sys.argv[4]).read()]).save(sys.argv[2], overwrite=True)
print(libraries, peak_resident_bytes(), time.process_time())
"""

TIMES = {
    "plan": ("plan of a recipe of 40 nodes, libraries imported", "< 1 s"),
    "large_plan": ("`burnish plan` for 42 billion parameters, start included", "seconds"),
    "restart": ("`burnish run` of a finished run of 10 nodes, start included", "< 2 s"),
    "report": ("report of a ledger of 10,000 rows, libraries imported", "< 3 s"),
}


def run(*command: str | Path) -> tuple[str, dict[str, float]]:
    """Output and seconds of a command that must succeed."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, env=environment
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout, {"wall": wall, "cpu": sum(after[:2]) - sum(before[:2])}


def printed(*command: str | Path) -> dict[str, float]:
    """Seconds that a script says it took."""
    wall, cpu = run(*command)[0].split()
    return {"wall": float(wall), "cpu": float(cpu)}


def llama(directory: Path, **changes: int) -> Path:
    """A random float32 Llama with a tokenizer learned from the licence."""
    from burnish.train.scratch import initialise

    if not directory.exists():
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = {"model_type": "llama", "max_position_embeddings": 512, "tie_word_embeddings": True} | shape | changes
        initialise(config, tokenizer="bpe:384", texts=[PROSE.read_text(encoding="utf-8")]).save(directory)
    return directory


def recipe(work: Path, num_nodes: int) -> Path:
    """Every fourth node trains, and the three after it round what it made, to 2, 3 and 4 bits."""
    text, path = work / "prose.txt", work / f"{num_nodes}.yaml"
    text.write_text(PROSE.read_text(encoding="utf-8"), encoding="utf-8")
    lines = [
        f"start: {llama(work / 'tiny')}",
        "evaluate: {text: wikitext2-test, num_windows: 2, context: 64, speed: false}",
        "nodes:",
    ]
    for number in range(num_nodes):
        trained = number - number % 4
        if number == trained:
            parent = f"node{number - 4}" if number else "start"
            stage = f"stage: train, data: {text}, context: 64, batch: 4, steps: 2"
        else:
            parent, stage = f"node{trained}", f"stage: quantize, method: rtn, group_size: 32, bits: {1 + number % 4}"
        lines.append(f"  - {{name: node{number}, from: {parent}, {stage}}}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def plan(work: Path) -> dict[str, float]:
    return printed("-c", PLAN, recipe(work, 1), recipe(work, 40), work / "unused")


def large_plan(work: Path) -> dict[str, float]:
    """Phi-3.5-MoE's shape, 32 layers of 16 experts with 2 for each token: half of the experts dropped, then GPTQ."""
    from transformers import PhimoeConfig

    config = PhimoeConfig(num_hidden_layers=32, num_local_experts=16, tie_word_embeddings=False, dtype="bfloat16")
    config.architectures = ["PhimoeForCausalLM"]
    config.save_pretrained(work / "phimoe")
    path = work / "large.yaml"
    path.write_text(
        f"start: {work / 'phimoe'}\nnodes:\n  - {{name: fewer, stage: slim, method: drop, num_experts: 8}}\n"
        "  - {name: rounded, stage: quantize, method: gptq, bits: 4, group_size: 128}\n",
        encoding="utf-8",
    )
    output, seconds = run("-m", "burnish", "plan", path, "-o", work / "unused")
    assert "41.87" in output
    return seconds


def restart(work: Path) -> dict[str, float]:
    output, seconds = run("-m", "burnish", "run", finished_run(work), "-o", work / "ten")
    assert "report: " in output
    return seconds


def finished_run(work: Path) -> Path:
    """The recipe of 10 nodes, finished in WORK/ten."""
    path = recipe(work, 10)
    if not (work / "ten" / "report.html").is_file():
        run("-m", "burnish", "run", path, "-o", work / "ten")
    return path


def report(work: Path) -> dict[str, float]:
    """The rows of the finished run again and again, measurements under new checkpoints, until there are 10,000."""
    finished_run(work)
    large = work / "large-ledger"
    large.mkdir(exist_ok=True)
    (large / "run.json").write_bytes((work / "ten" / "run.json").read_bytes())
    rows = [json.loads(line) for line in (work / "ten" / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]
    with (large / "ledger.jsonl").open("w", encoding="utf-8") as file:
        for number in range(10_000):
            row = dict(rows[number % len(rows)])
            if row["row"] == "measurement" and number >= len(rows):
                row["checkpoint"] = f"{number:064x}"
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return printed("-c", REPORT, large)


def stream(work: Path, method: str) -> dict[str, float]:
    """29 layers of 51 MB."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 29, "num_attention_heads": 16}
    large = llama(work / "large", **shape)
    output, _ = run("-c", STREAM, large, work / f"out-{method}", method, PROSE)
    libraries, peak, cpu = output.split()
    size = (large / "model.safetensors").stat().st_size
    return {"checkpoint_bytes": size, "peak_bytes": int(peak), "libraries_bytes": int(libraries), "cpu": float(cpu)}


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--only", nargs="+", default=[*TIMES, "rtn", "gptq"])
    command.add_argument("--repeats", type=int, default=5)
    arguments = command.read()
    arguments.work.mkdir(parents=True, exist_ok=True)
    timed = {"plan": plan, "large_plan": large_plan, "restart": restart, "report": report}
    for name in ["plan"] if arguments.smoke else arguments.only:
        if name in timed:
            rows = [timed[name](arguments.work) for _ in range(1 if arguments.smoke else arguments.repeats)]
        else:
            rows = [stream(arguments.work, name)]
        print(name, json.dumps(rows), flush=True)
        with experiment.results(arguments.out) as known:
            parts = known.get("parts", {}) | {name: rows}
        experiment.record(arguments.out, __doc__, {"parts": parts}, note="one thread")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """The tables that docs/concepts.md and docs/larger-than-memory.md show."""
    times, memory, parts = [], [], results["parts"]
    for name, (what, target) in TIMES.items():
        if name in parts:
            wall, cpu = ([row[key] for row in parts[name]] for key in ("wall", "cpu"))
            spread = f"{statistics.median(wall):.2f} ({min(wall):.2f} to {max(wall):.2f})"
            times.append([what, target, spread, f"{statistics.median(cpu):.2f}"])
    for name in ("rtn", "gptq"):
        if name in parts:
            row = parts[name][0]
            sizes = [f"{row[f'{key}_bytes'] / 1e9:.2f} GB" for key in ("checkpoint", "libraries", "peak")]
            memory.append([name, *sizes, f"{row['peak_bytes'] / row['checkpoint_bytes']:.2f}", f"{row['cpu']:.0f}"])
    return {
        "times": experiment.table("what | target | wall s, median (range) | CPU s, median", times),
        "memory": experiment.table("method | checkpoint | libraries alone | peak | of the checkpoint | CPU s", memory),
    }


if __name__ == "__main__":
    main()
