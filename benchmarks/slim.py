"""Does slimming experts cost less than dropping them, before and after distillation, and do rounds pay?

    python benchmarks/slim.py --work runs/slim-benchmark --minutes 8      # again, until all is done

At equal parameters, what does each way of cutting a mixture cost in held-out loss; does it survive an equal budget of
distillation; and do rounds pay? The teacher is a byte-level OLMoE (8 experts of width 128, top-2, 3 layers, hidden 96;
1.05 M parameters), trained from scratch by the `train` stage with the load-balancing loss on the WikiText-2 validation
text, one per seed. Cuts and recoveries are the stages `slim` and `distill` on that text. Losses are measured on windows
of the WikiText-2 test text, of which every fourth chooses (score, learning rate of the recovery) and the rest is
reported. Every way of recovering gets the same search over learning rates, on the first seed.

What has been measured is kept in `--work`, one file per model, so that the benchmark can be stopped at any time;
`--write` writes the results of the seeds whose cuts have all been measured, and of recoveries once all are there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import byte_windows
import experiment

WIDTHS = {"half": 64, "a quarter": 32, "an eighth": 16}
EXPERTS = {"half": 4, "a quarter": 2}  # an eighth would be one expert, and the router chooses two
SCORES = ("fisher", "taylor", "energy", "magnitude", "random")
CALIBRATION = 8_192
TEACHER_STEPS, TEACHER_LR = 2000, 3e-3
BUDGETS = (60, 240)
"""Steps of distillation in all, however many rounds: 3 % and 12 % of those of the teacher's training."""
SEARCH = (1e-3, 3e-3)
RECOVERIES = ("one round", "two rounds", "REAP", "from scratch")
CONFIG = json.loads((Path(__file__).parent.parent / "examples" / "moe_1m.json").read_text())


def cuts() -> dict[str, dict[str, Any]]:
    """Settings of every cut that is measured before recovery."""
    found: dict[str, dict[str, Any]] = {}
    for size, num_experts in EXPERTS.items():
        for score in SCORES:
            found[f"narrow by {score}, {size}"] = {"width": WIDTHS[size], "score": score}
        for score in ("fisher", "energy"):
            found[f"narrow by {score} and refit, {size}"] = {"width": WIDTHS[size], "score": score, "refit": "alone"}
        for score in ("reap", "random"):
            found[f"drop by {score}, {size}"] = {"method": "drop", "num_experts": num_experts, "score": score}
    return found


def recoveries() -> list[str]:
    found = [f"{way}, a quarter, {budget} steps" for budget in BUDGETS for way in RECOVERIES]
    return [*found, *(f"{way}, an eighth, {BUDGETS[-1]} steps" for way in ("one round", "two rounds"))]


def searched(way: str, lr: float) -> str:
    return f"{byte_windows.SEEDS[0]}, {way}, a quarter, {BUDGETS[0]} steps, lr {lr:g}"


