"""Does the first thing a stranger runs end within 6 minutes on two cores, in less than 4 GB, and what does it show?

    python benchmarks/demo.py --work WORK
    python benchmarks/demo.py --speeds RUN

The two commands of `scripts/demo` are run in an empty directory: the embedded model is converted, then
recipes/quickstart.yaml rounds it three ways and measures it before and after. Memory is the largest sum of resident
sizes over the command and the processes it starts, sampled ten times a second; pages that two of them share are counted
twice. `burnish --help` is timed as well. The run directory stays in WORK. Where the benchmark is stopped and started
again it continues, as the command does, and the seconds of both parts add up.

Rates of an inference engine come from a run of the same recipe where VLLM_PYTHON named one: --speeds adds those of its
ledger, and measures nothing. The checkpoints must be those that were measured.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import experiment

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
COMMAND = [sys.executable, "-m", "burnish"]
TITLES = {
    "start": "original (bfloat16)",
    "nearest": "rounded to nearest, 4 bits",
    "gptq": "GPTQ, 4 bits",
    "int8": "int8 weights and activations",
}
HELP_REPEATS = 10


def run(command: list[str], work: Path) -> None:
    """Runs a command and appends its wall seconds and largest memory to WORK/parts.jsonl, also when it is stopped."""
    import psutil

    started, peak = time.monotonic(), 0
    process = psutil.Popen(command, cwd=work)
    while process.poll() is None:
        total = 0
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total)
        time.sleep(0.1)
    part = {"command": command[len(COMMAND)], "seconds": time.monotonic() - started, "peak_memory_bytes": peak}
    with (work / "parts.jsonl").open("a") as parts:
        parts.write(json.dumps(part) + "\n")
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}; run this again to continue")


def measure(work: Path) -> dict[str, Any]:
    import torch

    from burnish.core.ledger import Ledger

    help_seconds = []
    for _ in range(HELP_REPEATS):
        started = time.monotonic()
        subprocess.run([*COMMAND, "--help"], stdout=subprocess.DEVNULL, check=True)
        help_seconds.append(time.monotonic() - started)
    if not (work / "models").is_dir():
        run([*COMMAND, "fetch", "smollm2", "--out", "models/smollm2"], work)
    run([*COMMAND, "run", str(RECIPE.resolve())], work)
    parts = [json.loads(line) for line in (work / "parts.jsonl").read_text().splitlines()]
    ledger = Ledger(work / "runs" / "quickstart")
    measured = {row["node"]: row for row in ledger.rows if row["row"] == "measurement"}
    stages = {row["node"]: row for row in ledger.rows if row["row"] == "stage"}
    speeds = {
        row["node"]: row for row in ledger.rows if row["row"] == "speed"
    }  # where VLLM_PYTHON names an environment
    nodes = {
        node: {
            "metrics": row["metrics"],
            "sequences": ledger.read_sequences(row["checkpoint"], row["protocol"]),
            "seconds": stages[node]["seconds"] if node in stages else None,
            "speed": speeds.get(node),
        }
        for node, row in measured.items()
    }
    protocol = measured["start"]["protocol"]
    return {
        "settings": {"recipe": RECIPE.name, "threads": torch.get_num_threads(), "protocol": protocol},
        "slices": {"tuning": [], "reporting": [protocol["text_hash"]]},
        "parts": parts,
        "help_seconds": sorted(help_seconds),
        "nodes": nodes | {node: nodes[node] | {"loss_nats": added(nodes, node)} for node in nodes},
    }


def with_speeds(nodes: dict[str, Any], run: Path) -> dict[str, Any]:
    """The nodes with the rates that the ledger of another run of the recipe has.

    Raises:
        ValueError: a node was not timed there.
    """
    from burnish.core.ledger import Ledger

    rows = {row["node"]: row for row in Ledger(run).rows if row["row"] == "speed"}
    if missing := nodes.keys() - rows.keys():
        raise ValueError(f"{run} has no engine's rates of {', '.join(sorted(missing))}")
    return {name: node | {"speed": rows[name]} for name, node in nodes.items()}


def added(nodes: dict[str, Any], node: str) -> float:
    """Nats per token more than the original's."""
    ours, start = (nodes[name]["sequences"] for name in (node, "start"))
    return (sum(ours["nats"]) - sum(start["nats"])) / sum(start["tokens"])


def decode_speed(row: dict[str, Any] | None) -> str:
    """Of a ledger's row: transformers unpacks packed weights, so that only an engine's speed is that of 4 bits.

    Of processor time, which other work on the machine changes little.
    """
    if row is None:
        return "not measured"
    value = row["metrics"][f"decode_cpu_speed@{row['protocol']['batches'][0]}"]["value"]
    return "not measured" if value is None else f"{value:.1f}"


def tables(results: dict[str, Any]) -> dict[str, str]:
    """`quality` and `cost` for the README."""
    quality = []
    for node in results["nodes"]:
        title, speed = TITLES[node], decode_speed(results["nodes"][node].get("speed"))
        metrics = {name: metric["value"] for name, metric in results["nodes"][node]["metrics"].items()}
        cells = [title, f"{metrics['bytes_on_disk'] / 1e6:.0f} MB", speed, f"{metrics['perplexity']:.2f}", *[""] * 4]
        if node != "start":
            cells[4:] = [f"{results['nodes'][node]['loss_nats']:.3f}", f"{metrics['kl_divergence']:.3f}"]
            cells += [f"{metrics['top1_agreement']:.1%}", f"{results['nodes'][node]['seconds']:.0f} s"]
        quality.append(cells)
    seconds = sum(part["seconds"] for part in results["parts"])
    peak = max(part["peak_memory_bytes"] for part in results["parts"])
    shortest, median, longest = (results["help_seconds"][index] for index in (0, HELP_REPEATS // 2, -1))
    cost = [
        ["`make demo` after installation", f"{seconds / 60:.1f} minutes", "6 minutes"],
        ["its largest memory", f"{peak / 1e9:.2f} GB", "4 GB"],
        ["`burnish --help`", f"{median:.2f} s ({shortest:.2f} to {longest:.2f})", "0.5 s"],
    ]
    header = (
        "SmolLM2-135M-Instruct | on disk | tokens per CPU second | perplexity | loss added, nats per token "
        "| KL divergence | same top token | made in"
    )
    return {
        "quality": experiment.table(header, quality),
        "cost": experiment.table("on two CPU cores | measured | bound", cost),
    }


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.add_argument("--work", type=Path, help="a new directory, or that of an earlier part")
    command.add_argument("--speeds", type=Path, help="the directory of a run with an engine")
    arguments = command.read()
    if (arguments.work is None) == (arguments.speeds is None):
        command.error("give either --work or --speeds")
    if arguments.speeds is not None:
        with experiment.results(arguments.out) as known:
            known["nodes"] = with_speeds(known["nodes"], arguments.speeds)
            known["speeds"] = {"machine": experiment.machine(), "date": date.today().isoformat()}
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    if any(arguments.work.iterdir()) and not (arguments.work / "parts.jsonl").is_file():
        command.error(f"{arguments.work} is not empty")
    signal.signal(signal.SIGTERM, lambda *_: None)  # the command ends itself; how long it took is still written down
    content = measure(arguments.work)
    experiment.record(arguments.out, __doc__, content, note="nothing else running")
    print("\n\n".join(tables(content).values()))


if __name__ == "__main__":
    main()
