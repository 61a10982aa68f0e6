"""Episodes with a calculator: does training by rewards make a model that uses a tool carelessly use it well?

A 0.6 M Llama that was taught by a careless script (recipes/calculator.yaml: six in ten of its episodes ask the
calculator for the right sum and give what it answers) goes on by GRPO on episodes of several turns, on problems of
their own for every seed, with advantages of whole episodes (and, with --credits 2, of turns). What is quoted is the
accuracy of sampled episodes on problems that were never trained on, before and after, and the paired difference over
problems.

    python benchmarks/agent.py --start runs/calculator/nodes/taught --work DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SMOKE, Command, Kept, answer, cell, digest, table

PROBLEMS = 4 if SMOKE else 300
SEEDS = (0, 1, 2)
CREDITS = ("trajectory", "stepwise")
TRAINED: dict[str, Any] = {
    "env": "calculator",
    "problems": 8 if SMOKE else 200,
    "held_out": 0,
    "prompts": 4 if SMOKE else 8,
    "rollouts": 4 if SMOKE else 8,
    "updates": 2 if SMOKE else 20,
    "max_new_tokens": 128,
    "max_turns": 3,
    "lr": 5e-4,
    "max_grad_norm": 0.1,
}


class Bench(Kept):
    """The start, its problems and what has been measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import burnish
        from burnish.align.envs import SumsEnv

        super().__init__(arguments.work)
        self.start = burnish.load(arguments.start)
        self.problems, self.credits = SumsEnv(PROBLEMS, 77), CREDITS[: arguments.credits]

    def names(self) -> Iterable[str]:
        yield "start"
        yield from (f"{credit}, seed {seed}" for credit in self.credits for seed in SEEDS)

    def measure(self, name: str) -> dict[str, Any]:
        import burnish

        if name == "start":
            return self.asked(self.start)
        credit, _, seed = name.rpartition(", seed ")
        return self.asked(burnish.Grpo(**TRAINED, credit=credit, seed=100 + int(seed))(self.start))

    def asked(self, model: Any) -> dict[str, Any]:
        """Sampled and greedy episodes on the held-out problems."""
        from burnish.align.held_out import answers

        found: dict[str, Any] = {}
        for how, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            limits = {"max_new_tokens": TRAINED["max_new_tokens"], "max_turns": TRAINED["max_turns"]}
            drawn = answers(model.module, model.tokenizer, self.problems, temperature=temperature, seed=5, **limits)
            calls = [text.count("call ") for text in drawn.texts]
            found[how] = {
                "correct": drawn.correct.tolist(),
                "tokens": float(drawn.tokens.mean()),
                "called": float(np.mean([count > 0 for count in calls])),
            }
        return found


def main() -> None:
    command = Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--start", type=Path, required=True, help="the taught checkpoint")
    command.add_argument("--credits", type=int, default=1, help="how many of the ways to give credit, in their order")
    arguments = command.read()
    bench = Bench(arguments)
    answer(bench, arguments, __doc__, lambda: content(bench), tables, libraries=("trl",))


def content(bench: Bench) -> dict[str, Any]:
    hashes = {"tuning": [], "reporting": [digest("\n".join(sorted(bench.problems.questions)))]}
    cells = {name: bench.read(name) for name in bench.names()}
    found = {"slices": hashes, "problems": PROBLEMS, "settings": TRAINED, "cells": cells}
    return found | {"seeds": list(SEEDS), "credits": list(bench.credits)}


# -- tables --------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    return {"episodes": _episodes(results)}


def _episodes(results: dict[str, Any]) -> str:
    from burnish.core.statistics import paired_interval

    start, rows = results["cells"]["start"], []
    rows.append(["start", *_right(start), "", f"{start['sampled']['called']:.0%}", ""])
    for credit in results["credits"]:
        for seed in results["seeds"]:
            one = results["cells"][f"{credit}, seed {seed}"]
            right, before = (100 * np.array(found["sampled"]["correct"]) for found in (one, start))
            gained = cell(paired_interval(right, before), "+.1f")
            called = f"{one['sampled']['called']:.0%}"
            rows.append([f"{credit}, seed {seed}", *_right(one), gained, called, f"{one['cpu_seconds']:.0f}"])
    head = (
        "advantages | right, sampled: | right, greedy: | gained, points (95 %, problems): | "
        "episodes that called: | CPU seconds:"
    )
    return table(head, rows)


def _right(found: dict[str, Any]) -> list[str]:
    return [f"{np.mean(found[how]['correct']):.3f}" for how in ("sampled", "greedy")]


if __name__ == "__main__":
    main()
