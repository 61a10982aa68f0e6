"""Where in a prompt does SmolLM2 find what it is asked for, and what do the three slips of harnesses cost its scores?

    python benchmarks/ruler.py --work DIR [--minutes 10]          # again, until all is done

SmolLM2-135M-Instruct on four tasks of RULER in 512 tokens (vt in 1,024), needles at five depths; then, on the first of
the same prompts, with the chat template written twice, with two beginning tokens, and without the answer prefix.
Nothing is chosen.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SMOKE, Command, Kept, answer, cell, digest, table

ROOT = Path(__file__).resolve().parent.parent
MODEL = "models/smollm2"
TASKS = {"niah_single_1": ("512", 10), "fwe": ("512", 6), "niah_multikey_2": ("512", 10), "vt": ("1k", 6)}
"""Lengths and samples: a needle is asked for at every depth, and vt begins with a worked example of some 400 tokens."""
SLIPPED = ("fwe",)
SLIPS = ("template", "bos", "prefix")
DEPTHS = 2 if SMOKE else 5


class Bench(Kept):
    """What has been measured, and answers of the measurement that was stopped."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments.work)
        self.work: Path = arguments.work

    def names(self) -> Iterable[str]:
        yield from (f"{task} by depth" for task in TASKS)
        yield from (f"{task} with {slip}" for task in SLIPPED for slip in SLIPS)

    @cached_property
    def model(self) -> Any:
        from burnish.core.checkpoint import load

        return load(ROOT / MODEL)

    def measure(self, name: str) -> dict[str, Any]:
        if name.endswith(" by depth"):
            return self.answered(name.removesuffix(" by depth"), {})
        task, _, slip = name.partition(" with ")
        return self.answered(task, {"slip": slip})

    def answered(self, task: str, asks: dict[str, Any]) -> dict[str, Any]:
        """Scores of a task, in all and by depth."""
        from burnish.core.store import Store
        from burnish.evaluate.ruler.measure import measure_ruler
        from burnish.evaluate.ruler.settings import RulerMeasurement

        length, samples = TASKS[task]
        own = {"lengths": length, "samples": 2 if SMOKE else samples, "depths": DEPTHS} | asks
        settings = RulerMeasurement.parse(own, where="the benchmark")
        found = measure_ruler(settings, self.model, [task], store=Store(self.work / "answers"))
        ((_, each),) = ((name, each) for name, each in found.evaluation.sequences.items() if name != "sample")
        return {
            "score": found.tables["ruler_scores"][0],
            "depths": found.tables["ruler_depths"],
            "each": each,
            "prompts": found.evaluation.protocol["prompts"],
        }


def main() -> None:
    command = Command(__file__, __doc__)
    command.keeps()
    arguments = command.read()
    bench = Bench(arguments)
    answer(bench, arguments, __doc__, lambda: content(bench), tables)


def content(bench: Bench) -> dict[str, Any]:
    cells = {name: bench.read(name) for name in bench.names()}
    prompts = sorted({one.pop("prompts") for one in cells.values()})
    return {
        "slices": {"tuning": [digest("nothing is chosen")], "reporting": prompts},
        "model": MODEL,
        "tasks": {task: {"tokens": length, "samples": samples} for task, (length, samples) in TASKS.items()},
        "cells": cells,
    }


# -- tables --------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    return {"depths": _depths(results["cells"]), "slips": _slips(results["cells"])}


def _share(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")


def _depths(cells: dict[str, Any]) -> str:
    titles, rows = [], []
    for task in TASKS:
        one = cells[f"{task} by depth"]
        score = one["score"]
        titles = titles or [f"{row['depth']:.0%}:".replace("%", " %") for row in one["depths"]]
        row = [f"`{task}`", _share(score, "score"), *(f"{row['score']:.2f}" for row in one["depths"])]
        if one["depths"]:
            row += [_share(score, "spread"), f"{score['spread_by_chance']:.2f} (p {score['p_value']:.2f})"]
        rows.append(row + [""] * (len(titles) + 4 - len(row)))
    return table(["task", "score (95 %):", *titles, "spread (95 %):", "by chance:"], rows)


def _slips(cells: dict[str, Any]) -> str:
    """Differences are paired by sample."""
    from burnish.core.statistics import paired_interval

    rows = []
    for task in SLIPPED:
        row, right = [f"`{task}`"], np.array(cells[f"{task} by depth"]["each"])
        for slip in SLIPS:
            each = np.array(cells[f"{task} with {slip}"]["each"])
            own = right[: len(each)]
            row = row if row[1:] else [*row, len(each), f"{own.mean():.2f}"]
            row.append(f"{each.mean():.2f}: {cell(paired_interval(each, own), '+.2f')}")
        rows.append(row)
    titles = "task | samples: | as it should be: | template twice, against that (95 %): "
    titles += "| beginning twice: | no answer prefix:"
    return table(titles, rows)


if __name__ == "__main__":
    main()
