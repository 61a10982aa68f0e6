"""Does a mixture that starts from a dense model train to a lower loss than the dense model trained on?

    python benchmarks/upcycle.py --work runs/upcycle-benchmark --minutes 8      # again, until all is done

A byte-level Llama (hidden 96, 3 layers, width 256; 0.4 M parameters) is trained from scratch on the WikiText-2
validation text for 1,000 steps, one per seed. From there all ways go on with the same text and optimizer: the dense
model for 400 steps; the dense model for as many steps as cost what the mixture costs (CPU seconds of a step, measured);
`convert upcycle` to 4 experts, 2 for each token, with its load-balancing loss, for 400 steps, exactly equal to the
dense model at the start or with noise of 0.1 on the experts. Losses are measured on windows of the WikiText-2 test
text; every fourth chooses the learning rate (first seed, each way from the same two) and the rest is reported.

What has been measured is kept in `--work`, so that the benchmark can be stopped at any time; it writes its results once
all of it is there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import byte_windows
import experiment
import numpy as np

DENSE_STEPS, DENSE_LR, STEPS = 1000, 3e-3, 400
SEARCH = (1e-3, 3e-3)
WAYS = ("dense", "dense, equal cost", "mixture", "mixture, noise 0.1")
BASES = WAYS[:2]
CONFIG = {
    "model_type": "llama",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
}


class Bench(byte_windows.Bench):
    """What is measured, by name: "seed, start" and "seed, way, lr"."""

    def __init__(self, work: Path, *, smoke: bool) -> None:
        super().__init__(work, smoke=smoke)
        self.dense_steps, self.steps = (2, 2) if smoke else (DENSE_STEPS, STEPS)

    def names(self) -> list[str]:
        first = self.seeds[0]
        found = [f"{first}, start", *(f"{first}, {way}, {lr:g}" for way in WAYS for lr in SEARCH)]
        if all(self.file(name).is_file() for name in found):  # the rates are chosen
            for seed in self.seeds[1:]:
                found += [f"{seed}, start", *(f"{seed}, {way}, {self.best_lr(way):g}" for way in WAYS)]
        return found

    def best_lr(self, way: str) -> float:
        return min(SEARCH, key=lambda lr: self.tuning_loss(f"{self.seeds[0]}, {way}, {lr:g}"))

    def measure(self, name: str) -> dict[str, Any]:
        first, what, *rest = name.split(", ")
        seed, model = int(first), self.dense(int(first))
        if what == "start":
            return self.losses(model)
        steps, lr = self.steps, float(rest[-1])
        if what == "mixture":
            model = mixture(model, noise=0.1 if "noise 0.1" in rest else 0.0, seed=seed)
        elif rest[0] == "equal cost":
            steps = round(self.steps * self.cost_ratio())
        started = time.process_time()
        trained = self.train(model, seed, steps, lr)
        return {"steps": steps, "seconds": round(time.process_time() - started, 1)} | self.losses(trained)

    def cost_ratio(self) -> float:
        """CPU seconds of a step of the mixture over those of the dense model, a few steps of each in turn."""
        if not self.file("cost ratio").is_file():
            models = {"dense": self.dense(self.seeds[0]), "mixture": mixture(self.dense(self.seeds[0]))}
            steps = min(40, self.steps)
            sides = {name: lambda model=model: self.train(model, 0, steps, 1e-3) for name, model in models.items()}
            self.keep("cost ratio", experiment.turns(sides, 3))
        seconds = self.read("cost ratio")
        return sum(seconds["mixture"]) / sum(seconds["dense"])

    def dense(self, seed: int) -> Any:
        place = self.work / f"dense{seed}"
        return self.train(self.start(CONFIG, seed), seed, self.dense_steps, DENSE_LR, place)


def mixture(dense: Any, **settings: Any) -> Any:
    import burnish

    made = burnish.Upcycle(num_experts=4, top_k=2, **settings)(dense)
    made.module.set_experts_implementation("eager")  # a loop over experts, fastest at this size
    return made


def summary(bench: Bench) -> dict[str, Any]:
    names = {"start": "start"} | {way: f"{way}, {bench.best_lr(way):g}" for way in WAYS}
    units = {way: [f"{seed}, {name}" for seed in bench.seeds] for way, name in names.items()}
    losses = {way: bench.reported(found) for way, found in units.items()}
    rows = {}
    for way, found in units.items():
        runs = bench.runs(found)
        row: dict[str, Any] = {"loss": float(losses[way].mean()), "by_seed": losses[way].mean(1).tolist()}
        row |= {"parameters": runs[0]["parameters"], "steps": runs[0].get("steps", 0)}
        row |= {"cpu_seconds": [run.get("seconds", 0.0) for run in runs]}
        row |= {"lr": bench.best_lr(way)} if way != "start" else {}
        row |= {f"against {base}": byte_windows.against(losses[way], losses[base]) for base in BASES}
        rows[way] = row
    search = {f"{way}, {lr:g}": bench.tuning_loss(f"{bench.seeds[0]}, {way}, {lr:g}") for way in WAYS for lr in SEARCH}
    settings = {"batch": byte_windows.BATCH, "length": byte_windows.LENGTH, "dense_steps": bench.dense_steps}
    return {
        "seeds": list(bench.seeds),
        "settings": CONFIG | settings | {"dense_lr": DENSE_LR},
        "slices": byte_windows.slices(bench.dense(bench.seeds[0]).tokenizer, bench.test_text),
        "search": search,
        "cost_ratio": bench.cost_ratio(),
        "rows": rows,
    }


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs."""
    rows = []
    for way, row in results["rows"].items():
        gaps = ["" if way == base else experiment.cell(row[f"against {base}"], "+.3f") for base in BASES]
        cost = (
            [f"{row['steps']:,}", f"{np.mean(row['cpu_seconds']):.0f}", f"{row['lr']:g}"] if "lr" in row else [""] * 3
        )
        rows.append([way, f"{row['parameters']:,}", *cost, f"{row['loss']:.3f}", *gaps])
    header = (
        f"{len(results['seeds'])} seeds, nats per byte | parameters: | steps: | CPU s: | lr: | loss: "
        f"| against dense, equal steps ({experiment.rule(results['rows']['mixture']['against dense'])}): "
        "| against dense, equal cost:"
    )
    return {"continued": experiment.table(header, rows)}


if __name__ == "__main__":
    byte_windows.main(__file__, __doc__ or "", Bench, summary)
