"""What was collected from calibration text: sums per matrix and fold, in the store.

The text is cut into folds whose sums are kept apart: held-out choices compare folds, rounding uses their total. Each
(layer, fold) is an entry that appears whole or not at all, under the key of what it belongs to: the model, the text,
the seed of the labels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from burnish.arch import MatrixView
from burnish.calibrate.maths.kronecker import unpack_triangle
from burnish.core.store import Store

FILE = "sums.safetensors"


@dataclass(frozen=True)
class MatrixSums:
    """Sums over the text (or some folds of it) for one matrix; a sum that was not asked for is None.

    Attributes:
        covariance: Σ x^T x.
        sketches: {sketch: (input side, output side)} of every sketch that was collected.
        num_tokens: that the matrix saw.
    """

    covariance: Float[Tensor, "in in"] | None
    sketches: dict[str, tuple[Float[Tensor, "in in"], Float[Tensor, "out out"]]]
    num_tokens: int


class Statistics:
    """The entries of one collection: {layer, fold} -> sums.

    Args:
        directory: where they lie.
        key: what they belong to (model, text, labels); entries of another key are refused.
        folds: numbers of the parts of the text that are used.

    Attributes:
        choices: what has been chosen by these sums, under what it was chosen for; see `SplitSums.chosen`.
    """

    def __init__(self, directory: Path, key: dict[str, Any], folds: Sequence[int]) -> None:
        self.store, self.key, self.folds = Store(directory), key, tuple(folds)
        self.choices: dict[Hashable, Any] = {}

    def part(self, folds: Sequence[int]) -> Statistics:
        """The same of fewer folds."""
        return Statistics(self.store.directory, self.key, folds)

    @property
    def held_out(self) -> tuple[int, ...]:
        """The last quarter of the folds, at least one: what shrinkage is chosen on."""
        return self.folds[-max(len(self.folds) // 4, 1) :]

    @property
    def fitting(self) -> tuple[int, ...]:
        return self.folds[: -len(self.held_out)]

    def name(self, layer: int, fold: int) -> str:
        return f"layer{layer:03d}-fold{fold}"

    def has(self, layer: int, fold: int) -> bool:
        """Whether the entry is finished; one of another model or text is an error."""
        return self.store.find(self.name(layer, fold), self.key) is not None

    def write(self, layer: int, fold: int, tensors: dict[str, Tensor]) -> None:
        with self.store.writing(self.name(layer, fold), self.key) as path:
            save_file(tensors, path / FILE)

    def clear(self) -> None:
        """Deletes them all."""
        self.store.clear()

    def read(self, view: MatrixView, folds: Sequence[int]) -> MatrixSums:
        """Sums of one matrix over some folds."""
        assert view.layer is not None
        prefix = f"{view.name}|"
        covariance, count = f"{view.input_group}|covariance", f"{prefix}num_tokens"
        total: dict[str, Tensor] = {}
        for fold in folds:
            with safe_open(self.store.directory / self.name(view.layer, fold) / FILE, "pt") as file:
                for name in set(file.keys()):
                    if name == covariance or name.startswith(prefix):
                        tensor = file.get_tensor(name)
                        total[name] = total[name].add_(tensor) if name in total else tensor
        num_tokens = int(total.pop(count, torch.zeros(())))
        sums = {name: unpack_triangle(tensor) for name, tensor in total.items()}
        names = sorted(name.removeprefix(prefix).partition("|")[0] for name in sums if name.endswith("|input_side"))
        sketches = {name: (sums[f"{prefix}{name}|input_side"], sums[f"{prefix}{name}|output_side"]) for name in names}
        return MatrixSums(sums.get(covariance), sketches, num_tokens)
