"""A curriculum that is run in memory, with what it says."""

from __future__ import annotations

from pathlib import Path

import torch

from burnish import Curriculum
from burnish.core.checkpoint import Model
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.curriculum.run import run


class Told:
    """A run with what it says."""

    def __init__(self, stage: Curriculum, model: Model, work: Path) -> None:
        self.lines: list[str] = []
        progress = Progress(enabled=False)
        progress.log = self.lines.append  # type: ignore[method-assign]
        inputs = {place: value for place, _, value in stage.named()}
        ledger = Ledger(None)
        ctx = Context(inputs, work, "cpu", seeded_generator(stage.seed), progress, ledger)
        self.model = run(stage, model, ctx)
        self.tables = {row["name"]: row["rows"] for row in ledger.rows if row["row"] == "table"}

    @property
    def weights(self) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in self.model.module.state_dict().values()]


def same(one: Told, other: Told) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.weights, other.weights, strict=True))
