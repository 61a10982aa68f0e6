"""Do three phases of growing length teach more than the last phase alone, or than all rows at once?

    python benchmarks/curriculum.py --work DIR [--minutes 10]          # again, until all is done

Chains of 1-2, 3-4 and 5-6 steps, a Llama of 0.18 M parameters from random weights, and as many updates on every side:
those of the phases together, which end early where nine in ten held-out problems are solved, are those of its seed for
the others. Solve rates are of greedy answers to problems that nobody trained on and that ended no phase. How many
updates there are was chosen before, on other problems: so many that the last phase alone is neither at chance, which is
one in ten, nor done.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SMOKE, Command, Kept, answer, cell, digest, over_seeds, table

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = {"short": (1, 2), "middle": (3, 4), "long": (5, 6)}
ASKED, ROWS = (10, 60) if SMOKE else (150, 3000)
"""Held-out problems, and rows to train on, of each length."""
SEEDS = (0, 1, 2)
SEARCH_SEED = 99
SEARCHED = (4, 6) if SMOKE else (150, 300, 500)
"""Updates of the last phase alone that were tried."""
CHANCE, DONE = (0.0, 1.0) if SMOKE else (0.2, 0.8)
TRAIN: dict[str, Any] = {"context": 96, "batch": 16, "lr": 0.01, "schedule": "constant"}
CURRICULUM: dict[str, Any] = {"verifier": "chain", "max_new_tokens": 80, "every": 20, "guard": "mix", "fall": 0.05}
PHASES, ALONE, TOGETHER = "three phases", "last phase alone", "all rows at once"
ARMS = (PHASES, ALONE, TOGETHER)


class Bench(Kept):
    """The start, the chains and what has been measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from burnish.train.scratch import initialise

        super().__init__(arguments.work)
        self.seeds = tuple(arguments.seeds)
        self.start = initialise(
            ROOT / "examples" / "reasoner_small.json",
            tokenizer="bpe:257",
            texts=["none is needed for single bytes"],
            chat_template=(ROOT / "examples" / "reasoner.jinja").read_text(),
            seed=0,
        )

    def names(self) -> Iterable[str]:
        yield from (f"searched {updates}" for updates in SEARCHED)
        for seed in self.seeds:
            yield from (f"{arm}, seed {seed}" for arm in ARMS)

    def measure(self, name: str) -> dict[str, Any]:
        if name.startswith("searched"):
            return self.trained(SEARCH_SEED, ["long"], int(name.split()[1]))
        arm, _, seed = name.rpartition(", seed ")
        if arm == PHASES:
            return self.taught(int(seed))
        updates = self.read(f"{PHASES}, seed {seed}")["updates"]
        return self.trained(int(seed), ["long"] if arm == ALONE else list(LENGTHS), updates)

    def updates(self) -> int:
        """The first that was tried after which the last phase alone is neither at chance nor done."""
        found = {each: np.mean(self.read(f"searched {each}")["right"]["long"]) for each in SEARCHED}
        return next(each for each, share in found.items() if CHANCE <= share <= DONE)

    def taught(self, seed: int) -> dict[str, Any]:
        """By phases, of a third of the updates each at most."""
        from burnish import Curriculum
        from burnish.core.ledger import Ledger
        from burnish.core.progress import Progress
        from burnish.core.stage import Context, seeded_generator
        from burnish.data.draws import json_lines

        with tempfile.TemporaryDirectory() as scratch:
            phases = []
            for name in LENGTHS:
                phase: dict[str, Any] = {"name": name, "steps": self.updates() // 3, "until": {"solve_rate": 0.9}}
                for what, rows in (("data", rows_of(name, seed)), ("held_out", asked(name, seed, watched=True))):
                    phase[what] = str(Path(scratch) / f"{name}-{what}.jsonl")
                    Path(phase[what]).write_text(json_lines(iter(rows)))
                phases.append(phase)
            phases[-1]["until"] = {}  # what earlier phases leave, the last one takes
            given = {"phases": phases, "train": TRAIN, "seed": seed, "held_out_rows": ASKED}
            stage, ledger = Curriculum.parse(CURRICULUM | given, where="the benchmark"), Ledger(None)
            inputs = {place: value for place, _, value in stage.named()}
            work, progress = Path(scratch) / "work", Progress(enabled=False)
            ctx = Context(inputs, work, "cpu", seeded_generator(seed), progress, ledger)
            model = stage.run(self.start, ctx)
        tables = {row["name"]: row["rows"] for row in ledger.rows if row["row"] == "table"}
        looks = tables["held out"]
        best = {name: max(row["value"] for row in looks if row["held_out"] == name) for name in LENGTHS}
        said = {"phases": tables["phases"], "best": best, "updates": tables["phases"][-1]["to_step"]}
        return (
            said
            | {"looks": [[row["at_step"], row["held_out"], row["value"]] for row in looks]}
            | self.asked(model, seed)
        )

    def trained(self, seed: int, lengths: list[str], updates: int) -> dict[str, Any]:
        """On the rows of some lengths, as many of each."""
        from burnish import Train

        rows = [{"messages": row["messages"]} for name in lengths for row in rows_of(name, seed)]
        model = Train(**TRAIN, steps=updates, seed=seed)(self.start, data=rows)
        return {"updates": updates} | self.asked(model, seed)

    def asked(self, model: Any, seed: int) -> dict[str, Any]:
        """Which problems of every length are solved."""
        from burnish.generate import generate
        from burnish.generate.problems import is_right, prompt_of
        from burnish.verify import verifier

        grader, found = verifier("chain"), dict[str, list[int]]()
        for name in LENGTHS:
            problems = asked(name, seed)
            prompts = [prompt_of(model.tokenizer, grader, problem) for problem in problems]
            ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
            samples = generate(model.module, model.tokenizer, ids, max_new_tokens=80, temperature=0.0)
            found[name] = [int(is_right(one, grader, row)) for one, row in zip(samples, problems, strict=True)]
        return {"right": found}


def asked(name: str, seed: int, *, watched: bool = False) -> list[dict[str, Any]]:
    """Problems of one length to report on, or others by which the curriculum is watched."""
    from burnish.data.chain import chain_rows

    found = list(chain_rows(kind(name), 2 * ASKED, seed=10_000 + seed, distinct=True))
    return found[ASKED:] if watched else found[:ASKED]


def rows_of(name: str, seed: int) -> list[dict[str, Any]]:
    """Rows of one length to train on, apart from both."""
    from burnish.data.chain import chain_rows

    apart = {row["question"] for watched in (False, True) for row in asked(name, seed, watched=watched)}
    return list(chain_rows(kind(name), ROWS, seed=seed, apart_from=apart))


def kind(name: str) -> Any:
    from burnish.data.chain import Chains

    return Chains(steps=LENGTHS[name], repeat=0.0, direct=0.0)


def main() -> None:
    command = Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="which")
    arguments = command.read()
    bench = Bench(arguments)
    answer(bench, arguments, __doc__, lambda: content(bench), tables)


