"""How much of what a cut costs do 60 steps of distillation win back that train routers alone, and does merging help?

    python benchmarks/slim_router.py --work runs/slim-router --minutes 8      # again, until all is done

Half of the parameters of all experts: every expert narrowed and refitted, half of them dropped (REAP, random,
magnitude), or the dropped ones merged into those that stay. Merging (as M-SMoE does): a dropped expert goes to the kept
one whose router row is most alike (cosine), and weights are averaged by the tokens that each was given. Then the
routers alone, 2,304 parameters or half of that, are trained to predict the teacher's distribution, on 61,440 tokens;
together with 8,192 for the cut less than 100,000, and no expert is trained. Three families of mixtures, each of about
a million parameters with 8 experts of width 128, top-2: OLMoE, Mixtral and Qwen3-MoE (`examples/*_1m.json`). Teachers,
texts and windows are made as in `slim.py`, a teacher for each family and seed; the learning rate is searched on the
tuning windows of the first seed of the first family, for every way of cutting alike.

"gap closed" is the share of (cut - teacher) that the routers win back, with the interval of the ratio over windows.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byte_windows
import experiment

import slim

CUT_TEXT = 300_000
"""Characters of the training text that cuts and routers draw their tokens from; all of it takes longer to read than the
whole of either."""
FAMILIES = {"OLMoE": "moe_1m", "Mixtral": "mixtral_1m", "Qwen3-MoE": "qwen3_moe_1m"}
STEPS, SEARCH = 60, (3e-3, 1e-2, 3e-2)
CUTS: dict[str, dict[str, Any]] = {
    "narrow by energy and refit": {"width": 64, "score": "energy", "refit": "alone"},
    "narrow by fisher and refit": {"width": 64, "score": "fisher", "refit": "alone"},
    "drop by reap": {"method": "drop", "num_experts": 4, "score": "reap"},
    "drop by reap and merge": {},
    "drop by magnitude": {"method": "drop", "num_experts": 4, "score": "magnitude"},
    "drop by random": {"method": "drop", "num_experts": 4, "score": "random"},
}


class Family(slim.Bench):
    """What is measured of one family, by name: "seed, cut", "seed, cut, routers", and that with a learning rate.

    Attributes:
        first: of the families, whose search decides for all; None for the first itself.
    """

    def __init__(self, work: Path, name: str, *, smoke: bool, first: Family | None = None) -> None:
        config = json.loads((Path(slim.__file__).parent.parent / "examples" / f"{FAMILIES[name]}.json").read_text())
        super().__init__(work / name, smoke=smoke, config=config)
        self.first, self.cut_text = first, self.train_text[:CUT_TEXT]
        self.student = functools.cache(self.student)

    def names_of(self, seed: int) -> list[str]:
        """In the order in which they are measured."""
        cut = [f"{seed}, {name}" for name in ("teacher", *CUTS)]
        searches = self.first is None and seed == self.seeds[0]
        tried = [searched(name, lr) for name in CUTS for lr in SEARCH] if searches else []
        return [*cut, *tried, *(f"{seed}, {name}, routers" for name in CUTS)]

    def measured_seeds(self) -> list[int]:
        """Seeds of which everything is there."""
        return [seed for seed in self.seeds if all(self.has(name) for name in self.names_of(seed))]

    def measure(self, name: str) -> dict[str, Any]:
        number, what, *rest = name.split(", ")
        seed = int(number)
        if what == "teacher":
            return self.losses(self.teacher(seed))
        student = self.student(seed, what)
        if not rest:
            return self.losses(student)
        lr = float(rest[1].removeprefix("lr ")) if len(rest) > 1 else (self.first or self).best(what)
        return self.losses(self.routed(seed, student, lr)) | {"lr": lr}

    def student(self, seed: int, what: str) -> Any:
        return self.merged(seed) if what == "drop by reap and merge" else self.slim(seed, **CUTS[what])

    def best(self, what: str) -> float:
        return min(SEARCH, key=lambda lr: self.tuning_loss(searched(what, lr)))

    def routed(self, seed: int, student: Any, lr: float) -> Any:
        import burnish

        settings = self.training(seed, 2 if self.smoke else STEPS, lr) | {"only": "routers", "balance": 0.0}
        return burnish.Distill(**settings)(student, data=[self.cut_text], teacher=self.teacher(seed))

    def merged(self, seed: int) -> Any:
        """The experts that REAP keeps, each the average of itself and the dropped ones that are most like it."""
        import torch

        from burnish.arch import matrices

        teacher = self.teacher(seed)
        cut = copy.deepcopy(self.student(seed, "drop by reap"))
        old, new = (by_place(matrices(model.module)) for model in (teacher, cut))
        counts = self.counts(seed)
        for layer in counts:
            rows, kept_rows = (views[layer, "router", None].tensor.double() for views in (old, new))
            kept = [int((rows == row).all(1).nonzero()[0, 0]) for row in kept_rows]
            like = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(kept_rows, dim=1).T
            goes_to = like.argmax(1)
            goes_to[kept] = torch.arange(len(kept))
            for place, own in enumerate(kept):
                members = [own, *(int(e) for e in (goes_to == place).nonzero()[:, 0] if int(e) != own)]
                shares = counts[layer][members].double() + 1e-9
                for role in ("gate", "up", "down"):
                    stack = torch.stack([old[layer, role, expert].tensor.double() for expert in members])
                    mean = torch.einsum("e,eoi->oi", shares / shares.sum(), stack)
                    new[layer, role, place].write_(mean.to(new[layer, role, place].tensor.dtype))
        return cut

    def counts(self, seed: int) -> dict[int, Any]:
        """Tokens of the calibration text that each expert of the teacher is given."""
        import torch

        from burnish.core.progress import Progress
        from burnish.data import calibration
        from burnish.slim.collect import collect
        from burnish.slim.maths.scores import SCORES

        teacher = self.teacher(seed)
        tokens = calibration(
            teacher.tokenizer,
            [self.cut_text],
            length=byte_windows.LENGTH,
            max_tokens=1024 if self.smoke else slim.CALIBRATION,
            generator=torch.Generator().manual_seed(seed),
        )
        generator, progress = torch.Generator().manual_seed(seed), Progress(enabled=False)
        return collect(teacher.module.eval(), tokens, SCORES["energy"], generator=generator, progress=progress).counts


def by_place(views: list[Any]) -> dict[tuple[int | None, str, int | None], Any]:
    return {(view.layer, view.role, view.expert): view for view in views}


def searched(what: str, lr: float) -> str:
    return f"{byte_windows.SEEDS[0]}, {what}, routers, lr {lr:g}"


def families(kind: type[Family], work: Path, *, smoke: bool) -> dict[str, Family]:
    """Benches by name; teachers lie in `work`, one directory for each family."""
    found: dict[str, Family] = {}
    for name in FAMILIES:
        found[name] = kind(work, name, smoke=smoke, first=next(iter(found.values()), None))
    return found


def run(benches: dict[str, Family], minutes: float) -> bool:
    """The first seed of every family, then the next one; whether all has been measured."""
    end = time.monotonic() + 60 * minutes
    for seed in next(iter(benches.values())).seeds:
        for family, bench in benches.items():
            print(f"{family}, seed {seed}", file=sys.stderr)
            left = (end - time.monotonic()) / 60
            if not bench.run(lambda bench=bench, seed=seed: bench.names_of(seed), bench.measure, left):
                return False
    return True


def summary(benches: dict[str, Family]) -> dict[str, Any]:
    """Of the seeds that have been measured, family by family."""
    first = next(iter(benches.values()))
    return {
        "settings": {"steps": STEPS, "tokens": STEPS * byte_windows.BATCH * byte_windows.LENGTH, "search": SEARCH},
        "slices": byte_windows.slices(first.teacher(first.seeds[0]).tokenizer, first.test_text),
        "search": {name: first.tuning_loss(name) for name in (searched(w, lr) for w in CUTS for lr in SEARCH)},
        "summary": {name: found for name, bench in benches.items() if (found := of_family(bench))},
    }


def of_family(bench: Family) -> dict[str, Any]:
    seeds = bench.measured_seeds()
    if not seeds:
        return {}
    teacher = bench.reported([f"{seed}, teacher" for seed in seeds])
    rows: dict[str, Any] = {}
    for what in CUTS:
        before = bench.reported([f"{seed}, {what}" for seed in seeds])
        after = bench.reported([f"{seed}, {what}, routers" for seed in seeds])
        runs = bench.runs([f"{seed}, {what}, routers" for seed in seeds])
        rows[what] = {
            "cut": float(before.mean()),
            "routers": float(after.mean()),
            "by_seed": [before.mean(1).tolist(), after.mean(1).tolist()],
            "against": {"name": what} | byte_windows.against(after, before),
            "gap_closed": closed(before, after, teacher),
            "parameters": runs[0]["parameters"],
            "lr": runs[0]["lr"],
            "cpu_seconds": [run["cpu_seconds"] for run in runs],
        }
    return {"teacher": float(teacher.mean()), "seeds": seeds, "ways": rows}


def closed(before: Any, after: Any, teacher: Any) -> dict[str, float]:
    """Share of the gap in percent, with the central 95 % of a bootstrap over windows."""
    import numpy as np

    b, a, t = (values.mean(0) for values in (before, after, teacher))
    drawn = np.random.default_rng(0).integers(0, len(t), (4000, len(t)))
    shares = 100 * (b - a)[drawn].sum(1) / (b - t)[drawn].sum(1)
    low, high = np.quantile(shares, (0.025, 0.975))
    return {"value": float(100 * (b - a).sum() / (b - t).sum()), "low": float(low), "high": float(high)}


def main(kind: type[Family], script: str, text: str | None, made: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The command line of this benchmark, and of others on the same teachers."""
    import torch

    command = experiment.Command(script, text)
    command.keeps("directory of teachers and of what has been measured")
    command.add_argument("--write", action="store_true", help="only write the results of what has been measured")
    arguments = command.read()
    torch.set_num_threads(1)
    benches = families(kind, Path(arguments.work), smoke=arguments.smoke)
    if arguments.write or run(benches, arguments.minutes):
        note = "one thread, shared with other work; CPU times only"
        experiment.record(arguments.out, text, made(benches), note=note)


def heading(found: dict[str, Any]) -> list[str]:
    """The titles of the first two columns: families with their teachers, and ways."""
    teachers = (
        f"{name} {rows['teacher']:.3f} ({len(rows['seeds'])} seed{'s' if len(rows['seeds']) > 1 else ''})"
        for name, rows in found.items()
    )
    return [f"nats per byte; teachers: {', '.join(teachers)}", "way"]


def share(gap: dict[str, float] | None) -> str:
    return f"{gap['value']:.0f} % [{gap['low']:.0f}, {gap['high']:.0f}]" if gap else ""


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    found, lines = results["summary"], []
    for family, rows in found.items():
        for what, row in sorted(rows["ways"].items(), key=lambda one: one[1]["routers"]):
            against = experiment.cell(row["against"], "+.3f")
            numbers = [f"{row['cut']:.3f}", f"{row['routers']:.3f}", against, share(row["gap_closed"])]
            lines.append([family, what, *numbers])
    columns = ["cut:", "and its routers:", "difference (95 %):", "gap closed:"]
    return {"routers": experiment.table([*heading(found), *columns], lines)}


if __name__ == "__main__":
    main(Family, __file__, __doc__, summary)
