"""Outliers of every matrix of a model: in what it reads on calibration text, and in its weights (`maths.outliers`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.arch import MatrixView, by_input
from burnish.calibrate.walk import Walk
from burnish.calibrate.windows import Calibration, WindowBatch
from burnish.core.progress import Progress
from burnish.quantize.maths.outliers import InputSums, of_weights

TABLE = "outliers"
"""In the ledger."""


class Outliers:
    """Sums of all inputs while text goes by.

    Attributes:
        sums: by the name of the tensor that is read.
    """

    def __init__(self, views: Sequence[MatrixView]) -> None:
        self.leaders = {group[0].name: name for name, group in by_input(views).items()}
        self.sums: dict[str, InputSums] = {}
        self.length, self.mask = 0, None

    def begin(self, batch: WindowBatch) -> None:
        self.length = batch.tokens.shape[1]
        self.mask = None if batch.mask is None else batch.mask.flatten()

    def __call__(
        self,
        view: MatrixView,
        inputs: Float[Tensor, "rows in"],
        gradients: Tensor | None,
        token_index: Int[Tensor, " rows"],
    ) -> None:
        name = self.leaders.get(view.name)
        if name is None:
            return
        if self.mask is not None:
            kept = self.mask[token_index]
            inputs, token_index = inputs[kept], token_index[kept]
        if len(inputs):
            known = self.sums.setdefault(name, InputSums.empty(inputs.shape[1]))
            known.add(inputs, token_index % self.length == 0)


def seen(walk: Walk, text: Calibration, progress: Progress) -> Outliers:
    """The sums of all matrices of a walk."""
    found = Outliers(walk.views)
    total = text.tokens.numel()
    with torch.no_grad(), progress.task("outliers", total=total, unit="tokens") as task:
        for stop in walk.stops(text):
            for fold in range(text.num_folds):
                for tokens in walk.run(stop, fold, found):
                    task.advance(tokens)
    return found


def rows(views: Sequence[MatrixView], found: Outliers, group_size: int | None) -> list[dict[str, Any]]:
    """One for every matrix, those with the greatest outliers in their inputs first; an expert that no token reached has
    its weights alone."""
    told = {name: sums.told() for name, sums in found.sums.items() if sums.powers.any()}
    made = [
        {
            "name": view.name,
            **told.get(view.input_group, {}),
            **of_weights(view.tensor, group_size or view.shape[1]),
            "role": view.role,
            "layer": view.layer,
        }
        for view in views
    ]
    return sorted(made, key=lambda row: -row.get("max_over_rms", 0.0))


def sentence(row: dict[str, Any]) -> str:
    """What stands out most."""
    return (
        f"outliers: what {row['name']} reads has a number of {row['max_over_rms']:,.0f} times its rms, in channel "
        f"{row['channel']}, at {row['tokens']:.2%} of the tokens ({row['begin']:.0%} of these begin a text)"
    )
