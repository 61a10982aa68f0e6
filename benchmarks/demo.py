"""What `make demo` takes after installation, and what it shows.

    python benchmarks/demo.py --out WORK

Question: does the first thing a stranger runs end within 6 minutes on two cores, in less than 4 GB? The two commands of
`scripts/demo` are run in an empty directory: the embedded model is converted, then recipes/quickstart.yaml rounds it
two ways and measures it before and after. Memory is the largest sum of resident sizes over the command and the
processes it starts, sampled ten times a second; pages that two of them share are counted twice. `burnish --help` is
timed as well. The run directory stays in WORK. Where the benchmark is stopped and started again it continues, as the
command does, and the seconds of both parts add up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "demo.json"
RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
COMMAND = [sys.executable, "-m", "burnish.cli"]
SHOWN = {"bytes_on_disk", "perplexity", "kl_divergence", "top1_agreement", "weight_bytes_per_token"}
TITLES = {"start": "original (bfloat16)", "nearest": "rounded to nearest, 4 bits", "gptq": "GPTQ, 4 bits"}
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
    import numpy as np
    import torch

    from burnish.core.checkpoint import library_versions
    from burnish.core.ledger import Ledger
    from burnish.evaluate.maths.bootstrap import paired_bootstrap
    from burnish.evaluate.measure import device_name

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
    sequences = {}
    for node, row in measured.items():
        sequences[node] = ledger.read_sequences(row["checkpoint"], row["protocol"])
        assert sequences[node] is not None
    tokens = np.array(sequences["start"]["tokens"])
    loss = {node: np.array(columns["nats"]) - sequences["start"]["nats"] for node, columns in sequences.items()}
    less = paired_bootstrap(np.array(sequences["gptq"]["kl"]), np.array(sequences["nearest"]["kl"]), tokens)
    protocol = measured["start"]["protocol"]
    return {
        "question": __doc__.split("\n\n")[2].replace("\n", " "),
        "machine": f"{device_name('cpu')}, {platform.system()}, {os.cpu_count()} cores, nothing else running",
        "date": time.strftime("%Y-%m-%d"),
        "versions": library_versions(),
        "settings": {"recipe": RECIPE.name, "threads": torch.get_num_threads(), "protocol": protocol},
        "slices": {"tuning": [], "reporting": [protocol["text_hash"]]},
        "parts": parts,
        "help_seconds": sorted(help_seconds),
        "nodes": {
            node: {
                "metrics": {name: value for name, value in row["metrics"].items() if name in SHOWN},
                "loss_nats": float(loss[node].sum() / tokens.sum()),
                "seconds": stages[node]["seconds"] if node in stages else None,
            }
            for node, row in measured.items()
        },
        "kl_gptq_minus_nearest": {"value": less.value, "low": less.low, "high": less.high},
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """`quality` and `cost` for the README."""
    nodes = results["nodes"]
    lines = [
        "| SmolLM2-135M-Instruct | on disk | tokens per second | perplexity | loss added, nats per token "
        "| KL divergence | same top token | made in |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for node, title in TITLES.items():
        metrics = nodes[node]["metrics"]
        values = {name: metrics[name]["value"] for name in ("bytes_on_disk", "perplexity")}
        speed = "not measured"  # transformers unpacks packed weights: only an engine's speed is that of 4 bits
        cells = [title, f"{values['bytes_on_disk'] / 1e6:.0f} MB", speed, f"{values['perplexity']:.2f}"]
        if node == "start":
            cells += ["", "", "", ""]
        else:
            cells += [
                f"{nodes[node]['loss_nats']:.3f}",
                f"{metrics['kl_divergence']['value']:.3f}",
                f"{metrics['top1_agreement']['value']:.1%}",
                f"{nodes[node]['seconds']:.0f} s",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    seconds = sum(part["seconds"] for part in results["parts"])
    peak = max(part["peak_memory_bytes"] for part in results["parts"])
    shortest, median, longest = (results["help_seconds"][index] for index in (0, HELP_REPEATS // 2, -1))
    cost = [
        "| on two CPU cores | measured | bound |",
        "| --- | --- | --- |",
        f"| `make demo` after installation | {seconds / 60:.1f} minutes | 6 minutes |",
        f"| its largest memory | {peak / 1e9:.2f} GB | 4 GB |",
        f"| `burnish --help` | {median:.2f} s ({shortest:.2f} to {longest:.2f}) | 0.5 s |",
    ]
    return {"quality": "\n".join(lines), "cost": "\n".join(cost)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="an empty or new directory, or that of an earlier part")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if any(arguments.out.iterdir()) and not (arguments.out / "parts.jsonl").is_file():
        parser.error(f"{arguments.out} is not empty")
    signal.signal(signal.SIGTERM, lambda *_: None)  # the command ends itself; how long it took is still written down
    results = measure(arguments.out)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print("\n\n".join(tables(results).values()))


if __name__ == "__main__":
    main()
