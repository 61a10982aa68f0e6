"""Does a second view, or do weights of tokens, help a model to find what stands further away than all it was shown?

    python benchmarks/long_context.py --work DIR [--minutes 10]          # again, until all is done

A Llama of 0.1 M parameters learns key-value retrieval in haystacks of 48 characters. From this parent it goes on in
eight ways with haystacks of 288 characters whose pairs stand in the last 36, at equal cost: a step with a second view
counts as two, one with weights as one and a third. Then it is asked for pairs at eight depths.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from experiment import SMOKE, Command, Kept, answer, cell, digest, over_seeds, table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import retrieval_rows as retrieval  # noqa: E402

SEEDS = (0, 1, 2)
PHASES = {"copies": 300, "three": 80, "six": 80, "short": 120}
"""Steps of the parent."""
PARENT: dict[str, Any] = {"context": 80, "batch": 64, "lr": 0.003, "schedule": "constant"}
LONGER: dict[str, Any] = {"context": 320, "batch": 8, "lr": 0.001}
BOTH: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.0}
PLAIN = "plain"
ARMS: dict[str, dict[str, Any]] = {
    PLAIN: {"steps": 60},
    "skip view": {"steps": 30, "objective": "view=skip"},
    "cyclic view": {"steps": 30, "objective": "view=cyclic"},
    "skip view alone": {"steps": 60, "objective": "view=skip,view_only=true"},
    "weights": {"steps": 45, "objective": "weights=kl,window=24,sinks=1"},
    "weights, gated": {"steps": 45, "objective": "weights=kl,gate=true,window=24,sinks=1"},
    "weights by Jensen-Shannon": {"steps": 45, "objective": "weights=js,window=24,sinks=1"},
    "weights by the label's gain": {"steps": 45, "objective": "weights=lsd,window=24,sinks=1"},
}
PRICED = ("skip view", "cyclic view", "weights")
ROUNDS = 1 if SMOKE else 12
"""In which gradients by the plain loss and by an objective are timed in turn."""
PRECONDITION = 0.9
"""What the parent must retrieve in the range it was trained on, before anything is compared."""
DEPTHS, ASKED = (2, 4) if SMOKE else (8, 60)
"""Depths, and haystacks that are asked at each of them."""


class Bench(Kept):
    """The parent, what comes of it, and what has been measured."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments.work)
        self.seeds, self.work = tuple(arguments.seeds), arguments.work

    def names(self) -> Iterable[str]:
        yield from ("parent", "cost")
        for seed in self.seeds:
            yield from (f"{arm}, seed {seed}" for arm in ARMS)

    def measure(self, name: str) -> dict[str, Any]:
        if name == "parent":
            return self.taught()
        if name == "cost":
            return self.costs()
        arm, _, seed = name.rpartition(", seed ")
        return self.longer(arm, int(seed))

    def taught(self) -> dict[str, Any]:
        from burnish import Train
        from burnish.train.scratch import initialise

        model = initialise(ROOT / "examples" / "retriever.json", tokenizer="bpe:257", texts=["bytes alone"], seed=0)
        for kind, steps in PHASES.items():
            data = rows_of(kind, 0, model.tokenizer)
            model = Train(**PARENT, **BOTH, steps=2 if SMOKE else steps)(model, data=data)
        model.save(self.work / "parent")
        found = self.asked(model, 0)
        near = np.mean(found["short"])
        if near < PRECONDITION and not SMOKE:
            raise SystemExit(f"the parent retrieves {near:.0%} where it was trained, below {PRECONDITION:.0%}")
        return found

    def parent(self) -> Any:
        from burnish.core.checkpoint import load

        return load(self.work / "parent")

    def longer(self, arm: str, seed: int) -> dict[str, Any]:
        """Trained in one way from the parent."""
        from burnish import Train

        parent = self.parent()
        settings = BOTH | LONGER | ARMS[arm] | {"seed": seed} | ({"steps": 2} if SMOKE else {})
        model = Train(**settings)(parent, data=rows_of("long", 1 + seed, parent.tokenizer))
        return self.asked(model, 1 + seed)

    def costs(self) -> dict[str, Any]:
        """What a step of every objective takes more than a plain one: by its operations, and measured."""
        import torch

        from burnish import Train
        from burnish.arch import head_of
        from burnish.data.packing import documents, pack
        from burnish.data.read import read_rows
        from burnish.train.long_context import LongContext
        from burnish.train.losses import ROWS, STEP, HeadLoss
        from burnish.train.objective import Objective
        from burnish.train.objective_cost import overhead_of

        parent, num, found = self.parent(), LONGER["batch"], {}
        read = read_rows(rows_of("long", 0, parent.tokenizer))
        rows = pack(documents(parent.tokenizer, read), LONGER["context"])
        batch = rows.take(list(range(num))) | {STEP: torch.tensor(0), ROWS: torch.arange(num)}
        for arm, settings in ARMS.items():
            if arm in PRICED:
                plain = HeadLoss(head_of(parent.module))
                ours = LongContext(Objective.of(settings["objective"]), plain, parent.config._attn_implementation)
                took = overhead_of(parent.module, batch, plain, ours, "float32", ROUNDS)
                expected = Train(**BOTH, **LONGER, **settings).added(parent.plan(), of_whole_step=True)
                found[arm] = {"expected": expected, "mean": took.value, "low": took.low, "high": took.high}
        return {"arms": found}

    def asked(self, model: Any, seed: int) -> dict[str, Any]:
        """Which pairs are retrieved, haystacks down and depths across, in both lengths."""
        import torch

        from burnish.evaluate.ruler.letters import ASKS

        found = {}
        for name, length in (("short", retrieval.SHORT), ("long", retrieval.LONG)):
            hits = []
            for depth in range(DEPTHS):
                drawn = questions(length, depth, seed)
                ids = torch.tensor([model.tokenizer(text + ASKS + key)["input_ids"] for text, key, _ in drawn])
                with torch.inference_mode():
                    said = model.module.eval()(input_ids=ids).logits[:, -1].argmax(dim=-1).tolist()
                wanted = [model.tokenizer(value)["input_ids"][0] for _, _, value in drawn]
                hits.append([int(one == other) for one, other in zip(said, wanted, strict=True)])
            found[name] = np.transpose(hits).tolist()
        return found


