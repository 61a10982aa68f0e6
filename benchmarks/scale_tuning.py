"""How much of what 3 bits cost do trained scales and norms give back, on text that nothing has seen?

    python benchmarks/scale_tuning.py --model models/smollm2 --data DIR --work WORK

Every start is a checkpoint of symmetric integers in groups of 64, made of WikiText-2 valid as in low_bits.py: 3 bits by
two-sided rounding with refitted scales, and by learned rounding, from 8,192 tokens; and mixed widths of 3.0 bits on the
mean with refitted scales, from 65,536. `burnish tune` trains on rows of 256 tokens of the same text, one row a step,
and keeps the scales that are best on rows held out of it; the seed draws the order of the rows. Beside it are three
times the learning rate, which is the default else; the same steps on the text's next tokens, without the original; and
half as many steps for each layer, towards what the original's layer gives, alone and before the others.
The divergence from the original is measured on three texts, as in low_bits.py: WikiText-2 test, movie reviews and
presidents' speeches. Nothing is chosen on them. A step of tuning is timed beside one of distillation into all weights
of the original, in turns. What has been measured is kept in WORK, and so are the checkpoints;
rows of the results file that WORK does not have stay in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import experiment
import numpy as np
import torch
from low_bits import CHECKPOINTS, DOMAINS, GROUP, LENGTH, OURS, TEXT, TOKENS, windows_of_domain

from burnish.core.checkpoint import load
from burnish.distill.stage import Distill
from burnish.quantize.stage import Quantize
from burnish.tune.stage import Tune

STARTS = {
    "rounded": "yaqa-a, refit",
    "learned": "learned, yaqa, sensitivity",
    "mixed": CHECKPOINTS["command-100MB"],
}
STEPS = 2 if experiment.SMOKE else 96
ARMS: dict[str, dict[str, Any]] = {
    "scales and norms": {},
    "scales and norms, rate 3e-3": {"lr": 3e-3},
    "layer by layer": {"by_layer": True, "precision": "auto", "steps": STEPS // 2},
    "layer by layer, then scales and norms": {},
    "scales": {"norms": False},
    "scales and norms, next tokens": {"alpha": 0.0},
}
AFTER = {"layer by layer, then scales and norms": "layer by layer"}
"""Arms that begin where another one ends."""
UNTUNED, COST = "not tuned", "cost of a step"
SEEDS = (0, 1, 2)
ROW: dict[str, Any] = {"batch": 1, "context": 256, "precision": "bfloat16"}
ROUNDS, FEW, MORE = (1, 1, 2) if experiment.SMOKE else (3, 1, 5)
"""How often both sides of the cost take turns, and the steps of two trainings whose difference is what counts."""


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="where the other two texts are")
    parser.add_argument("--only", nargs="*", default=[], help="measure what begins so, such as 'rounded, scales'")
    parser.keeps("where checkpoints and what has been measured are kept")
    arguments = parser.read()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    bench.kept.run(bench.names, bench.measure, arguments.minutes)
    measured = {name: bench.kept.read(name) for name in bench.every() if bench.kept.has(name)}
    rows = list((earlier(arguments.out) | measured).values())
    texts = [experiment.digest(bench.windows(domain).numpy()) for domain in DOMAINS]
    content = {"steps": STEPS, "rows": rows, "slices": {"tuning": [], "reporting": texts}}
    if bench.kept.has(COST):
        content["cost"] = bench.kept.read(COST)["seconds"]
    experiment.record(arguments.out, __doc__, content)


def earlier(out: Path) -> dict[str, Any]:
    """What a results file has by the names of its cells."""
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.is_file() else []
    return {f"{row['start']}, {row['arm']}, {row['seed']}": row for row in rows}


class Bench:
    """Every cell: a start, what is trained, a seed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work, self.data, self.only = arguments.work, arguments.data, tuple(arguments.only)
        self.model = load(arguments.model)
        self.kept = experiment.Kept(self.work)
        self.wanted: dict[str, list[torch.Tensor]] = {}

    def every(self) -> Iterable[str]:
        for start in STARTS:
            yield f"{start}, {UNTUNED}, 0"
            yield from (f"{start}, {arm}, {seed}" for seed in SEEDS for arm in ARMS)

    def names(self) -> Iterable[str]:
        return (name for name in [*self.every(), COST] if not self.only or name.startswith(self.only))

    def measure(self, name: str) -> dict[str, Any]:
        if name == COST:
            return {"seconds": self.cost()}
        start, arm, seed = name.split(", ", 1)[0], name.split(", ", 1)[1].rsplit(", ", 1)[0], name.rsplit(", ", 1)[1]
        tuned = self.work / f"tuned-{start}-{AFTER.get(arm, arm)}-{seed}".replace(" ", "-")
        before = tuned if arm in AFTER else self.start(start)
        began, held_out = time.process_time(), list[float]()
        if arm == UNTUNED:
            module = load(before, dtype=torch.float32).module
        else:
            stage = Tune(**ROW | {"steps": STEPS, "seed": int(seed), "eval_every": 32} | ARMS[arm])
            place = self.work / f"tune-{experiment.digest(name)[:12]}"
            texts = {"data": TEXT, "teacher": self.model}
            model = stage(load(before), work_dir=place, progress=True, **texts)
            if arm in AFTER.values():
                model.save(tuned, overwrite=True)
            module = model.module.float()
            if not stage.by_layer:
                losses = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
                held_out = [row["validation_loss"] for row in losses if "validation_loss" in row]
        seconds = time.process_time() - began
        kl = {domain: self.divergence(module, domain) for domain in DOMAINS}
        print(name, {domain: round(float(np.mean(values)), 4) for domain, values in kl.items()}, flush=True)
        row = {"start": start, "arm": arm, "seed": int(seed), "kl": kl, "cpu_seconds": round(seconds, 1)}
        return row | {"held_out": held_out}

    def cost(self) -> dict[str, list[float]]:
        """CPU seconds of a step in every turn: of tuning, and of distillation into all weights of the original."""
        how = ROW | {"save_every": 0, "holdout": 0.0}
        sides = {
            "tuning": (lambda steps: Tune(**how, steps=steps, keep_best=False), self.start("mixed")),
            "distillation": (lambda steps: Distill(**how, steps=steps, alpha=1.0, optimizer="adamw"), self.model.path),
        }
        found: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(ROUNDS):
            for name in list(sides)[:: -1 if number % 2 else 1]:
                stage, model = sides[name]
                seconds = []
                for steps in (FEW, MORE):
                    began = time.process_time()
                    stage(steps)(load(model), data=TEXT, teacher=self.model)
                    seconds.append(time.process_time() - began)
                found[name].append((seconds[1] - seconds[0]) / (MORE - FEW))
        return found

    def start(self, name: str) -> Path:
        """The checkpoint that tuning begins with, made where it is not there."""
        place = self.work / f"start-{name}"
        if not place.is_dir():
            settings: dict[str, Any] = {"target": "100MB", "sketch": "a", "damping": 0.1}
            if name != "mixed":
                settings = {"bits": 3, "group_size": GROUP, "tokens": TOKENS, "length": LENGTH} | OURS[STARTS[name]]
            stage = Quantize(calibration=TEXT, **settings)
            stage(self.model, work_dir=self.work / f"quantize-{name}", progress=True).save(place)
        return place

    def windows(self, domain: str) -> torch.Tensor:
        return windows_of_domain(self.model, self.data, domain)

    def divergence(self, module: Any, domain: str) -> list[float]:
        """KL(original || module) of every window, nats a token."""
        windows = self.windows(domain)
        with torch.inference_mode():
            if domain not in self.wanted:
                original = load(self.model.path or "", dtype=torch.float32).module
                self.wanted[domain] = [original(ids[None]).logits[0, :-1].log_softmax(-1) for ids in windows]
            found = []
            for ids, wanted in zip(windows, self.wanted[domain], strict=True):
                ours, theirs = module(ids[None]).logits[0, :-1].log_softmax(-1), wanted
                found.append(float((theirs.exp() * (theirs - ours)).sum(-1).double().mean()))
        return found


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: each way of tuning beside its start, and beside it the ratio over windows and seeds."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        found.setdefault((row["start"], row["arm"]), []).append(row)
    rows = []
    for (start, arm), runs in found.items():
        cells = [f"{np.mean([run['kl'][domain] for run in runs]):.3f}" for domain in DOMAINS]
        untuned = found.get((start, UNTUNED))
        ratios = ["", "", ""]
        if arm != UNTUNED and untuned:
            pairs = [(np.mean([run["kl"][d] for run in runs], axis=0), untuned[0]["kl"][d]) for d in DOMAINS]
            ratios = [experiment.cell(experiment.ratio(*pair), ".2f") for pair in pairs]
        seconds = np.mean([run["cpu_seconds"] for run in runs])
        rows.append([STARTS[start], arm, len(runs), *cells, *ratios, f"{seconds:.0f}" if arm != UNTUNED else ""])
    names = " | ".join(DOMAINS.values())
    beside = " | ".join(f"{name}, against the start (95 %)" for name in DOMAINS.values())
    made = {"main": experiment.table(f"start | trained | seeds | {names} | {beside} | CPU s", rows)}
    if "cost" in results:
        seconds = results["cost"]
        against = experiment.cell(experiment.ratio(seconds["tuning"], seconds["distillation"]), ".2f")
        row = [*(f"{np.mean(seconds[name]):.2f}" for name in ("tuning", "distillation")), against]
        made["cost"] = experiment.table("step of tuning, CPU s: | of distillation, CPU s: | ratio (95 %):", [row])
    return made


if __name__ == "__main__":
    main()
