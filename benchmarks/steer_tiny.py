"""Does steering take needless checks from a tiny model that doubts itself, and do random controls as well?

    python benchmarks/steer_tiny.py --work runs/steer-tiny      # again, until all is done

Everything is made here. `recipes/steer_tiny.yaml` trains a model of 0.9 million parameters on chains whose every step
is right, and is followed by a check with probability 0.3, and every check by another with 0.6: nothing of that changes
an answer. `burnish.steer` calibrates on answers of the model's own to 120 problems, and sweeps over coefficients and
shares of heads. 200 problems choose a point, 800 others report it beside controls: random unit directions for the same
heads and gates, and as many heads drawn at random; on the 200 every cell has them. All answers are drawn at temperature
1 with the same random numbers, problem by problem. The problems are in no training data. The mode that aims at the mean
of steps that go on has a grid, a point and controls of its own on the same problems. Other gates were tried on the 200
alone. A further training, from other weights on other chains, has that mode alone: a point of its own, and one that is
the same for both, half as strong as the first training's choice.

Why it takes so little is read off the written solutions of the 200: how likely a check is after a step that goes on,
and after a check, with every step's end steered. Beside it stands what the paper does not do: the output of the last
layer's attention, moved along the difference of its own means to where it is on steps that go on, or as far again. What
random heads break is read off the same solutions: which token begins the next step, and which ones follow.

Before anything is swept: at least 90 % of the answers are right, at least one check stands in an answer, and the best
probe is above the larger class with its interval.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import experiment
import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from burnish.core.checkpoint import Model
    from burnish.steer import ReasoningTrace
    from burnish.steer.sweep import Comparison, Sweep
    from burnish.steer.vectors import LayerHeads

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "steer_tiny.yaml"
TRAINED = ("first", "doubter")
"""Nodes of the recipe; it also calibrates and tries strengths, which is done here with all that it is compared with."""
SEEDS = (0,) if experiment.SMOKE else (0, 1)
"""Trainings; the first has everything, the others the mode `mean` alone."""
CALIBRATE, TUNE, REPORT = (24, 4, 4) if experiment.SMOKE else (120, 200, 800)
"""Problems of each part."""
COEFS, TOPS = (-1.0, -4.0), (0.1, 0.38, 1.0)
TRIED = (("ungated", -1.0, 0.1), ("ungated", -1.0, 0.38), ("soft", -1.0, 0.38), ("soft", -4.0, 0.38))
"""Mode, coefficient and share of heads, on the problems that choose alone."""
WHY = (
    ("threshold", -1.0, 0.38),
    ("threshold", -4.0, 0.38),
    ("ungated", -1.0, 0.38),
    ("mean", -1.0, 0.19),
    ("mean", -2.0, 0.19),
)
MOVES = (1.0, 2.0)
"""How far the output of the last layer is moved: to the mean of steps that go on, and twice as far."""
TO_MEANS = ((-1.0, -2.0), (0.1, 0.19, 0.38))
"""Coefficients and shares of heads with the mode `mean`."""
HALF = (-1.0, 0.19)
"""Coefficient and share of heads that all trainings report, beside the point that each has chosen."""
LOSE = 0.01
LONGEST = 24 if experiment.SMOKE else 200
SMOKE_NODES = {"chain": {"number": 24}, "train": {"steps": 2, "holdout": 0.2}}


class Bench(experiment.Kept):
    """All trainings."""

    first = ("train", "calibrate", "sweep", "means", "tried", "why")
    others = ("train", "calibrate", "means")

    def __init__(self, work: Path, *, smoke: bool) -> None:
        super().__init__(work)
        self.work, self.smoke = work, smoke

    def names(self) -> list[str]:
        further = [f"{part}, {seed}" for seed in SEEDS[1:] for part in self.others]
        return [*self.first, *further]

    def measure(self, name: str) -> dict[str, Any]:
        part, _, seed = name.partition(", ")
        training = Training(self.work, int(seed or SEEDS[0]), smoke=self.smoke)
        if part == "sweep" and not self.smoke:
            training.check(self.read("calibrate"))
        return getattr(training, part)()


class Training:
    """One: itself, calibration, the sweep, that to the means of linear steps, what else was tried, and why."""

    def __init__(self, work: Path, seed: int, *, smoke: bool) -> None:
        self.work, self.seed, self.smoke = work, seed, smoke
        self.run_of_recipe, self.vectors = work / f"model-{seed}", work / f"vectors-{seed}"
        self.model = self.run_of_recipe / "nodes" / "doubter"

    def train(self) -> dict[str, Any]:
        """The recipe, from random weights."""
        start = self.work / f"model-{self.seed}-start"
        if not start.is_dir():
            tokenizer = ("--tokenizer", "bpe:257", "--data", ROOT / "src/burnish/reason/prompts")
            template = ("--chat-template", ROOT / "examples/reasoner.jinja", "--seed", self.seed)
            burnish("init", ROOT / "examples/reasoner.json", *tokenizer, *template, "-o", start)
        recipe = yaml.safe_load(RECIPE.read_text())
        recipe["nodes"] = [node for node in recipe["nodes"] if node["name"] in TRAINED]
        for node in recipe["nodes"] if self.smoke else ():
            node |= SMOKE_NODES[node["stage"]]
        for node in recipe["nodes"]:
            node["seed"] = node.get("seed", 0) + 100 * self.seed
        mine = self.work / f"model-{self.seed}.yaml"
        mine.write_text(yaml.safe_dump(recipe, sort_keys=False))
        burnish("run", mine, "--start", start, "-o", self.run_of_recipe)
        from burnish.core.checkpoint import load

        return {"parameters": load(self.model).plan().num_parameters}

    def problems(self) -> list[dict[str, Any]]:
        """Chains of the recipe's kind, no two alike and none of the training's: of calibration, tuning, reporting."""
        from burnish.data.chain import Chains, chain_rows
        from burnish.data.draws import questions_of

        kind = next(node["kind"] for node in yaml.safe_load(RECIPE.read_text())["nodes"] if node["stage"] == "chain")
        seen = questions_of(self.run_of_recipe / "nodes" / "first" / "rows.jsonl")
        kinds = Chains(**kind | {"steps": tuple(kind["steps"])})
        number = CALIBRATE + TUNE + REPORT
        return list(chain_rows(kinds, number, seed=1_000_000 + self.seed, apart_from=seen, distinct=True))

    def calibrate(self) -> dict[str, Any]:
        """As the command: answers of its own, right ones kept."""
        from burnish.data.draws import json_lines
        from burnish.steer import read_vectors

        file = self.work / f"calibrate-{self.seed}.jsonl"
        file.write_text(json_lines(iter(self.problems()[:CALIBRATE])))
        marks = ("--verifier", "chain", "--separator", ";", "--cue", "re:^W", "--think-end", "#")
        options = ("--temperature", 1, "--max-new-tokens", LONGEST, "--seed", self.seed, "--overwrite", *marks)
        if self.smoke:  # two steps of training answer nothing, so the written solutions are read
            burnish("steer", "calibrate", self.model, "--traces", file, "--force", *options, "-o", self.vectors)
        else:
            burnish("steer", "calibrate", self.model, "--problems", file, *options, "-o", self.vectors)
        vectors = read_vectors(self.vectors)
        return {"made_of": vectors.made_of, "heads": [asdict(head) for head in vectors.heads]}

    def sweep_of(self, place: str, mode: Any = "threshold") -> Sweep:
        from burnish.core.checkpoint import load
        from burnish.steer import read_vectors
        from burnish.steer.sweep import Sweep
        from burnish.verify import verifier

        return Sweep(
            load(self.model),
            read_vectors(self.vectors),
            self.problems()[CALIBRATE:],
            verifier("chain"),
            self.work / f"{place}-{self.seed}",
            mode=mode,
            tuning=TUNE / (TUNE + REPORT),
            max_new_tokens=LONGEST,
            seed=self.seed,
            batch_size=400,
        )

    def check(self, calibrated: dict[str, Any]) -> None:
        """Refuses a model on which steering says nothing."""
        from burnish.steer.sweep import PLAIN

        plain = self.sweep_of("sweep").rows([PLAIN], "tuning")[0]
        above = calibrated["heads"][0]["low"] > calibrated["made_of"]["larger_class"]
        if plain.accuracy < 0.9 or plain.checking < 1 or not above:
            sys.exit(f"no model to steer: {plain}, best probe above the larger class: {above}")

    def sweep(self) -> dict[str, Any]:
        return self.swept(self.sweep_of("sweep"), COEFS, TOPS)

    def means(self) -> dict[str, Any]:
        """As `sweep`, with the mode `mean`; and the strength that all trainings report."""
        from burnish.steer.sweep import CONTROLS, grid

        cells = self.sweep_of("means", "mean")
        found = self.swept(cells, *TO_MEANS)
        half = grid(cells.vectors, [HALF[0]], [HALF[1]], ("steered", *CONTROLS))
        return found | {"half": [plain_row(row) for row in cells.rows(half, "reporting")]}

    def swept(self, cells: Sweep, coefs: Sequence[float], tops: Sequence[float]) -> dict[str, Any]:
        """The grid and its controls on the problems that choose, the point and its controls on the others."""
        from burnish.core.progress import Progress
        from burnish.steer.sweep import CONTROLS, PLAIN, grid, sweep

        plain = cells.rows([PLAIN], "tuning")[0]
        tuned, chosen, told = sweep(cells, coefs, tops, lose=LOSE, progress=Progress())
        first = self.seed == SEEDS[0]
        controls = cells.rows(grid(cells.vectors, coefs, tops, CONTROLS), "tuning") if first else []
        return {
            "tuning": [plain_row(row) for row in [plain, *tuned, *controls]],
            "chosen": asdict(chosen.cell) if chosen else None,
            "reporting": [plain_row(row) for row in [*cells.rows([PLAIN], "reporting"), *told]],
            "counts": {row.cell.name: cells.outcome(row.cell, "reporting").counts for row in told},
        }

    def tried(self) -> dict[str, Any]:
        from burnish.steer.sweep import SteeringStrength

        rows = []
        for mode, coef, top in TRIED:
            cells = self.sweep_of(f"tried-{mode}", mode)
            rows.append({"mode": mode} | plain_row(cells.rows([SteeringStrength("steered", coef, top)], "tuning")[0]))
        return {"tuning": rows}

    def why(self) -> dict[str, Any]:
        """How likely a check is after either kind of step, on written solutions."""
        from functools import partial

        from burnish.core.checkpoint import load
        from burnish.data.draws import json_lines
        from burnish.steer import read_traces, read_vectors
        from burnish.steer.sweep import SteeringStrength, of_arm
        from burnish.verify import verifier

        model, vectors = load(self.model), read_vectors(self.vectors)
        parts = {"fit": self.problems()[:CALIBRATE], "tell": self.problems()[CALIBRATE : CALIBRATE + TUNE]}
        forced = {}
        for name, problems in parts.items():
            file = self.work / f"why-{name}-{self.seed}.jsonl"
            file.write_text(json_lines(iter(problems)))
            forced[name] = Forced(model, read_traces(file, model.tokenizer, vectors.marks, verifier("chain")).traces)
        tell, last = forced["tell"], max(forced["tell"].projections)
        rows = [{"how": "plain"} | tell.chances({})]
        for mode, coef, top in WHY:
            chosen = vectors.best(top).by_layer()
            hooks = {layer: partial(tell.steered, heads, coef, mode) for layer, heads in chosen.items()}
            rows.append({"how": f"{mode}, {coef:g}, {top:.0%} of the heads"} | tell.chances(hooks))
        random = of_arm(vectors, SteeringStrength("random heads", coef, top), self.seed).by_layer()
        hooks = {layer: partial(tell.steered, heads, coef, mode) for layer, heads in random.items()}
        rows.append({"how": f"{mode}, {coef:g}, as many random heads"} | tell.chances(hooks))
        linear, checking = forced["fit"].means(last)
        for far in MOVES:
            hook = partial(tell.moved, linear, checking - linear, far)
            rows.append({"how": f"last layer, {far:g} of the way to steps that go on"} | tell.chances({last: hook}))
        return {"rows": rows}


class Forced:
    """Written solutions in one padded batch, with the ends of their steps.

    Args:
        model: that reads them.
        traces: cut into steps.
    """

    def __init__(self, model: Model, traces: Sequence[ReasoningTrace]) -> None:
        import torch

        from burnish.steer.vectors import output_projections

        self.module, self.projections = model.module, output_projections(model.module)
        (self.check,) = model.tokenizer("W", add_special_tokens=False)["input_ids"]
        shape = (len(traces), max(len(trace.tokens) for trace in traces))
        self.ids, self.linear = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
        self.checking, self.within = self.linear.clone(), self.linear.clone()
        for row, trace in enumerate(traces):
            self.ids[row, : len(trace.tokens)] = torch.tensor(trace.tokens)
            for end, label in zip(trace.ends, trace.labels, strict=True):
                (self.linear if label > 0 else self.checking)[row, end] = True
            self.within[row, trace.ends[0] : trace.ends[-1]] = True  # what is read behind the first step
        ends = self.linear | self.checking
        self.flags, self.within = ends.flatten(), self.within & ~ends
        self.going_on = ends[:, :-1] & (self.ids[:, 1:] != self.check) & (self.ids[:, 1:] != 0)

    def steered(self, heads: LayerHeads, coef: float, mode: Any, _: Any, __: Any, output: Tensor) -> Tensor:
        from burnish.steer.maths.intervene import steered

        rows = output.flatten(0, 1)
        options: dict[str, Any] = {"targets": heads.targets, "coef": coef, "mode": mode}
        return steered(rows, heads.probes, heads.directions, self.flags, **options)[0].reshape(output.shape)

    def moved(self, mean: Tensor, along: Tensor, far: float, _: Any, __: Any, output: Tensor) -> Tensor:
        """Minus `far` times what stands along a direction beyond a mean, at the ends of steps."""
        unit = along / along.norm()
        beyond = ((output - mean) @ unit)[..., None] * unit
        return output - far * beyond * self.flags.reshape(*output.shape[:2], 1)

    def chances(self, hooks: dict[int, Any]) -> dict[str, float]:
        """Mean probability of a check after a linear and after a checking step, and shares of right tokens.

        `begins`: the token that begins a step that goes on, among those that begin no check; `follows`: all others
        behind the first step.
        """
        import torch

        with ExitStack() as stack, torch.inference_mode():
            for layer, hook in hooks.items():
                stack.callback(self.projections[layer].owner.register_forward_hook(hook).remove)
            logits = self.module(input_ids=self.ids).logits
        after = logits.softmax(-1)[..., self.check]
        likeliest, wanted = logits.argmax(-1)[:, :-1], self.ids[:, 1:]
        others = logits.index_fill(-1, torch.tensor([self.check]), -torch.inf)
        begins = (others.argmax(-1)[:, :-1] == wanted)[self.going_on]
        follows = (likeliest == wanted)[self.within[:, :-1]]
        return {
            "linear": float(after[self.linear].mean()),
            "checking": float(after[self.checking].mean()),
            "begins": float(begins.float().mean()),
            "follows": float(follows.float().mean()),
        }

    def means(self, layer: int) -> tuple[Tensor, Tensor]:
        """Of the output of a layer's attention at the ends of linear and of checking steps."""
        met: list[Tensor] = []
        self.chances({layer: lambda _, __, output: met.append(output)})
        return met[0][self.linear].mean(0), met[0][self.checking].mean(0)


