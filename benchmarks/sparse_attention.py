"""What do mechanisms of sparse attention lose on key-value retrieval, by the answer alone and by the question as well?

    python benchmarks/sparse_attention.py --work DIR [--minutes 10]          # again, until all is done

The parent of `benchmarks/long_context.py` (the same DIR) is asked for pairs in haystacks as long as those of its
training, dense and by seven mechanisms, in protocols A and B. SmolLM2-135M-Instruct is asked in 512 tokens for what
it finds at least three times in ten densely (`benchmarks/ruler.py` says which tasks; its prompts are others), at five
depths in turn, dense and by five mechanisms of nearly one density. No setting is chosen on a score.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SMOKE, Command, Kept, answer, cell, digest, table
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
PROTOCOLS = ("B", "A")
SMOLLM2 = Path(__file__).resolve().parent.parent / "models" / "smollm2"
TASKS = ("niah_single_1", "niah_multikey_2")[: 1 if SMOKE else None]
AT_LENGTH = (
    "topk:0.1",
    "sink:4+local:64",
    "sink:4+local:32+quest:0.1,page=16",
    "sink:4+local:32+doublesparsity:0.1,channels=8",
    "sink:4+snapkv:0.15",
)[: 2 if SMOKE else None]
LAST_QUERIES = 32
"""That SnapKV looks at; what stands before them is read once for all mechanisms."""
MOST = 32
"""Tokens of an answer, where RULER gives needles 128: a number of seven digits needs ten."""
PLACES = 5
PROMPTS = 1 if SMOKE else 30
LENGTH = 512


class Bench(Kept):
    """The parent, and what has been measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments.work)
        self.training = LongContext(arguments)

    def names(self) -> Iterable[str]:
        yield from ("parent", DENSE)
        for protocol in PROTOCOLS:
            yield from (f"{number} by {protocol}" for number in range(len(MECHANISMS)))
        yield from (f"{task}, prompt {number}" for number in range(PROMPTS) for task in TASKS)

    def measure(self, name: str) -> dict[str, Any]:
        if name == "parent":
            return self.training.taught()
        if name == DENSE:
            return self.answered(None, "B")
        if ", prompt " in name:
            task, _, number = name.partition(", prompt ")
            return self.at_length(task, int(number))
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

    @cached_property
    def smollm2(self) -> Any:
        from burnish.core.checkpoint import load

        return load(SMOLLM2)

    @cached_property
    def answering(self) -> dict[str, Any]:
        """What answers for SmolLM2, dense and by every mechanism in both protocols."""
        import torch

        from burnish.evaluate.measure import network
        from burnish.evaluate.ruler.answering import RulerAnswering
        from burnish.evaluate.ruler.settings import RulerMeasurement

        asks: dict[str, dict[str, Any]] = {DENSE: {}}
        for number, mechanism in enumerate(AT_LENGTH):
            for protocol in PROTOCOLS:
                asks[f"{number} by {protocol}"] = {"attention": mechanism, "attention_protocol": protocol}
        module = network(self.smollm2, dtype=torch.float32, device="cpu")
        settings = {name: RulerMeasurement.parse(one, where="the benchmark") for name, one in asks.items()}
        return {name: RulerAnswering(module, self.smollm2.tokenizer, one) for name, one in settings.items()}

    def at_length(self, name: str, number: int) -> dict[str, Any]:
        """One prompt of a task, its context read once and answered by all."""
        from burnish.evaluate.ruler.measure import fitted
        from burnish.evaluate.ruler.prompt import context_tokens
        from burnish.evaluate.ruler.tasks import TASKS as ALL
        from burnish.verify.ruler import share_found

        task, tokenizer, template = ALL[name], self.smollm2.tokenizer, self.answering[DENSE].template
        depth, seed = number % PLACES / (PLACES - 1), f"sparse/{name}/{number}"
        ((prompt, ids),) = fitted(tokenizer, task, LENGTH, [depth], template, seed)
        read = self.answering[DENSE].read(ids[: context_tokens(tokenizer, prompt, template) - LAST_QUERIES])
        found = {}
        for way, answering in self.answering.items():
            said = answering(prompt, ids, min(MOST, task.num_generated), read)
            found[way] = {"score": share_found(said.text, prompt.answers), "cost": said.cost}
        return {"tokens": len(ids), "prompt": digest(prompt.text), "answers": found}


def main() -> None:
    command = Command(__file__, __doc__)
    command.keeps()
    command.set_defaults(seeds=(0,))
    arguments = command.read()
    bench = Bench(arguments)
    answer(bench, arguments, __doc__, lambda: content(bench), tables)


def content(bench: Bench) -> dict[str, Any]:
    cells = {name: bench.read(name) for name in bench.names() if name != "parent" and ", prompt " not in name}
    at_length = {task: [bench.read(f"{task}, prompt {number}") for number in range(PROMPTS)] for task in TASKS}
    retrieved = np.mean(bench.read("parent")["short"])
    return {
        "slices": {
            "tuning": [digest("nothing is chosen")],
            "reporting": [cells[DENSE].pop("prompts"), *(one["prompt"] for each in at_length.values() for one in each)],
        },
        "parent": {"retrieved": float(retrieved), "training": PARENT | BOTH | {"phases": PHASES}},
        "mechanisms": list(MECHANISMS),
        "depths": DEPTHS,
        "samples": SAMPLES,
        "cells": {name: {part: one[part] for part in ("score", "cost")} for name, one in cells.items()},
        "at_length": {
            "model": f"models/{SMOLLM2.name}",
            "mechanisms": list(AT_LENGTH),
            "tokens": LENGTH,
            "tasks": {task: summed(each) for task, each in at_length.items()},
        },
    }


def summed(each: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores of every prompt, and mean costs, of every way to answer."""
    from burnish.evaluate.sparse.tables import cost_row

    ways = {way: [one["answers"][way] for one in each] for way in each[0]["answers"]}
    return {
        way: {"scores": [one["score"] for one in found], "cost": cost_row([one["cost"] for one in found])}
        for way, found in ways.items()
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
    return {"mechanisms": table(titles, rows), "at_length": _at_length(results["at_length"])}


def _at_length(found: dict[str, Any]) -> str:
    """SmolLM2, a row for each task and mechanism."""
    from burnish.core.statistics import interval

    def score(ways: dict[str, Any], way: str) -> str:
        scores = np.array(ways[way]["scores"])
        return cell(interval(scores, np.ones(len(scores)), scale="logit"), ".2f")

    rows = []
    for task, ways in found["tasks"].items():
        rows.append([f"`{task}`", DENSE, "1.00", "1.00", "1.00", "0", score(ways, DENSE), score(ways, DENSE)])
        for number, mechanism in enumerate(found["mechanisms"]):
            cost = ways[f"{number} by B"]["cost"]
            costs = [f"{cost[name]:.2f}" for name in ("density", "read_share", "mass_recall", "output_error")]
            by = [score(ways, f"{number} by {protocol}") for protocol in PROTOCOLS]
            rows.append(["", f"`{mechanism}`", *costs, *by])
    titles = "task | attention | density: | bytes: | kept: | off by: | found, protocol B (95 %): | protocol A (95 %):"
    return table(titles, rows)


if __name__ == "__main__":
    main()
