"""Is a model nearer to its original when rounding goes on: anew to refitted scales, or behind layers that are rounded?

    python benchmarks/rounding_again.py --work runs/slim-router

Trained mixtures of about a million parameters, three families and three seeds, those of `slim_router.py` in the
same WORK (trained where they are not there). 3 bits, symmetric, groups of 32, 8,192 tokens of WikiText-2 valid;
two-sided rounding with sketch A and damping 0.1. Measured is KL(original || rounded) on a quarter of the windows of
WikiText-2 test that `slim_router.py` reports on; nothing is chosen. A ratio is the geometric mean over models, and its
interval is over them. Models of which everything is there are recorded, whether or not all are.

`refit N times` rounds anew to the refitted scales N - 1 times. `inputs`: H_I is the plain covariance of a layer's
inputs in place of the one weighted by gradients, either as the original has them or behind the layers that are rounded
already, while H_O is that of the original in both.
"""

from __future__ import annotations

import copy
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import byte_windows
import experiment
import low_bits
import numpy as np
import slim_router
import torch
from torch import Tensor

from burnish.arch import matrices
from burnish.calibrate import Calibration
from burnish.core.statistics import interval
from burnish.data import calibration
from burnish.quantize.formats import FORMATS
from burnish.quantize.method import Rounding
from burnish.quantize.plan import select
from burnish.quantize.rule import HELD_OUT, Strength
from burnish.quantize.rules import RULES
from burnish.quantize.tuning import Original

BITS, GROUP, TOKENS = 3, 32, 1024 if experiment.SMOKE else 8192
EVERY = 4
"""Of the windows that are reported there, one in so many here: divergences vary less than losses."""


@dataclass(frozen=True)
class Way:
    """How a model is rounded, and what it is compared with."""

    rule: str
    refit: int
    against: str = ""
    covariance: float = 0.0
    changed: bool = False

    def rounding(self) -> Rounding:
        strength = HELD_OUT if self.rule == "gptq" else Strength(0.1, 0.1, self.covariance)
        grid = FORMATS["int"](BITS, GROUP, True)
        return Rounding(RULES[self.rule], grid, torch.bfloat16, strength, "a", refit=self.refit)


WAYS = {
    "gptq, refit": Way("gptq", 1),
    "gptq, refit 3 times": Way("gptq", 3, "gptq, refit"),
    "gptq, inputs behind rounded layers, refit": Way("gptq", 1, "gptq, refit", changed=True),
    "yaqa, refit": Way("yaqa", 1, "gptq, refit"),
    "yaqa, refit 3 times": Way("yaqa", 3, "yaqa, refit"),
    "yaqa, inputs of the original, refit": Way("yaqa", 1, "yaqa, refit", 1.0),
    "yaqa, inputs behind rounded layers, refit": Way("yaqa", 1, "yaqa, refit", 1.0, changed=True),
    "yaqa, half from inputs behind rounded layers, refit": Way("yaqa", 1, "yaqa, refit", 0.5, changed=True),
}


class Bench(experiment.Kept):
    """Cells "family, seed, way"."""

    def __init__(self, work: Path, *, smoke: bool) -> None:
        super().__init__(work / "rounding-again")
        names = [*slim_router.FAMILIES][: 1 if smoke else None]
        self.prepared = functools.cache(self.prepare)
        self.families = {name: slim_router.Family(work, name, smoke=smoke) for name in names}

    def names(self) -> list[str]:
        seeds = next(iter(self.families.values())).seeds
        return [f"{family}, {seed}, {way}" for seed in seeds for family in self.families for way in WAYS]

    def measure(self, name: str) -> dict[str, Any]:
        family, seed, way = name.split(", ", 2)
        model, windows, reported = self.prepared(family, int(seed))
        module = copy.deepcopy(model.module).float()
        original = Original(module, reported)
        text, how = Calibration(windows, seed=int(seed)), WAYS[way]
        with tempfile.TemporaryDirectory() as directory:
            views = select(matrices(module), ())
            low_bits.round_by_layer(views, how.rounding(), text, module, Path(directory), changed=how.changed)
        return {"kl": original.divergence()}

    def prepare(self, family: str, seed: int) -> tuple[Any, Tensor, Tensor]:
        """A model, its calibration windows, and those that are reported on."""
        bench = self.families[family]
        model, draw = bench.teacher(seed), torch.Generator().manual_seed(seed)
        how: dict[str, Any] = {"length": byte_windows.LENGTH, "max_tokens": TOKENS, "generator": draw}
        rows = byte_windows.windows(model.tokenizer, bench.test_text, bench.num_windows)
        windows = calibration(model.tokenizer, [bench.cut_text], **how)
        return model, windows, rows[~byte_windows.TUNING[: len(rows)]][::EVERY]


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.keeps("directory of models and of what has been measured")
    options = parser.read()
    torch.set_num_threads(1)
    bench = Bench(options.work, smoke=options.smoke)
    bench.run(bench.names, bench.measure, options.minutes)
    experiment.record(options.out, __doc__, content(bench), note="one thread, shared with other work; CPU times only")


def content(bench: Bench) -> dict[str, Any]:
    first = next(iter(bench.families.values()))
    rows = []
    for family in bench.families:
        for seed in first.seeds:
            names = {way: f"{family}, {seed}, {way}" for way in WAYS}
            if all(map(bench.has, names.values())):
                rows += [{"family": family, "seed": seed, "way": way} | bench.read(names[way]) for way in WAYS]
    return {"rows": rows, "slices": byte_windows.slices(first.teacher(first.seeds[0]).tokenizer, first.test_text)}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: every way beside what it is compared with."""
    kl: dict[str, dict[tuple[str, int], float]] = {}
    for row in results["rows"]:
        kl.setdefault(row["way"], {})[row["family"], row["seed"]] = float(np.mean(row["kl"]))
    lines = []
    for way, how in WAYS.items():
        own = kl[way]
        ratio = ahead = ""
        if how.against:
            pairs = [(own[model], kl[how.against][model]) for model in own]
            logs = interval(np.log([ours / theirs for ours, theirs in pairs]))
            ends = {"mean": logs.value, "low": logs.low, "high": logs.high}
            ratio = experiment.cell({end: float(np.exp(value)) for end, value in ends.items()}, ".3f")
            ahead = f"{sum(ours < theirs for ours, theirs in pairs)} of {len(pairs)}"
        lines.append([way, f"{np.mean(list(own.values())):.4f}", how.against, ratio, ahead])
    title = "how | KL, mean of models | against | ratio (95 % over models) | models that are nearer"
    return {"main": experiment.table(title, lines)}


if __name__ == "__main__":
    main()
