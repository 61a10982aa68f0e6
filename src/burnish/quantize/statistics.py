"""What was collected from calibration text: sums per matrix and fold, in files.

The text is cut into folds whose sums are kept apart: held-out choices compare folds, rounding uses their total. Each
(layer, fold) is a safetensors file that appears whole or not at all, and carries what it belongs to: the model's
content hash, the text, the seed of the labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from burnish.arch import MatrixView
from burnish.core.errors import CheckpointError


@dataclass(frozen=True)
class Calibration:
    """Windows of calibration text.

    Attributes:
        tokens: token ids, one window a row.
        seed: of the drawn labels.
        num_folds: parts of the text, in order, whose sums are kept apart.
        mask: False at padding, None where every window is whole.
        fold_ends: window numbers at which folds end; None makes them equally long.
    """

    tokens: Int[Tensor, "windows length"]
    seed: int = 0
    num_folds: int = 4
    mask: Bool[Tensor, "windows length"] | None = None
    fold_ends: tuple[int, ...] | None = None

    @property
    def bounds(self) -> tuple[int, ...]:
        """Window numbers at which folds begin, and the number of windows."""
        if self.fold_ends is not None:
            return (0, *self.fold_ends)
        return tuple(torch.linspace(0, len(self.tokens), self.num_folds + 1).round().long().tolist())

    def fold(self, number: int) -> range:
        """Window numbers of one fold."""
        return range(self.bounds[number], self.bounds[number + 1])

    @property
    def hash(self) -> str:
        digest = hashlib.sha256(self.tokens.numpy().tobytes())
        if self.mask is not None:
            digest.update(self.mask.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Sums:
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
    """The files of one collection: {layer, fold} -> sums.

    Args:
        directory: where they lie.
        key: what they belong to (model, text, labels); files of another key are refused.
        folds: numbers of the parts of the text that are used.
    """

    def __init__(self, directory: Path, key: dict[str, str], folds: Sequence[int]) -> None:
        self.directory, self.key, self.folds = directory, key, tuple(folds)

    @property
    def held_out(self) -> tuple[int, ...]:
        """The last quarter of the folds, at least one: what shrinkage is chosen on."""
        return self.folds[-max(len(self.folds) // 4, 1) :]

    @property
    def fitting(self) -> tuple[int, ...]:
        return self.folds[: -len(self.held_out)]

    def path(self, layer: int, fold: int) -> Path:
        return self.directory / f"layer{layer:03d}-fold{fold}.safetensors"

    def has(self, layer: int, fold: int) -> bool:
        """Whether the file is there; one of another model or text is an error."""
        path = self.path(layer, fold)
        if not path.is_file():
            return False
        with safe_open(path, "pt") as file:
            written = json.loads((file.metadata() or {}).get("key", "{}"))
        if written != self.key:
            differing = [name for name in self.key if written.get(name) != self.key[name]]
            raise CheckpointError(
                f"holds factors collected with another {' and '.join(differing)}",
                where=str(path),
                fix="delete that directory or name another one",
            )
        return True

    def write(self, layer: int, fold: int, tensors: dict[str, Tensor]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.path(layer, fold)
        temporary = path.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"key": json.dumps(self.key)})
        temporary.replace(path)

    def read(self, view: MatrixView, folds: Sequence[int]) -> Sums:
        """Sums of one matrix over some folds."""
        assert view.layer is not None
        prefix = f"{view.name}|"
        covariance, count = f"{view.input_group}|covariance", f"{prefix}num_tokens"
        total: dict[str, Tensor] = {}
        for fold in folds:
            with safe_open(self.path(view.layer, fold), "pt") as file:
                for name in set(file.keys()):
                    if name == covariance or name.startswith(prefix):
                        tensor = file.get_tensor(name)
                        total[name] = total[name].add_(tensor) if name in total else tensor
        num_tokens = int(total.pop(count, torch.zeros(())))
        sums = {name: unpack_triangle(tensor) for name, tensor in total.items()}
        names = sorted(name.removeprefix(prefix).partition("|")[0] for name in sums if name.endswith("|input_side"))
        sketches = {name: (sums[f"{prefix}{name}|input_side"], sums[f"{prefix}{name}|output_side"]) for name in names}
        return Sums(sums.get(covariance), sketches, num_tokens)


def pack_triangle(lower: Float[Tensor, "n n"]) -> Float[Tensor, " packed"]:
    """The n(n+1)/2 numbers of a lower triangle, row by row."""
    size = len(lower)
    if lower.is_cuda:  # a launch per row would take longer than the sums themselves
        return lower[torch.ones_like(lower, dtype=torch.bool).tril_()]
    packed = lower.new_empty(size * (size + 1) // 2)
    for row, numbers in enumerate(packed.split(list(range(1, size + 1)))):  # index tensors would be four times as large
        numbers.copy_(lower[row, : row + 1])
    return packed


def unpack_triangle(packed: Float[Tensor, " packed"]) -> Float[Tensor, "n n"]:
    """The symmetric matrix behind `pack_triangle`."""
    size = int((2 * len(packed)) ** 0.5)
    matrix = packed.new_empty(size, size)
    for row, numbers in enumerate(packed.split(list(range(1, size + 1)))):
        matrix[row, : row + 1] = numbers
        matrix[: row + 1, row] = numbers
    return matrix
