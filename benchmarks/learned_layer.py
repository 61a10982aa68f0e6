"""What learns the codes of one layer best: which start, error, number of iterations, scales, and inputs?

    python benchmarks/learned_layer.py --model models/smollm2 --work WORK

Layer 9 of SmolLM2 at 3 bits, symmetric integers in groups of 64, learned from the first draw of `low_bits.py` (8,192
tokens of WikiText-2 valid, whose statistics WORK shares with it), by the product's own functions. Errors are of the
layer's output on 16 windows of 256 tokens of the same text that nothing has seen, the first token of each left out,
which has nearly all of the energy: `plain` sum |e|^2 / sum |y|^2, `relative` the mean of |e|^2 / |y|^2 over tokens, and
`sensitivity` that of |e R|^2 / |y|^2 with R R' the factor of the layer's output. One draw; ratios are paired over
windows, against YAQA's codes as they are under the same inputs. It can be stopped: what has been measured is recorded.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import experiment
import low_bits
import numpy as np
import torch
from torch import Tensor

from burnish.arch import matrices
from burnish.calibrate.blocks import Block, blocks
from burnish.calibrate.collect import collect
from burnish.calibrate.statistics import Statistics
from burnish.calibrate.windows import Calibration
from burnish.core.checkpoint import load
from burnish.core.progress import Progress
from burnish.quantize.formats import FORMATS
from burnish.quantize.learning import METRIC_DAMPING, Learning, learn, output_factor
from burnish.quantize.maths.shrinkage import shrink, square_root
from burnish.quantize.method import Rounding, quantize_matrices
from burnish.quantize.plan import select
from burnish.quantize.rule import Strength
from burnish.quantize.rules import RULES

WINDOWS = 4
"""In a batch of a thousand tokens, as the product has them."""
LAYER, UNSEEN = (1, 4) if experiment.SMOKE else (9, 16)
ERRORS = "plain", "relative", "sensitivity"
SCHEME = FORMATS["int"](3, low_bits.GROUP, True)


@dataclass(frozen=True)
class Way:
    """How the layer gets its codes; nothing is learned without iterations."""

    start: str = "yaqa"
    error: str = "sensitivity"
    iterations: int = 40
    refit: int = 0
    optimizer: str = "sign"
    behind: bool = False

    @property
    def rounding(self) -> Rounding:
        strength = {"gptq": Strength(input_damping=0.1)}.get(self.start, Strength(0.1, 0.1))
        return Rounding(RULES[self.start], SCHEME, torch.bfloat16, strength, "a", refit=self.refit)

    @property
    def name(self) -> str:
        return ", ".join(
            [
                self.start + (f" and {self.refit} refits" if self.refit else ""),
                *([f"{self.error} by {self.optimizer}", f"{self.iterations} iterations"] if self.iterations else []),
                *(["behind rounded layers"] if self.behind else []),
            ]
        )


STARTS = "rtn", "gptq", "yaqa"
NEAREST, BEHIND = Way(iterations=0), Way(iterations=0, behind=True)
WAYS = (
    *(Way(start, iterations=0) for start in STARTS),
    *(Way(refit=refit, iterations=0) for refit in (1, 3)),
    *(Way(start, error) for start in STARTS for error in ERRORS),
    *(Way(refit=refit) for refit in (1, 3)),
    *(Way(iterations=iterations) for iterations in (20, 100, 200)),
    Way("rtn", "plain", iterations=200),
    Way(optimizer="adam"),
    BEHIND,
    replace(BEHIND, iterations=40),
)


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.keeps("where `low_bits.py` keeps its own, and what is measured here")
    arguments = parser.read()
    torch.set_num_threads(1)
    measuring = Measuring(load(arguments.model), arguments.model, arguments.work)
    kept = experiment.Kept(arguments.work / "learned-layer")
    kept.run(lambda: (way.name for way in WAYS), measuring.measure, arguments.minutes)
    rows = [kept.read(way.name) | {"way": way.name} for way in WAYS if kept.has(way.name)]
    slices = {"tuning": [experiment.digest(measuring.seen.numpy())]}
    slices["reporting"] = [experiment.digest(measuring.unseen.numpy())]
    experiment.record(arguments.out, __doc__, {"rows": rows, "slices": slices})


class Measuring:
    """Of one model; windows that are learned from, and others of the same text."""

    def __init__(self, model: Any, path: Path, work: Path) -> None:
        self.model, self.path, self.work = model, path, work
        self.seen = low_bits.windows_of_draw(model, 0)
        known = set(map(tuple, self.seen.tolist()))
        others = [window for window in low_bits.windows_of_draw(model, 1) if tuple(window.tolist()) not in known]
        self.unseen = torch.stack(others[:UNSEEN])

    def measure(self, name: str) -> dict[str, Any]:
        (way,) = (one for one in WAYS if one.name == name)
        block, statistics = self.block(way.behind)
        for view in block.views:
            view.write_(block.weights[view.name])
        return {"errors": self.errors(block, way, statistics)}

    @functools.cache  # noqa: B019 (one measurement a process)
    def block(self, behind: bool) -> tuple[Block, Statistics]:
        """The layer between its text, behind the original layers or rounded ones, and what the text says of it."""
        module = load(self.path, dtype=torch.float32).module
        views = select(matrices(module), ())
        stage = low_bits.Quantize(tokens=low_bits.TOKENS, **low_bits.YAQA_A)
        directory = low_bits.directory_of_statistics(self.work, 0, stage) / "statistics"
        key = {"matrices": [view.name for view in views], "model": self.model.identity}
        text = low_bits.text_of_draw(self.model, 0)
        statistics = collect(module, views, text, directory, key=key, sketches=["a"], progress=Progress())
        both = Calibration(torch.cat([self.seen, self.unseen]), num_folds=1)
        for block in blocks(module, views, both, batch_tokens=WINDOWS * both.tokens.shape[1]):
            if block.number == LAYER:
                return block, statistics
            if behind:
                quantize_matrices(block.views, BEHIND.rounding, statistics)
        raise AssertionError("the model has that layer")

    def errors(self, block: Block, way: Way, statistics: Statistics) -> dict[str, list[float]]:
        """Of every unseen window."""
        count = len(self.seen) // WINDOWS  # batches
        start = quantize_matrices(block.views, way.rounding, statistics)
        factor = output_factor(block, statistics, "a")
        assert factor is not None, "a dense layer has one"
        if way.iterations:
            how = Learning(way.iterations, way.optimizer, way.error, "a", torch.bfloat16)
            weighed = factor if way.error == "sensitivity" else None
            some = replace(block, inputs=block.inputs[:count], targets=block.targets[:count])
            learned, _ = learn(some, start.codes, start.grids, weighed, how)
            for view in block.views:
                codes, grid = learned[view.name]
                view.write_(grid.values(codes))
        metric = square_root(shrink(factor, damping=METRIC_DAMPING))
        found: dict[str, list[float]] = {error: [] for error in ERRORS}
        with torch.no_grad():
            for states, target in zip(block.inputs[count:], block.targets[count:], strict=True):
                output = states.through(block.number, block.layer)
                for window, wanted in zip(output[:, 1:], target[:, 1:], strict=True):
                    for error, value in errors_of(window - wanted, wanted, metric).items():
                        found[error].append(value)
        return found


def errors_of(difference: Tensor, wanted: Tensor, metric: Tensor) -> dict[str, float]:
    """Of one window (tokens, hidden), by every measure."""
    energy = wanted.square().sum(-1)
    plain, weighed = difference.square().sum(-1), (difference @ metric).square().sum(-1)
    values = plain.sum() / energy.sum(), (plain / energy).mean(), (weighed / energy).mean()
    return dict(zip(ERRORS, map(float, values), strict=True))


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the docs: every way beside YAQA's codes."""
    kept, lines = {row["way"]: row for row in results["rows"]}, []
    for way in WAYS:
        if way.name not in kept:
            continue
        errors, base = kept[way.name]["errors"], kept.get((BEHIND if way.behind else NEAREST).name)
        learned = (f"{way.error}, {way.optimizer}", way.iterations) if way.iterations else ("", "")
        beside = ""
        if base is not None and way not in (NEAREST, BEHIND):
            beside = experiment.cell(experiment.ratio(errors["sensitivity"], base["errors"]["sensitivity"]), ".2f")
        inputs = "behind rounded layers" if way.behind else "the original's"
        sizes = [f"{1000 * np.mean(errors[error]):.2f}" for error in ERRORS]
        seconds = f"{kept[way.name]['cpu_seconds']:.0f}"
        lines.append([way.start, way.refit, *learned, inputs, *sizes, beside, seconds])
    head = "start | refits of scales | what is minimised | iterations | inputs | plain | relative | sensitivity"
    return {"main": experiment.table(f"{head} | sensitivity, against yaqa's codes (95 %) | CPU s", lines)}


if __name__ == "__main__":
    main()
