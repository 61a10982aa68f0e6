"""Do three phases teach more than the last phase alone, or than all their rows at once, at equal updates?

    python benchmarks/curriculum.py --work DIR [--tasks chains tables] [--minutes 10]     # again, until all is done

Two tasks, a Llama of 0.18 M parameters from random weights, and as many updates on every side: those of the phases
together, which end early where nine in ten held-out problems are solved, are those of its seed for the others. Solve
rates are of greedy answers to problems that nobody trained on and that ended no phase. How many updates there are was
chosen before, on other problems: so many that the last phase alone is neither at chance, which is one in ten, nor done.

    chains      of 1-2, 3-4 and 5-6 steps
    tables      digits of a grid, whose description is shown, then both, then the grid alone (`burnish data table`)
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SMOKE, Command, Kept, answer, cell, digest, over_seeds, table

ROOT = Path(__file__).resolve().parent.parent
ASKED, ROWS = (10, 60) if SMOKE else (150, 3000)
"""Held-out problems, and rows to train on, of each phase."""
SEARCH_SEED = 99
PHASES, ALONE, TOGETHER = "three phases", "last phase alone", "all rows at once"
ARMS = (PHASES, ALONE, TOGETHER)
CURRICULUM: dict[str, Any] = {"verifier": "chain", "every": 20, "guard": "mix", "fall": 0.05}


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        name: by which its cells and its tables are called.
        phases: {name: how its column is called}, in order.
        kinds: what problems of each phase are made of.
        prompts: how each shows its question; empty where as it is.
        searched: updates of the last phase alone that were tried.
        band: solve rates that are neither chance nor done.
        seeds: of the runs.
        context: tokens of a row.
        longest: tokens of an answer.
    """

    name: str
    phases: Mapping[str, str]
    kinds: Mapping[str, Any]
    prompts: Mapping[str, str]
    searched: tuple[int, ...]
    band: tuple[float, float]
    seeds: tuple[int, ...]
    context: int
    longest: int

    @property
    def last(self) -> str:
        return list(self.phases)[-1]

    @property
    def train(self) -> dict[str, Any]:
        return {"context": self.context, "batch": 16, "lr": 0.01, "schedule": "constant"}

    def asked(self, phase: str, seed: int, *, watched: bool = False) -> list[dict[str, Any]]:
        """Problems of one phase to report on, or others by which the curriculum is watched."""
        found = self.drawn(phase, 2 * ASKED, seed=10_000 + seed, distinct=True)
        return found[ASKED:] if watched else found[:ASKED]

    def rows(self, phase: str, seed: int) -> list[dict[str, Any]]:
        """Rows of one phase to train on, apart from both."""
        apart = {row["question"] for watched in (False, True) for row in self.asked(phase, seed, watched=watched)}
        return self.drawn(phase, ROWS, seed=seed, apart_from=apart)

    def drawn(self, phase: str, number: int, **how: Any) -> list[dict[str, Any]]:
        from burnish.data.chain import Chains, chain_rows
        from burnish.data.table import table_rows

        kind = self.kinds[phase]
        return list((chain_rows if isinstance(kind, Chains) else table_rows)(kind, number, **how))

    def shown(self, phase: str, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows with the question as a phase shows it."""
        from burnish.curriculum.held_out import shown
        from burnish.curriculum.phase import Phase

        given = Phase(name=phase, prompt=self.prompts.get(phase))
        return [shown(given, row, where=self.name) for row in rows]


def tasks() -> dict[str, Task]:
    from burnish.data.chain import Chains
    from burnish.data.table import Tables

    lengths = {"short": (1, 2), "middle": (3, 4), "long": (5, 6)}
    chains = Task(
        name="chains",
        phases={name: f"{low}-{high} steps" for name, (low, high) in lengths.items()},
        kinds={name: Chains(steps=steps, repeat=0.0, direct=0.0) for name, steps in lengths.items()},
        prompts={},
        searched=(4, 6) if SMOKE else (150, 300, 500),
        band=(0.0, 1.0) if SMOKE else (0.2, 0.8),
        seeds=(0, 1) if SMOKE else (0, 1, 2),
        context=96,
        longest=80,
    )
    prompts = {
        "description": "{description}?{asked}",
        "both": "{grid}/{description}?{asked}",
        "grid": "{grid}?{asked}",
    }
    tables = Task(
        name="tables",
        phases={"description": "description", "both": "grid and description", "grid": "grid alone"},
        kinds=dict.fromkeys(prompts, Tables(rows=2, columns=2)),
        prompts=prompts,
        searched=(4, 6) if SMOKE else (150, 225, 300, 450),
        band=(0.0, 1.0) if SMOKE else (0.2, 0.8),
        seeds=(0, 1) if SMOKE else (0, 1, 2, 3, 4),
        context=64,
        longest=40,
    )
    return {one.name: one for one in (chains, tables)}


class Bench(Kept):
    """The start and what has been measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments.work)
        self.tasks, self.chosen = tasks(), arguments.tasks

    @cached_property
    def start(self) -> Any:
        from burnish.train.scratch import initialise

        return initialise(
            ROOT / "examples" / "reasoner_small.json",
            tokenizer="bpe:257",
            texts=["none is needed for single bytes"],
            chat_template=(ROOT / "examples" / "reasoner.jinja").read_text(),
            seed=0,
        )

    def names(self) -> Iterable[str]:
        for name in self.chosen:
            yield from self.names_of(self.tasks[name])

    def names_of(self, task: Task) -> Iterable[str]:
        yield from (f"{task.name}, searched {updates}" for updates in task.searched)
        yield from (of_seed(task, arm, seed) for seed in task.seeds for arm in ARMS)

    @property
    def whole(self) -> list[Task]:
        """Those of which all is measured."""
        return [task for task in self.tasks.values() if all(map(self.has, self.names_of(task)))]

    def measure(self, name: str) -> dict[str, Any]:
        first, what, *rest = name.split(", ")
        task = self.tasks[first]
        if not rest:
            return self.trained(task, SEARCH_SEED, [task.last], int(what.split()[1]))
        seed = int(rest[0].split()[1])
        if what == PHASES:
            return self.taught(task, seed)
        updates = self.read(of_seed(task, PHASES, seed))["updates"]
        return self.trained(task, seed, [task.last] if what == ALONE else list(task.phases), updates)

    def updates(self, task: Task) -> int:
        """The first that was tried after which the last phase alone is neither at chance nor done."""
        low, high = task.band
        found = {
            each: np.mean(self.read(f"{task.name}, searched {each}")["right"][task.last]) for each in task.searched
        }
        return next(each for each, share in found.items() if low <= share <= high)

    def taught(self, task: Task, seed: int) -> dict[str, Any]:
        """By phases, of a third of the updates each at most."""
        from burnish import Curriculum
        from burnish.core.ledger import Ledger
        from burnish.core.progress import Progress
        from burnish.core.stage import Context, seeded_generator
        from burnish.data.draws import json_lines

        with tempfile.TemporaryDirectory() as scratch:
            phases = []
            for name in task.phases:
                phase: dict[str, Any] = {"name": name, "steps": self.updates(task) // 3, "until": {"solve_rate": 0.9}}
                phase |= {"prompt": task.prompts[name]} if name in task.prompts else {}
                for what, rows in (("data", task.rows(name, seed)), ("held_out", task.asked(name, seed, watched=True))):
                    phase[what] = str(Path(scratch) / f"{name}-{what}.jsonl")
                    Path(phase[what]).write_text(json_lines(iter(rows)))
                phases.append(phase)
            phases[-1]["until"] = {}
            given = {"phases": phases, "train": task.train, "seed": seed, "held_out_rows": ASKED}
            given |= {"max_new_tokens": task.longest}
            stage, ledger = Curriculum.parse(CURRICULUM | given, where="the benchmark"), Ledger(None)
            inputs = {place: value for place, _, value in stage.named()}
            work, progress = Path(scratch) / "work", Progress(enabled=False)
            ctx = Context(inputs, work, "cpu", seeded_generator(seed), progress, ledger)
            model = stage.run(self.start, ctx)
        tables = {row["name"]: row["rows"] for row in ledger.rows if row["row"] == "table"}
        looks = tables["held out"]
        best = {name: max(row["value"] for row in looks if row["held_out"] == name) for name in task.phases}
        said = {"phases": tables["phases"], "best": best, "updates": tables["phases"][-1]["to_step"]}
        return (
            said
            | {"looks": [[row["at_step"], row["held_out"], row["value"]] for row in looks]}
            | self.asked(task, model, seed)
        )

    def trained(self, task: Task, seed: int, phases: list[str], updates: int) -> dict[str, Any]:
        """On the rows of some phases, as many of each."""
        from burnish import Train

        rows = [{"messages": row["messages"]} for name in phases for row in task.shown(name, task.rows(name, seed))]
        model = Train(**task.train, steps=updates, seed=seed)(self.start, data=rows)
        return {"updates": updates} | self.asked(task, model, seed)

    def asked(self, task: Task, model: Any, seed: int) -> dict[str, Any]:
        """Which problems of every phase are solved."""
        from burnish.generate import generate
        from burnish.generate.problems import is_right, prompt_of
        from burnish.verify import verifier

        grader, found = verifier("chain"), dict[str, list[int]]()
        for name in task.phases:
            problems = task.shown(name, task.asked(name, seed))
            prompts = [prompt_of(model.tokenizer, grader, problem) for problem in problems]
            ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
            samples = generate(model.module, model.tokenizer, ids, max_new_tokens=task.longest, temperature=0.0)
            found[name] = [int(is_right(one, grader, row)) for one, row in zip(samples, problems, strict=True)]
        return {"right": found}


def of_seed(task: Task, arm: str, seed: int) -> str:
    return f"{task.name}, {arm}, seed {seed}"


def main() -> None:
    command = Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--tasks", nargs="+", choices=list(tasks()), default=list(tasks()), help="which to measure")
    arguments = command.read()
    bench = Bench(arguments)
    answer(bench, arguments, __doc__, lambda: content(bench), tables)


def content(bench: Bench) -> dict[str, Any]:
    """Of the tasks of which all is measured."""
    slices: dict[str, list[str]] = {"tuning": [], "reporting": []}
    for task in bench.whole:
        searched = [row["question"] for row in task.asked(task.last, SEARCH_SEED)]
        slices["tuning"].append(digest("\n".join(sorted(searched))))
        for seed in task.seeds:
            questions = [row["question"] for name in task.phases for row in task.asked(name, seed)]
            slices["reporting"].append(digest("\n".join(sorted(questions))))
    return {
        "slices": slices,
        "settings": {"curriculum": CURRICULUM, "asked": ASKED, "rows": ROWS},
        "tasks": {
            task.name: {"train": task.train, "updates": bench.updates(task), "seeds": task.seeds, "phases": task.phases}
            for task in bench.whole
        },
        "cells": {name: bench.read(name) for task in bench.whole for name in bench.names_of(task)},
    }


# -- tables --------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    found = {}
    for name, task in results["tasks"].items():
        cells = {
            key.removeprefix(f"{name}, "): one for key, one in results["cells"].items() if key.startswith(f"{name}, ")
        }
        for kind, make in (("arms", _arms), ("guard", _guard), ("search", _search)):
            found[f"{name}_{kind}"] = make(task["phases"], task["seeds"], cells)
    return found


def _arms(phases: dict[str, str], seeds: list[int], cells: dict[str, Any]) -> str:
    rows, (last, title) = [], list(phases.items())[-1]
    solved = {arm: [np.mean(cells[f"{arm}, seed {seed}"]["right"][last]) for seed in seeds] for arm in ARMS}
    for arm in ARMS:
        of_seeds = [cells[f"{arm}, seed {seed}"] for seed in seeds]
        shares = [", ".join(f"{np.mean(one['right'][name]):.2f}" for one in of_seeds) for name in phases]
        points = 100 * (np.array(solved[PHASES]) - np.array(solved[arm]))
        against = "" if arm == PHASES or len(seeds) < 2 else cell(over_seeds(points), "+.0f")
        rows.append([arm, ", ".join(str(one["updates"]) for one in of_seeds), *shares, against])
    titles = " | ".join(f"{one}, solved:" for one in phases.values())
    return table(f"of each seed | updates: | {titles} | phases against it, {title}, points (95 %):", rows)


def _guard(phases: dict[str, str], seeds: list[int], cells: dict[str, Any]) -> str:
    """Of the problems by which the phases were watched."""
    rows = []
    for seed in seeds:
        one = cells[f"{PHASES}, seed {seed}"]
        last = {name: value for _, name, value in one["looks"]}
        spoke = [f"{row['phase']}, step {row['mixed_from']}" for row in one["phases"] if row["mixed_from"] is not None]
        ends = ", ".join(str(row["to_step"]) for row in one["phases"])
        best = [f"{one['best'][name]:.2f}, {last[name]:.2f}" for name in list(phases)[:-1]]
        rows.append([seed, ends, *best, "; ".join(spoke) or "never"])
    names = " | ".join(f"{title}, best and last:" for title in list(phases.values())[:-1])
    return table(f"seed | phases ended after: | {names} | the guard spoke in", rows)


def _search(phases: dict[str, str], seeds: list[int], cells: dict[str, Any]) -> str:
    last, title = list(phases.items())[-1]
    found = [one for name, one in cells.items() if name.startswith("searched")]
    rows = [[one["updates"], f"{np.mean(one['right'][last]):.2f}"] for one in found]
    return table(f"updates of the last phase alone: | {title}, solved:", rows)


if __name__ == "__main__":
    main()