def rows_of(kind: str, seed: int, tokenizer: Any) -> list[dict[str, Any]]:
    return list(retrieval.rows(kind, 40 if SMOKE else retrieval.ROWS[kind], seed, tokenizer))


def questions(length: int, depth: int, seed: int) -> list[tuple[str, str, str]]:
    """(text, key, value): the same haystacks and pairs at every depth."""
    from burnish.evaluate.ruler.letters import planted

    rngs = (random.Random(f"reporting/{seed}/{length}/{number}") for number in range(ASKED))
    share = (depth + 0.5) / DEPTHS
    return [planted(rng, length - 2, retrieval.PAIRS - 1, share) for rng in rngs]


def main() -> None:
    command = Command(__file__, __doc__)
    command.keeps()
    command.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="which")
    arguments = command.read()
    bench = Bench(arguments)
    answer(bench, arguments, __doc__, lambda: content(bench), tables)


def content(bench: Bench) -> dict[str, Any]:
    texts = {seed: "\n".join(text for text, _, _ in questions(retrieval.LONG, 0, 1 + seed)) for seed in bench.seeds}
    of_parent = "\n".join(text for text, _, _ in questions(retrieval.LONG, 0, 0))
    return {
        "slices": {"tuning": [digest(of_parent)], "reporting": [digest(text) for text in texts.values()]},
        "settings": {"parent": PARENT | BOTH | {"phases": PHASES}, "longer": LONGER | BOTH, "arms": ARMS},
        "seeds": list(bench.seeds),
        "cells": {name: bench.read(name) for name in bench.names()},
    }


# -- tables --------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    return {"arms": _arms(results), "depths": _depths(results), "cost": _cost(results)}


def _cost(results: dict[str, Any]) -> str:
    costs = results["cells"]["cost"]["arms"]
    rows = [
        [arm, f"{100 * one['expected']:+.0f} %", cell({k: 100 * one[k] for k in ("mean", "low", "high")}, "+.0f")]
        for arm, one in costs.items()
    ]
    return table("trained by | operations, against plain: | time, against plain, % (95 %):", rows)


def _by_depth(results: dict[str, Any], arm: str, length: str) -> np.ndarray:
    """Shares, seeds down and depths across."""
    each = [results["cells"][f"{arm}, seed {seed}"][length] for seed in results["seeds"]]
    return np.array(each).mean(axis=1)


def _arms(results: dict[str, Any]) -> str:
    plain, rows = _by_depth(results, PLAIN, "long"), []
    parent = np.array([np.mean(results["cells"]["parent"][length], axis=0) for length in ("short", "long")])
    short, long = parent
    rows.append(
        ["parent", "", f"{short.mean():.3f}", f"{long.mean():.3f}", f"{long.min():.2f}", f"{np.ptp(long):.2f}", "", ""]
    )
    for arm, settings in results["settings"]["arms"].items():
        near, far = _by_depth(results, arm, "short"), _by_depth(results, arm, "long")
        spread, gained = np.ptp(far, axis=1), far.mean(axis=1) - plain.mean(axis=1)
        against = ["", ""]
        if arm != PLAIN and len(far) > 1:
            against = [cell(over_seeds(part), "+.2f") for part in (gained, spread - np.ptp(plain, axis=1))]
        shares = [f"{near.mean():.3f}", f"{far.mean():.3f}", f"{far.min(axis=1).mean():.2f}", f"{spread.mean():.2f}"]
        rows.append([arm, settings["steps"], *shares, *against])
    titles = (
        "trained by | steps: | found in 48: | in 288: | worst depth: | spread: | found in 288 against plain (95 %): "
    )
    return table(titles + "| spread against plain (95 %):", rows)


def _depths(results: dict[str, Any]) -> str:
    named = {"parent": np.mean(results["cells"]["parent"]["long"], axis=0)}
    named |= {arm: _by_depth(results, arm, "long").mean(axis=0) for arm in results["settings"]["arms"]}
    num = len(named["parent"])
    titles = " | ".join(f"{100 * (place + 0.5) / num:.0f} %:" for place in range(num))
    return table(f"trained by | {titles}", [[arm, *(f"{one:.2f}" for one in shares)] for arm, shares in named.items()])


if __name__ == "__main__":
    main()
