"""Does a mixture that starts from a dense model train to a lower loss than the dense model trained on?

    python benchmarks/upcycle.py --work runs/upcycle-benchmark --minutes 8      # again, until all is done

A byte-level Llama (hidden 96, 3 layers, width 256; 0.4 M parameters) is trained from scratch on the WikiText-2
validation text for 1,000 steps, one per seed. From there all ways go on with the same text and optimizer: the dense
model for 400 steps; the dense model for as many steps as cost what the mixture costs (CPU seconds of a step, measured);
`convert upcycle` to 4 experts, 2 for each token, with its load-balancing loss, for 400 steps, exactly equal to the
dense model at the start or with noise of 0.1 on the experts. Losses are measured on windows of the WikiText-2 test
text; every fourth chooses the learning rate (first seed, each way from the same two) and the rest is reported.
Intervals are over windows, paired, each window's loss the mean over seeds (bootstrap over windows).

What has been measured is kept in `--work`, so that the benchmark can be stopped at any time; it writes its results once
all of it is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from byte_windows import LENGTH, Measured, mean, reported_windows, slices, window_losses

RESULTS = Path(__file__).parent / "results" / "upcycle.json"
SEEDS = (0, 1, 2)
BATCH = 8
DENSE_STEPS, DENSE_LR, STEPS = 1000, 3e-3, 400
SEARCH = (1e-3, 3e-3)
WAYS = ("dense", "dense, equal cost", "mixture", "mixture, noise 0.1")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of dense models and of what was measured")
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing new after so long")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.work)
    end = time.monotonic() + 60 * args.minutes
    while name := next((name for name in bench.names() if not bench.file(name).is_file()), ""):
        if time.monotonic() > end:
            print(f"stopped before {name}", file=sys.stderr)
            return
        content = bench.measure(name)
        bench.file(name).write_text(json.dumps(content))
        loss = mean(content["losses"], tuning=True)
        print(f"{name}: tuning {loss:.4f} ({content.get('seconds', 0)} s)", file=sys.stderr, flush=True)
    write(bench)


class Bench(Measured):
    """What is measured, by name: "seed, start" and "seed, way, lr"."""

    def __init__(self, work: Path) -> None:
        from burnish.data import read_texts

        super().__init__(work)
        self.work = work
        self.train_text, self.test_text = (read_texts(f"wikitext2-{part}")[0] for part in ("valid", "test"))

    def names(self) -> list[str]:
        found = [f"{SEEDS[0]}, start", *(f"{SEEDS[0]}, {way}, {lr:g}" for way in WAYS for lr in SEARCH)]
        if all(self.file(name).is_file() for name in found):  # the rates are chosen
            for seed in SEEDS[1:]:
                found += [f"{seed}, start", *(f"{seed}, {way}, {self.best_lr(way):g}" for way in WAYS)]
        return found

    def best_lr(self, way: str) -> float:
        return min(SEARCH, key=lambda lr: mean(self.read(f"{SEEDS[0]}, {way}, {lr:g}")["losses"], tuning=True))

    def measure(self, name: str) -> dict[str, Any]:
        import burnish

        seed, what, *rest = name.split(", ")
        model = self.dense(int(seed))
        if what == "start":
            return window_losses(model, self.test_text)
        steps, lr = STEPS, float(rest[-1])
        if what.startswith("mixture"):
            model = burnish.Upcycle(num_experts=4, top_k=2, noise=0.1 if "noise 0.1" in rest else 0.0, seed=int(seed))(
                model
            )
            model.module.set_experts_implementation("eager")  # a loop over experts, fastest at this size
        elif rest[0] == "equal cost":
            steps = round(STEPS * self.cost_ratio())
        started = time.process_time()
        trained = burnish.Train(**self.training(int(seed), steps, lr))(model, data=[self.train_text])
        return {"steps": steps, "seconds": round(time.process_time() - started, 1)} | window_losses(
            trained, self.test_text
        )

    def cost_ratio(self) -> float:
        """CPU seconds of a step of the mixture over those of the dense model, a few steps of each in turn."""
        import burnish

        file = self.work / "cost_ratio.json"
        if not file.is_file():
            dense = self.dense(SEEDS[0])
            mixture = burnish.Upcycle(num_experts=4, top_k=2)(dense)
            mixture.module.set_experts_implementation("eager")
            seconds = {"dense": 0.0, "mixture": 0.0}
            for _ in range(3):
                for name, model in (("dense", dense), ("mixture", mixture)):
                    started = time.process_time()
                    burnish.Train(**self.training(0, 40, 1e-3))(model, data=[self.train_text])
                    seconds[name] += time.process_time() - started
            file.write_text(json.dumps(seconds["mixture"] / seconds["dense"]))
        return json.loads(file.read_text())

    def dense(self, seed: int) -> Any:
        import burnish
        from burnish.train.scratch import initialise

        place = self.work / f"dense{seed}"
        if not place.is_dir():
            start = initialise(CONFIG, tokenizer="bpe:257", texts=[self.train_text], seed=seed)
            settings = self.training(seed, DENSE_STEPS, DENSE_LR)
            burnish.Train(**settings)(start, data=[self.train_text], work_dir=self.work / f"state{seed}").save(place)
        return burnish.load(place)

    def training(self, seed: int, steps: int, lr: float) -> dict[str, Any]:
        settings: dict[str, Any] = {"optimizer": "adamw", "lr": lr, "steps": steps, "batch": BATCH, "context": LENGTH}
        return settings | {"final_lr": 0.1, "seed": seed, "save_every": 100}


def write(bench: Bench) -> None:
    import datetime
    import platform

    import numpy as np

    from burnish.core.checkpoint import library_versions
    from burnish.data import data_hash

    names = {"start": "start"} | {way: f"{way}, {bench.best_lr(way):g}" for way in WAYS}
    runs = {way: [bench.read(f"{seed}, {name}") for seed in SEEDS] for way, name in names.items()}
    reported = reported_windows()
    losses = {way: np.array([run["losses"] for run in found])[:, reported] for way, found in runs.items()}
    picks = np.random.default_rng(0).integers(0, len(reported), (4000, len(reported)))
    rows = {}
    for way, found in runs.items():
        row: dict[str, Any] = {"loss": float(losses[way].mean()), "by_seed": losses[way].mean(1).tolist()}
        row |= {"parameters": found[0]["parameters"], "steps": found[0].get("steps", 0)}
        row["cpu_seconds"] = [run.get("seconds", 0.0) for run in found]
        if way != "start":
            row["lr"] = bench.best_lr(way)
        for base in ("dense", "dense, equal cost"):
            difference = (losses[way] - losses[base]).mean(0)
            low, high = np.quantile(difference[picks].mean(1), [0.025, 0.975])
            row[f"against {base}"] = [float(difference.mean()), float(low), float(high)]
        rows[way] = row
    content = {
        "machine": f"{platform.machine()}, one thread, shared with other work; CPU times only",
        "date": datetime.date.today().isoformat(),
        "versions": library_versions(),
        "seeds": list(SEEDS),
        "settings": CONFIG | {"batch": BATCH, "length": LENGTH, "dense_steps": DENSE_STEPS, "dense_lr": DENSE_LR},
        "slices": slices(bench.dense(SEEDS[0]).tokenizer, bench.test_text)
        | {"training": [data_hash("wikitext2-valid")]},
        "search": {
            f"{way}, {lr:g}": mean(bench.read(f"{SEEDS[0]}, {way}, {lr:g}")["losses"], tuning=True)
            for way in WAYS
            for lr in SEARCH
        },
        "cost_ratio": bench.cost_ratio(),
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    import numpy as np

    lines = [
        f"| {len(results['seeds'])} seeds, nats per byte | parameters | steps | CPU s | lr | loss "
        "| against dense, equal steps | against dense, equal cost |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for way, row in results["rows"].items():
        gaps = []
        for base in ("dense", "dense, equal cost"):
            value, low, high = row[f"against {base}"]
            gaps.append("" if way == base else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]")
        lr = f"{row['lr']:g}" if "lr" in row else ""
        cost = f"{row['steps']:,} | {np.mean(row['cpu_seconds']):.0f}" if "lr" in row else " | "
        lines.append(f"| {way} | {row['parameters']:,} | {cost} | {lr} | {row['loss']:.3f} | {' | '.join(gaps)} |")
    return {"continued": "\n".join(lines)}


if __name__ == "__main__":
    main()