class Bench(byte_windows.Bench):
    """What is measured, by name: "seed, cut, size" and "seed, way, size, steps"."""

    def __init__(self, work: Path, *, smoke: bool, config: dict[str, Any] = CONFIG) -> None:
        super().__init__(work, smoke=smoke)
        self.config, self.cut_text, self._teachers = config, self.train_text, {}

    def names(self) -> list[str]:
        """In the order in which they are measured."""
        cut = [f"{seed}, {name}" for seed in self.seeds for name in ("teacher", *cuts())]
        tried = [searched(way, lr) for way in RECOVERIES for lr in SEARCH]
        return [*cut, *tried, *(f"{seed}, {name}" for seed in self.seeds for name in recoveries())]

    def measure(self, name: str) -> dict[str, Any]:
        first, what = name.split(", ", 1)
        seed = int(first)
        if what == "teacher":
            return self.losses(self.teacher(seed))
        if what in cuts():
            return self.losses(self.slim(seed, **cuts()[what]))
        way, size, steps, *lr = what.split(", ")
        rate = float(lr[0].removeprefix("lr ")) if lr else self.best_lr(way)
        return self.recovery(seed, way, size, int(steps.removesuffix(" steps")), rate) | {"lr": rate}

    # -- models ------------------------------------------------------------------------------------------------------

    def teacher(self, seed: int) -> Any:
        if seed not in self._teachers:
            start, steps = self.start(self.config, seed), 2 if self.smoke else TEACHER_STEPS
            self._teachers[seed] = self.train(start, seed, steps, TEACHER_LR, self.work / f"teacher{seed}")
            self._teachers[seed].module.set_experts_implementation("eager")
        return self._teachers[seed]

    def start(self, config: dict[str, Any], seed: int) -> Any:
        model = super().start(config, seed)
        model.module.set_experts_implementation("eager")  # a loop over experts, fastest at this size
        return model

    def slim(self, seed: int, model: Any = None, **settings: Any) -> Any:
        import burnish

        inputs = {"teacher": self.teacher(seed)} if settings.get("labels") == "teacher" else {}
        common = {"seed": seed, "tokens": 1024 if self.smoke else CALIBRATION, "length": byte_windows.LENGTH}
        stage = burnish.Slim(**common, multiple=8, allow_unseen=True, **settings | {key: key for key in inputs})
        return stage(model or self.teacher(seed), calibration=[self.cut_text], **inputs)

    def distil(self, seed: int, student: Any, steps: int, lr: float) -> Any:
        import burnish

        stage = burnish.Distill(**self.training(seed, 2 if self.smoke else steps, lr))
        return stage(student, data=[self.train_text], teacher=self.teacher(seed))

    def recovery(self, seed: int, way: str, size: str, budget: int, lr: float) -> dict[str, Any]:
        from burnish.slim.maths.keep import geometric_widths

        width = WIDTHS[size]
        if way == "one round":
            student = self.slim(seed, width=width, score="fisher")
        elif way == "REAP":
            student = self.slim(seed, method="drop", num_experts=EXPERTS[size], score="reap")
        elif way == "from scratch":
            student = self.start(self.config | {"intermediate_size": width}, seed)
        else:
            between = geometric_widths(WIDTHS["half"] * 2, width, 2, 8)[0]
            first = self.distil(seed, self.slim(seed, width=between, score="fisher"), budget // 2, lr)
            student = self.slim(seed, first, width=width, score="fisher", labels="teacher")
            budget -= budget // 2
        return self.losses(self.distil(seed, student, budget, lr))

    def best_lr(self, way: str) -> float:
        return min(SEARCH, key=lambda lr: self.tuning_loss(searched(way, lr)))


def summary(bench: Bench) -> dict[str, Any]:
    """Of the seeds whose cuts have all been measured, and of recoveries once all are there."""
    cut = ("teacher", *cuts())
    seeds = [seed for seed in bench.seeds if all(bench.file(f"{seed}, {name}").is_file() for name in cut)]
    complete = all(bench.file(f"{seed}, {name}").is_file() for seed in bench.seeds for name in recoveries())
    units = {name: [f"{seed}, {name}" for seed in seeds] for name in (*cut, *(recoveries() if complete else ()))}
    losses = {name: bench.reported(found) for name, found in units.items()}
    tuning = {name: sum(map(bench.tuning_loss, found)) / len(found) for name, found in units.items()}
    best = {
        size: min((name for name in cuts() if name.endswith(f", {size}") and "narrow" in name), key=lambda n: tuning[n])
        for size in EXPERTS
    }
    rows = {}
    for name, found in units.items():
        runs, values = bench.runs(found), losses[name]
        row = {"loss": float(values.mean()), "by_seed": values.mean(1).tolist(), "tuning": tuning[name]}
        row |= {"parameters": runs[0]["parameters"], "cpu_seconds": [run["cpu_seconds"] for run in runs]}
        row |= {"lr": runs[0]["lr"]} if "steps" in name else {}
        rest = name.partition(", ")[2]
        base = f"one round, {rest}" if "steps" in name else best.get(rest, name)
        if base != name:
            row["against"] = {"name": base} | byte_windows.against(values, losses[base])
        rows[name] = row
    tried = {(way, lr): searched(way, lr) for way in RECOVERIES for lr in SEARCH if complete}
    settings = {"teacher": CONFIG | {"steps": TEACHER_STEPS, "lr": TEACHER_LR}, "calibration_tokens": CALIBRATION}
    settings |= {"batch": byte_windows.BATCH, "length": byte_windows.LENGTH, "windows": bench.num_windows}
    return {
        "settings": settings,
        "slices": byte_windows.slices(bench.teacher(bench.seeds[0]).tokenizer, bench.test_text),
        "seeds": seeds,
        "best_score": best,
        "search": {f"{way}, lr {lr:g}": bench.tuning_loss(name) for (way, lr), name in tried.items()},
        "summary": rows,
    }


def main() -> None:
    import torch

    command = experiment.Command(__file__, __doc__)
    command.keeps("directory of teachers and of what has been measured")
    command.add_argument("--write", action="store_true", help="only write the results of what has been measured")
    arguments = command.read()
    torch.set_num_threads(1)
    bench = Bench(arguments.work, smoke=arguments.smoke)
    if arguments.write or bench.run(bench.names, bench.measure, arguments.minutes):
        note = "one thread, shared with other work; CPU times only"
        experiment.record(arguments.out, __doc__, summary(bench), note=note)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    rows, best = results["summary"], results["best_score"]
    rule = experiment.rule(next(row["against"] for row in rows.values() if "against" in row))

    def gap(name: str) -> str:
        return experiment.cell(rows[name]["against"], "+.3f") if "against" in rows[name] else ""

    def cut(kind: str) -> list[str]:
        cells = [kind]
        for size in EXPERTS:
            name = f"{kind}, {size}"
            cells += [f"{rows[name]['loss']:.3f}", "chosen" if best[size] == name else gap(name)]
        return cells

    num = len(results["seeds"])
    heading = f"{num} seed{'s' if num > 1 else ''}, nats per byte; teacher {rows['teacher']['loss']:.3f}"
    kinds = [name.removesuffix(", half") for name in rows if name.endswith(", half")]
    before = experiment.table(
        f"{heading} | half of the expert parameters: | against the chosen ({rule}): | a quarter: | against the chosen:",
        map(cut, sorted(kinds, key=lambda kind: rows[f"{kind}, half"]["loss"])),
    )
    after = experiment.table(
        f"recovered | size | steps: | lr: | loss: | against one round ({rule}):",
        (
            [*name.removesuffix(" steps").split(", "), f"{row['lr']:g}", f"{row['loss']:.3f}", gap(name)]
            for name, row in rows.items()
            if "steps" in name
        ),
    )
    shown = ["teacher", *(f"{kind}, {size}" for size in EXPERTS for kind in ("narrow by fisher", "drop by reap"))]
    sizes = experiment.table("model | parameters:", ([name, f"{rows[name]['parameters']:,}"] for name in shown))
    return {"before": before, "after": after, "sizes": sizes}


if __name__ == "__main__":
    main()