def plain_row(row: Comparison) -> dict[str, Any]:
    """A row as it is kept; `lost`, `ratio` and `checks` are intervals of 95 %."""
    return json.loads(json.dumps(asdict(row)))


def burnish(*words: object) -> None:
    """A command, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "burnish", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"burnish {words[0]}: {done.stderr[-2000:]}")


def main() -> None:
    command = experiment.Command(__file__, __doc__)
    command.keeps("the model, its vectors and every cell that is finished are kept here")
    options = command.read()
    os.environ |= {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    bench = Bench(options.work, smoke=options.smoke)
    if not bench.run(bench.names, bench.measure, options.minutes):
        return
    content = {name: bench.read(name) for name in bench.names()}
    chains = [f"{TUNE} chains of seed {1_000_000 + seed}" for seed in SEEDS]
    slices = {"tuning": chains, "reporting": [f"the {REPORT} that follow each"]}
    experiment.record(options.out, __doc__, {"slices": slices, **content}, note="nothing is timed")
    for made in tables(json.loads(options.out.read_text())).values():
        print(made, end="\n\n")


def shown(one: dict[str, float], form: str) -> str:
    return experiment.cell({"mean": one["value"], "low": one["low"], "high": one["high"]}, form)


def line(row: dict[str, Any], first: str) -> list[str]:
    cell = row["cell"]
    if cell["arm"] == "plain":
        return [first, "", "", f"{row['accuracy']:.3f}", "", f"{row['tokens']:.1f}", "", f"{row['checking']:.2f}", ""]
    return [
        first,
        f"{cell['coef']:g}",
        f"{cell['top']:.0%}",
        f"{row['accuracy']:.3f}",
        shown(row["lost"], "+.3f"),
        f"{row['tokens']:.1f}",
        shown(row["ratio"], ".2f"),
        f"{row['checking']:.2f}",
        shown(row["checks"], ".2f"),
    ]


HEAD = " | coef: | heads: | accuracy: | lost (95 %): | tokens: | of plain (95 %): | checks: | of plain (95 %):"


def tables(results: dict[str, Any]) -> dict[str, str]:
    sweep, tried = results["sweep"], results["tried"]["tuning"]
    order = {"plain": 0, "steered": 1, "random directions": 2, "random heads": 3}

    def rows(part: str) -> list[tuple[str, dict[str, Any]]]:
        """Of both sweeps, the plain model once."""
        zero = sorted(sweep[part], key=lambda row: order[row["cell"]["arm"]])
        mean = sorted(results["means"][part], key=lambda row: order[row["cell"]["arm"]])
        named = [(f"{row['cell']['arm']}, mean", row) for row in mean if row["cell"]["arm"] != "plain"]
        return [*((row["cell"]["arm"], row) for row in zero), *named]

    heads = results["calibrate"]["heads"][:4]
    return {
        "reporting": experiment.table(f"vectors{HEAD}", [line(row, named) for named, row in rows("reporting")]),
        "tuning": experiment.table(
            f"vectors{HEAD}",
            [line(row, arm) for arm, row in [*rows("tuning"), *((f"steered, {row['mode']}", row) for row in tried)]],
        ),
        "trainings": trainings(results),
        "why": experiment.table(
            "at the ends of steps | check after going on: | check after a check: | checks a step that follow: | "
            "right first token of a step that goes on: | right tokens behind it:",
            [
                [
                    row["how"],
                    f"{row['linear']:.3f}",
                    f"{row['checking']:.3f}",
                    f"{row['linear'] / (1 - row['checking']):.2f}",
                    f"{row['begins']:.3f}",
                    f"{row['follows']:.3f}",
                ]
                for row in results["why"]["rows"]
            ],
        ),
        "probes": experiment.table(
            "layer: | head: | accuracy on held-out traces (95 %):",
            [[one["layer"], one["head"], shown(one | {"value": one["accuracy"]}, ".3f")] for one in heads],
        ),
    }


def trainings(results: dict[str, Any]) -> str:
    """`mean` in every training, at the point that it chose and at the one that is the same for all."""
    rows = []
    of_seeds = {"0": results["means"]} | {
        name.removeprefix("means, "): found for name, found in results.items() if name.startswith("means, ")
    }
    for seed, found in of_seeds.items():
        plain = found["reporting"][0]["accuracy"]
        for cells in (found["reporting"][1:], found["half"]):
            by_arm = {row["cell"]["arm"]: row for row in cells}
            if not by_arm:
                continue
            mine = by_arm["steered"]
            row = [seed, f"{mine['cell']['coef']:g}, {mine['cell']['top']:.0%}", f"{plain:.3f}"]
            row += [shown(mine["lost"], "+.3f"), shown(mine["ratio"], ".2f"), shown(mine["checks"], ".2f")]
            for arm in ("random directions", "random heads"):
                one = by_arm.get(arm)
                row.append(f"{one['checks']['value']:.2f}, {one['lost']['value']:+.3f}" if one else "")
            rows.append(row)
    return experiment.table(
        "training: | coef, heads: | plain accuracy: | lost (95 %): | tokens of plain (95 %): | "
        "checks of plain (95 %): | random directions, checks and lost: | random heads, checks and lost:",
        rows,
    )


if __name__ == "__main__":
    main()
