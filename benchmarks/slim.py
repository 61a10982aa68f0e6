"""Slimming against dropping experts on a small mixture trained on real text: before and after distillation.

    python benchmarks/slim.py --work runs/slim-benchmark --minutes 8      # again, until all is done

Question: at equal parameters, what does each way of cutting a mixture cost in held-out loss; does it survive an equal
budget of distillation; and do stages pay? The teacher is a byte-level OLMoE (8 experts of width 128, top-2, 3 layers,
hidden 96; 1.05 M parameters), trained from scratch by the `train` stage with the load-balancing loss on the WikiText-2
validation text, one per seed. Cuts and recoveries are the stages `slim` and `distill` on that text. Losses are
measured on windows of the WikiText-2 test text, of which every fourth chooses (score, learning rate of the recovery)
and the rest is reported. Every way of recovering gets the same search over learning rates, on the first seed.
Intervals are over windows, paired, each window's loss the mean over seeds (bootstrap over windows).

What has been measured is kept in `--work`, one file per model, so that the benchmark can be stopped at any time;
`--write` writes the results of the seeds whose cuts have all been measured, and of recoveries once all are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from byte_windows import LENGTH, WINDOWS, Measured, mean, reported_windows, slices, window_losses

RESULTS = Path(__file__).parent / "results" / "slim.json"
SEEDS = (0, 1, 2)
WIDTHS = {"half": 64, "a quarter": 32, "an eighth": 16}
EXPERTS = {"half": 4, "a quarter": 2}  # an eighth would be one expert, and the router chooses two
SCORES = ("fisher", "taylor", "energy", "magnitude", "random")
BATCH, CALIBRATION = 8, 8_192
TEACHER_STEPS, TEACHER_LR = 2000, 3e-3
BUDGETS = (60, 240)
"""Steps of distillation in all, however many stages: 3 % and 12 % of those of the teacher's training."""
SEARCH = (1e-3, 3e-3)
RECOVERIES = ("one stage", "two stages", "REAP", "from scratch")
CONFIG = json.loads((Path(__file__).parent.parent / "examples" / "moe_1m.json").read_text())


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of teachers and of what has been measured")
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing new after so long")
    parser.add_argument("--write", action="store_true", help="only write the results of what has been measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.work)
    end = time.monotonic() + 60 * args.minutes
    for name, unit in [] if args.write else bench.units():
        if not bench.file(name).is_file():
            if time.monotonic() > end:
                print(f"stopped before {name}", file=sys.stderr)
                return
            started = time.process_time()
            content = unit()
            content |= {"cpu_seconds": round(time.process_time() - started, 1)}
            bench.file(name).write_text(json.dumps(content))
            loss = sum(content["losses"]) / len(content["losses"])
            print(f"{name}: {loss:.4f} ({content['cpu_seconds']} s)", file=sys.stderr, flush=True)
    write(bench)
    print("all that has been measured is written", file=sys.stderr)


class Bench(Measured):
    """What is measured, by name. A unit's result is {"losses": nats per byte of every window, ...}."""

    def __init__(self, work: Path) -> None:
        from burnish.data import read_texts

        super().__init__(work)
        self.work = work
        self.train_text, self.test_text = (read_texts(f"wikitext2-{part}")[0] for part in ("valid", "test"))
        self._teachers: dict[int, Any] = {}

    def units(self) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
        """In the order in which they are measured; the name begins with the seed."""
        found: list[tuple[str, Callable[[], dict[str, Any]]]] = []
        for seed in SEEDS:
            found.append((f"{seed}, teacher", lambda seed=seed: self.losses_of(self.teacher(seed))))
            for name, settings in cuts().items():
                found.append((f"{seed}, {name}", lambda seed=seed, s=settings: self.losses_of(self.slim(seed, **s))))
        for way in RECOVERIES:
            for lr in SEARCH:
                name = f"{SEEDS[0]}, {way}, a quarter, {BUDGETS[0]} steps, lr {lr:g}"
                found.append((name, lambda way=way, lr=lr: self.recovery(SEEDS[0], way, "a quarter", BUDGETS[0], lr)))
        for seed in SEEDS:
            for size, budget, way in recoveries():
                found.append(
                    (
                        f"{seed}, {way}, {size}, {budget} steps",
                        lambda seed=seed, way=way, size=size, budget=budget: self.recovery(
                            seed, way, size, budget, self.best_lr(way)
                        ),
                    )
                )
        return found

    # -- models ------------------------------------------------------------------------------------------------------

    def teacher(self, seed: int) -> Any:
        import burnish

        if seed not in self._teachers:
            place = self.work / f"teacher{seed}"
            if not place.is_dir():
                settings = self.training(seed, TEACHER_STEPS, TEACHER_LR)
                start = self.start(seed, width=128)
                trained = burnish.Train(**settings)(start, data=[self.train_text], work_dir=self.work / f"state{seed}")
                trained.save(place)
            self._teachers[seed] = burnish.load(place)
            self._teachers[seed].module.set_experts_implementation("eager")
        return self._teachers[seed]

    def start(self, seed: int, width: int) -> Any:
        """Random weights; every byte is a token, and so is the end of a text."""
        from burnish.train.scratch import initialise

        content = CONFIG | {"intermediate_size": width}
        model = initialise(content, tokenizer="bpe:257", texts=[self.train_text], seed=seed)
        model.module.set_experts_implementation("eager")  # a loop over experts, fastest at this size
        return model

    def training(self, seed: int, steps: int, lr: float) -> dict[str, Any]:
        return {
            "optimizer": "adamw",
            "lr": lr,
            "steps": steps,
            "batch": BATCH,
            "context": LENGTH,
            "final_lr": 0.1,
            "seed": seed,
            "save_every": 25,
        }

    def slim(self, seed: int, model: Any = None, **settings: Any) -> Any:
        import burnish

        inputs = {"teacher": self.teacher(seed)} if settings.get("labels") == "teacher" else {}
        common = {"seed": seed, "tokens": CALIBRATION, "length": LENGTH, "multiple": 8, "allow_unseen": True}
        stage = burnish.Slim(**common, **settings | {key: key for key in inputs})
        return stage(model or self.teacher(seed), calibration=[self.train_text], **inputs)

    def distil(self, seed: int, student: Any, steps: int, lr: float) -> Any:
        import burnish

        stage = burnish.Distill(**self.training(seed, steps, lr))
        return stage(student, data=[self.train_text], teacher=self.teacher(seed))

    # -- measurements ------------------------------------------------------------------------------------------------

    def recovery(self, seed: int, way: str, size: str, budget: int, lr: float) -> dict[str, Any]:
        width = WIDTHS[size]
        if way == "one stage":
            student = self.slim(seed, width=width, score="fisher")
        elif way == "REAP":
            student = self.slim(seed, method="drop", num_experts=EXPERTS[size], score="reap")
        elif way == "from scratch":
            student = self.start(seed, width)
        else:
            between = geometric(width)
            first = self.distil(seed, self.slim(seed, width=between, score="fisher"), budget // 2, lr)
            student = self.slim(seed, first, width=width, score="fisher", labels="teacher")
            budget -= budget // 2
        return self.losses_of(self.distil(seed, student, budget, lr)) | {"lr": lr}

    def best_lr(self, way: str) -> float:
        names = {lr: f"{SEEDS[0]}, {way}, a quarter, {BUDGETS[0]} steps, lr {lr:g}" for lr in SEARCH}
        return min(SEARCH, key=lambda lr: mean(self.read(names[lr])["losses"], tuning=True))

    def losses_of(self, model: Any) -> dict[str, Any]:
        return window_losses(model, self.test_text)


def cuts() -> dict[str, dict[str, Any]]:
    """Settings of every cut that is measured before recovery."""
    found: dict[str, dict[str, Any]] = {}
    for size, num_experts in EXPERTS.items():
        for score in SCORES:
            found[f"narrow by {score}, {size}"] = {"width": WIDTHS[size], "score": score}
        for score in ("fisher", "energy"):
            settings = {"width": WIDTHS[size], "score": score, "refit": True}
            found[f"narrow by {score} and refit, {size}"] = settings
        for score in ("reap", "random"):
            settings = {"method": "drop", "num_experts": num_experts, "score": score}
            found[f"drop by {score}, {size}"] = settings
    return found


def recoveries() -> list[tuple[str, int, str]]:
    found = [("a quarter", budget, way) for budget in BUDGETS for way in RECOVERIES]
    return [*found, *(("an eighth", BUDGETS[-1], way) for way in ("one stage", "two stages"))]


def geometric(width: int) -> int:
    from burnish.slim.maths.keep import geometric_widths

    return geometric_widths(WIDTHS["half"] * 2, width, 2, 8)[0]


# -- results -----------------------------------------------------------------------------------------------------------


def write(bench: Bench) -> None:
    import datetime
    import platform

    import numpy as np
    import torch
    import transformers

    from burnish.data import data_hash

    reported = reported_windows()
    seeds = [seed for seed in SEEDS if all(bench.file(f"{seed}, {name}").is_file() for name in ("teacher", *cuts()))]
    recovered = [f"{way}, {size}, {budget} steps" for size, budget, way in recoveries()]
    complete = all(bench.file(f"{seed}, {name}").is_file() for seed in SEEDS for name in recovered)
    names = ["teacher", *cuts(), *(recovered if complete else [])]
    runs = {name: [bench.read(f"{seed}, {name}") for seed in seeds] for name in names}
    losses = {name: np.array([run["losses"] for run in runs[name]]) for name in names}
    tuning = {name: float(np.delete(losses[name], reported, 1).mean()) for name in names}
    best = {}
    for size in EXPERTS:
        best[size] = min((name for name in cuts() if name.endswith(f", {size}") and "narrow" in name), key=tuning.get)  # type: ignore[arg-type]
    picks = np.random.default_rng(0).integers(0, len(reported), (4000, len(reported)))
    summary = {}
    for name in names:
        values = losses[name][:, reported]
        row = {
            "loss": float(values.mean()),
            "by_seed": values.mean(1).tolist(),
            "tuning": tuning[name],
            "parameters": runs[name][0]["parameters"],
            "cpu_seconds": [run["cpu_seconds"] for run in runs[name]],
        }
        if "steps" in name:
            row["lr"] = runs[name][0]["lr"]
        size = next((size for size in WIDTHS if f", {size}" in name), None)
        base = name.replace(name.split(",")[0], "one stage") if "steps" in name else best.get(str(size))
        if base is not None and base != name:
            difference = (values - losses[base][:, reported]).mean(0)
            low, high = np.quantile(difference[picks].mean(1), [0.025, 0.975])
            row["against"] = {"name": base, "mean": float(difference.mean()), "low": float(low), "high": float(high)}
            row["against"]["by_seed"] = (values - losses[base][:, reported]).mean(1).tolist()
        summary[name] = row
    search = {}
    for way in RECOVERIES if complete else ():
        for lr in SEARCH:
            unit = bench.read(f"{SEEDS[0]}, {way}, a quarter, {BUDGETS[0]} steps, lr {lr:g}")
            search[f"{way}, lr {lr:g}"] = mean(unit["losses"], tuning=True)
    content = {
        "machine": f"{platform.machine()}, one thread, shared with other work; CPU times only",
        "date": datetime.date.today().isoformat(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "settings": {
            "teacher": CONFIG | {"steps": TEACHER_STEPS, "lr": TEACHER_LR},
            "batch": BATCH,
            "length": LENGTH,
            "calibration_tokens": CALIBRATION,
            "windows": WINDOWS,
            "bootstrap": len(picks),
        },
        "slices": slices(bench.teacher(SEEDS[0]).tokenizer, bench.test_text)
        | {"training": [data_hash("wikitext2-valid")]},
        "seeds": seeds,
        "best_score": best,
        "search": search,
        "summary": summary,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def tables(results: dict) -> dict[str, str]:
    """Markdown tables for the documentation."""
    summary, best = results["summary"], results["best_score"]

    def interval(name: str) -> str:
        part = summary[name].get("against")
        return f"{part['mean']:+.3f} [{part['low']:+.3f}, {part['high']:+.3f}]" if part else ""

    num_seeds = len(results["seeds"])
    heading = f"{num_seeds} seed{'s' if num_seeds > 1 else ''}, nats per byte; teacher {summary['teacher']['loss']:.3f}"
    before = [
        f"| {heading} | half of the expert parameters | against the chosen | a quarter | against the chosen |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    kinds = [name.removesuffix(", half") for name in summary if name.endswith(", half")]
    for kind in sorted(kinds, key=lambda kind: summary[f"{kind}, half"]["loss"]):
        cells = []
        for size in ("half", "a quarter"):
            name = f"{kind}, {size}"
            cells += [f"{summary[name]['loss']:.3f}", "chosen" if best[size] == name else interval(name)]
        before.append(f"| {kind} | " + " | ".join(cells) + " |")
    after = [
        "| recovered | size | steps | lr | loss | against one stage |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in summary.items():
        if "steps" in name:
            way, size, steps = name.removesuffix(" steps").split(", ")
            after.append(f"| {way} | {size} | {steps} | {row['lr']:g} | {row['loss']:.3f} | {interval(name)} |")
    sizes = ["| model | parameters |", "| --- | ---: |", f"| teacher | {summary['teacher']['parameters']:,} |"]
    for size in EXPERTS:
        for kind in ("narrow by fisher", "drop by reap"):
            sizes.append(f"| {kind}, {size} | {summary[f'{kind}, {size}']['parameters']:,} |")
    return {"before": "\n".join(before), "after": "\n".join(after), "sizes": "\n".join(sizes)}


if __name__ == "__main__":
    main()
