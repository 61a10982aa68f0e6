"""What do mechanisms of sparse attention lose on key-value retrieval, by the answer alone and by the question as well?

    python benchmarks/sparse_attention.py --work DIR [--minutes 10]          # again, until all is done

The parent of `benchmarks/long_context.py` (the same DIR) is asked for pairs in haystacks as long as those of its
training, dense and by seven mechanisms, in protocols A and B. No setting is chosen on anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import numpy as np
from experiment import SMOKE, Command, Kept, answer, digest, table
from long_context import BOTH, PARENT, PHASES, retrieval
from long_context import Bench as LongContext

MECHANISMS = (
    "topk:0.1",
    "sink:1+local:4",
    "sink:1+local:4+quest:0.1,page=4",
    "sink:1+local:4+doublesparsity:0.1,channels=4",
    "sink:1+local:4+magicpig:16,bits=4",
    "sink:1+snapkv:0.25,window=4,pool=3",
    "sink:1+local:4+random:0.1",
)
DEPTHS, SAMPLES = (2, 2) if SMOKE else (8, 12)
DENSE = "dense"


class Bench(Kept):
    """The parent, and what has been measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments.work)
        self.training = LongContext(arguments)

    def names(self) -> Iterable[str]:
        yield from ("parent", DENSE)
        for protocol in ("B", "A"):
            yield from (f"{number} by {protocol}" for number in range(len(MECHANISMS)))

    def measure(self, name: str) -> dict[str, Any]:
        if name == "parent":
            return self.training.taught()
        if name == DENSE:
            return self.answered(None, "B")
        number, protocol = name.split(" by ")
        return self.answered(MECHANISMS[int(number)], protocol)

    def answered(self, attention: str | None, protocol: str) -> dict[str, Any]:
        """Scores by depth, and what was read."""
        from burnish.evaluate.ruler.measure import measure_ruler
        from burnish.evaluate.ruler.settings import RulerMeasurement

        asks = {"lengths": str(retrieval.SHORT + 5), "samples": SAMPLES, "depths": DEPTHS, "template": "none"}
        if attention is not None:
            asks |= {"attention": attention, "attention_protocol": protocol}
        found = measure_ruler(RulerMeasurement.parse(asks, where="the benchmark"), self.training.parent(), ["letters"])
        (scores,) = found.tables["ruler_scores"]
        (costs,) = found.tables["sparse_attention"] or [{}]
        return {"score": scores, "cost": costs, "prompts": found.evaluation.protocol["prompts"]}


def main() -> None:
    command = Command(__file__, __doc__)
    command.keeps()
    command.set_defaults(seeds=(0,))
    arguments = command.read()
    bench = Bench(arguments)
    answer(bench, arguments, __doc__, lambda: content(bench), tables)


def content(bench: Bench) -> dict[str, Any]:
    cells = {name: bench.read(name) for name in bench.names() if name != "parent"}
    retrieved = np.mean(bench.read("parent")["short"])
    return {
        "slices": {"tuning": [digest("nothing is chosen")], "reporting": [cells[DENSE].pop("prompts")]},
        "parent": {"retrieved": float(retrieved), "training": PARENT | BOTH | {"phases": PHASES}},
        "mechanisms": list(MECHANISMS),
        "depths": DEPTHS,
        "samples": SAMPLES,
        "cells": {name: {part: one[part] for part in ("score", "cost")} for name, one in cells.items()},
    }


# -- tables --------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    cells = results["cells"]

    def score(name: str) -> str:
        row = cells[name]["score"]
        return f"{row['score']:.2f} ({row['score_low']:.2f} to {row['score_high']:.2f})"

    rows = [[DENSE, "1.00", "1.00", "1.00", "0", score(DENSE), score(DENSE)]]
    for number, mechanism in enumerate(results["mechanisms"]):
        cost = cells[f"{number} by B"]["cost"]
        costs = [f"{cost[name]:.2f}" for name in ("density", "read_share", "mass_recall", "output_error")]
        rows.append([f"`{mechanism}`", *costs, score(f"{number} by B"), score(f"{number} by A")])
    titles = "attention | density: | bytes: | kept: | off by: | found, protocol B (95 %): | protocol A (95 %):"
    return {"mechanisms": table(titles, rows)}


if __name__ == "__main__":
    main()