def content(bench: Bench) -> dict[str, Any]:
    questions = {seed: sorted(row["question"] for name in LENGTHS for row in asked(name, seed)) for seed in bench.seeds}
    tuned = sorted(row["question"] for row in asked("long", SEARCH_SEED))
    return {
        "slices": {
            "tuning": [digest("\n".join(tuned))],
            "reporting": [digest("\n".join(questions[seed])) for seed in bench.seeds],
        },
        "settings": {
            "train": TRAIN,
            "curriculum": CURRICULUM,
            "updates": bench.updates(),
            "asked": ASKED,
            "rows": ROWS,
        },
        "seeds": list(bench.seeds),
        "cells": {name: bench.read(name) for name in bench.names()},
    }


# -- tables --------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    return {"arms": _arms(results), "guard": _guard(results), "search": _search(results)}


def _arms(results: dict[str, Any]) -> str:
    cells, seeds, rows = results["cells"], results["seeds"], []
    last = {arm: [np.mean(cells[f"{arm}, seed {seed}"]["right"]["long"]) for seed in seeds] for arm in ARMS}
    for arm in ARMS:
        of_seeds = [cells[f"{arm}, seed {seed}"] for seed in seeds]
        shares = [", ".join(f"{np.mean(one['right'][name]):.2f}" for one in of_seeds) for name in LENGTHS]
        points = 100 * (np.array(last[PHASES]) - np.array(last[arm]))
        against = "" if arm == PHASES or len(seeds) < 2 else cell(over_seeds(points), "+.0f")
        rows.append([arm, ", ".join(str(one["updates"]) for one in of_seeds), *shares, against])
    titles = " | ".join(f"{low}-{high} steps, solved:" for low, high in LENGTHS.values())
    return table(f"of each seed | updates: | {titles} | phases against it, 5-6 steps, points (95 %):", rows)


def _guard(results: dict[str, Any]) -> str:
    """Of the problems by which the phases were watched."""
    rows = []
    for seed in results["seeds"]:
        one = results["cells"][f"{PHASES}, seed {seed}"]
        last = {name: value for _, name, value in one["looks"]}
        spoke = [f"{row['phase']}, step {row['mixed_from']}" for row in one["phases"] if row["mixed_from"] is not None]
        ends = ", ".join(str(row["to_step"]) for row in one["phases"])
        cells = [f"{one['best'][name]:.2f}, {last[name]:.2f}" for name in list(LENGTHS)[:-1]]
        rows.append([seed, ends, *cells, "; ".join(spoke) or "never"])
    names = " | ".join(f"{low}-{high} steps, best and last:" for low, high in list(LENGTHS.values())[:-1])
    return table(f"seed | phases ended after: | {names} | the guard spoke in", rows)


def _search(results: dict[str, Any]) -> str:
    found = {name: one for name, one in results["cells"].items() if name.startswith("searched")}
    rows = [[one["updates"], f"{np.mean(one['right']['long']):.2f}"] for one in found.values()]
    return table("updates of the last phase alone: | 5-6 steps, solved:", rows)


if __name__ == "__main__":
    main()
