"""How strongly to steer: coefficients and shares of heads on one part of the problems, the choice confirmed on another.

A point is chosen on the tuning part: the fewest tokens among those that lose no more than so much accuracy. The
reporting part, which chose nothing, then sees the plain model, the point, and two controls of the same strength: the
same heads and gates with random unit directions, and as many heads drawn at random among those that were not chosen,
with their own probes and directions. What the controls do as well is no effect of what the probes found.

All cells draw with the same random numbers, problem by problem, so that differences are paired. Every cell is kept when
it is finished, and a sweep that was stopped goes on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from burnish.core.checkpoint import Model, tensors_digest, text_digest
from burnish.core.errors import DataError
from burnish.core.progress import Progress, Task
from burnish.core.statistics import Interval, interval, paired_interval
from burnish.core.store import Store
from burnish.generate import generate
from burnish.steer.hooks import steer
from burnish.steer.marks import COUNTING
from burnish.steer.maths.intervene import Mode
from burnish.steer.maths.probe import unit
from burnish.steer.traces import question_ids
from burnish.steer.vectors import Vectors
from burnish.verify import Verifier

Arm = Literal["plain", "steered", "random directions", "random heads"]
CONTROLS: tuple[Arm, ...] = ("random directions", "random heads")
Part = Literal["tuning", "reporting"]
DRAWING = 2
"""Of controls; raised whenever other heads or directions are drawn, so that no sweep mixes two ways."""
LEAST = 4
"""Problems that can be parted in two."""


@dataclass(frozen=True)
class SteeringStrength:
    """One way to answer.

    Attributes:
        arm: which vectors.
        coef, top: as in `steer`; 0 of the plain model.
    """

    arm: Arm
    coef: float = 0.0
    top: float = 0.0

    @property
    def name(self) -> str:
        return "plain" if self.arm == "plain" else f"{self.arm.replace(' ', '-')}_{self.coef:g}_{self.top:g}"


PLAIN = SteeringStrength("plain")


@dataclass(frozen=True)
class Outcome:
    """What came of a cell, problem by problem.

    Attributes:
        scores: of the answers, 0 to 1.
        tokens: that each took.
        linear, checking: steps of both kinds before the end of thinking.
        counts: of `SteeringCounts`, summed; empty for the plain model.
    """

    scores: list[float]
    tokens: list[int]
    linear: list[int]
    checking: list[int]
    counts: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """A cell against the plain model on the same problems."""

    cell: SteeringStrength
    accuracy: float
    lost: Interval
    tokens: float
    ratio: Interval
    checking: float
    checks: Interval
    linear: float

    @classmethod
    def of(cls, cell: SteeringStrength, mine: Outcome, plain: Outcome) -> Comparison:
        """Differences of accuracy, and ratios of tokens and of checking steps, paired by problem."""
        lost = paired_interval(np.array(plain.scores), np.array(mine.scores))
        ratio = interval(np.array(mine.tokens), np.array(plain.tokens), scale="log")
        some = sum(plain.checking) > 0
        blank = Interval(float("nan"), float("nan"), float("nan"))
        checks = interval(np.array(mine.checking), np.array(plain.checking), scale="log") if some else blank
        means = (float(np.mean(each)) for each in (mine.scores, mine.tokens, mine.checking, mine.linear))
        accuracy, tokens, checking, linear = means
        return cls(cell, accuracy, lost, tokens, ratio, checking, checks, linear)


class Sweep:
    """Cells of one model, one set of vectors and one list of problems.

    Args:
        model: that answers.
        vectors: of it.
        problems: of a verifier, no two alike.
        verifier: that grades.
        place: directory of what is finished.
        temperature, max_new_tokens, seed, mode, batch_size: of the answers.
        tuning: share of the problems that choose the point, the first ones.
    """

    def __init__(
        self,
        model: Model,
        vectors: Vectors,
        problems: Sequence[dict[str, Any]],
        verifier: Verifier,
        place: Path,
        *,
        temperature: float = 1.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
        mode: Mode = "threshold",
        tuning: float = 0.5,
        batch_size: int = 128,
    ) -> None:
        if len(problems) < LEAST:
            raise DataError(f"{len(problems)} problems are too few; {LEAST} are needed", where="problems")
        vectors.check(model)
        vectors.check_mode(mode)
        cut = min(max(round(tuning * len(problems)), 1), len(problems) - 1)
        self.parts: dict[Part, Sequence[dict[str, Any]]] = {"tuning": problems[:cut], "reporting": problems[cut:]}
        self.model, self.vectors, self.verifier = model, vectors, verifier
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed
        self.mode: Mode = mode
        self.batch_size = batch_size
        self._store = Store(place)
        # Means of linear steps decide what the mode that aims at them does, and nothing else.
        means = [(f"m{layer}", mean) for layer, mean in sorted(vectors.means.items())] if mode == "mean" else []
        self._key = {
            "model": model.identity,
            "vectors": text_digest(
                [tensors_digest([("v", vectors.directions), ("w", vectors.probes), *means]), asdict(vectors.marks)]
            ),
            "problems": text_digest([dict(problem) for problem in problems]),
            "verifier": verifier.name,
            "tuning": cut,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
            "seed": seed,
            "mode": mode,
            "counting": COUNTING,
            "drawing": DRAWING,
        }

    def outcome(self, cell: SteeringStrength, part: Part) -> Outcome:
        """Answers of one cell, measured now or read where that was done before."""
        name = f"{part}-{cell.name}"
        found = self._store.find(name, self._key)
        if found is None:
            measured = self._measure(cell, self.parts[part])
            with self._store.writing(name, self._key) as path:
                (path / "outcome.json").write_text(json.dumps(asdict(measured)))
            return measured
        return Outcome(**json.loads((found / "outcome.json").read_text()))

    def rows(self, cells: Iterable[SteeringStrength], part: Part, bar: Task | None = None) -> list[Comparison]:
        """Cells against the plain model."""
        rows = []
        for cell in cells:
            rows.append(Comparison.of(cell, self.outcome(cell, part), self.outcome(PLAIN, part)))
            if bar is not None:
                bar.advance()
        return rows

    def _measure(self, cell: SteeringStrength, problems: Sequence[dict[str, Any]]) -> Outcome:
        module, tokenizer, marks = self.model.module, self.model.tokenizer, self.vectors.marks
        prompts = [question_ids(tokenizer, self.verifier, problem) for problem in problems]
        options: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }
        counts: dict[str, int] = {}
        if cell.arm == "plain":
            samples = generate(module, tokenizer, prompts, **options)
        else:
            vectors = of_arm(self.vectors, cell, self.seed)
            with steer(self.model, vectors, coef=cell.coef, top=1.0, mode=self.mode) as steering:
                samples = generate(module, tokenizer, prompts, observer=steering, **options)
            counts = asdict(steering.counts)
        labels = [[label for _, label in marks.steps(tokenizer, sample.tokens)] for sample in samples]
        return Outcome(
            [self.verifier.score(sample.text, problem) for sample, problem in zip(samples, problems, strict=True)],
            [len(sample.tokens) for sample in samples],
            [sum(label > 0 for label in some) for some in labels],
            [sum(label < 0 for label in some) for some in labels],
            counts,
        )


def of_arm(vectors: Vectors, cell: SteeringStrength, seed: int) -> Vectors:
    """The vectors of a cell; what is random in it depends on the seed and the number of heads alone.

    Random heads are others than the chosen ones, unless these are more than half of all.
    """
    number = vectors.count(cell.top)
    if cell.arm == "random heads":
        enough = 2 * number <= len(vectors.heads)  # heads are sorted, the chosen ones first
        others = range(number if enough else 0, len(vectors.heads))
        drawn = random.Random(f"heads {seed} {number}").sample(others, number)
        return vectors.chosen(sorted(drawn))
    best = vectors.best(cell.top)
    if cell.arm == "random directions":
        generator = torch.Generator().manual_seed(seed)
        return replace(best, directions=unit(torch.randn(best.directions.shape, generator=generator)))
    return best


def grid(
    vectors: Vectors, coefs: Sequence[float], tops: Sequence[float], arms: Sequence[Arm] = ("steered",)
) -> list[SteeringStrength]:
    """Cells of some arms; random heads only where they can be others than the best."""
    cells = [SteeringStrength(arm, coef, top) for coef in coefs for top in tops for arm in arms]
    return [cell for cell in cells if cell.arm != "random heads" or vectors.count(cell.top) < len(vectors.heads)]


def choice(rows: Sequence[Comparison], lose: float) -> Comparison | None:
    """The fewest tokens among cells that lose no more accuracy than `lose` and take fewer tokens; None without one."""
    able = [row for row in rows if row.lost.value <= lose and row.ratio.value < 1]
    return min(able, key=lambda row: row.tokens, default=None)


def sweep(
    cells: Sweep,
    coefs: Sequence[float],
    tops: Sequence[float],
    *,
    lose: float = 0.01,
    whole: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Comparison], Comparison | None, list[Comparison]]:
    """Rows of the tuning part, the point they choose, and rows of the reporting part with controls.

    Args:
        cells: of the model.
        coefs, tops: the grid.
        lose: accuracy that the point may lose on the tuning part.
        whole: report every cell of the grid with its controls, not the point alone.
        progress: where to show it.
    """
    points = grid(cells.vectors, coefs, tops)
    with (progress or Progress(enabled=False)).task("sweeping", total=len(points), unit="cells") as bar:
        tuned = cells.rows(points, "tuning", bar)
        chosen = choice(tuned, lose)
        told: list[SteeringStrength] = []
        if whole:
            told = grid(cells.vectors, coefs, tops, ("steered", *CONTROLS))
        elif chosen is not None:
            told = grid(cells.vectors, [chosen.cell.coef], [chosen.cell.top], ("steered", *CONTROLS))
        bar.total = len(points) + len(told)
        return tuned, chosen, cells.rows(told, "reporting", bar)
