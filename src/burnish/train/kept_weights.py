"""Weights of tokens that are kept by document: computed while the data is passed over for the first time, then read.

    steps of the first pass    the second forward pass, as without; its weights are written
    every later step           read, and no second pass

Which of both a step does follows from its number alone, so that processes agree, and a step that is done again after a
kill does what it did: what is written is read in later passes only. The rows of a step that reaches into the second
pass are computed anew. On the disk it is one array, shared by the processes of a machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from burnish.core.checkpoint import cause_of, remedy
from burnish.core.errors import CheckpointError, OutputError
from burnish.core.store import Key, Store

DIRECTORY, ENTRY, FILE = "token-weights", "rows", "weights.npy"


@dataclass(frozen=True)
class KeptWeights:
    """Of all rows of a training.

    Attributes:
        path: of the array, rows times tokens; NaN where nothing has been written yet.
        first_pass: steps in which they are computed.
    """

    path: Path
    first_pass: int

    @classmethod
    def opened(cls, work_dir: Path, key: Key, shape: tuple[int, int], first_pass: int) -> KeptWeights:
        """Those of a training that goes on, or empty ones.

        Args:
            work_dir: of the stage.
            key: what the weights depend on.
            shape: rows, tokens of a row.
            first_pass: steps in which every row is seen at least once.

        Raises:
            OutputError: the disk has no room for them.
        """
        store = Store(work_dir / DIRECTORY)
        found = store.find(ENTRY, key)
        if found is None:
            try:
                with store.writing(ENTRY, key) as place:
                    _write_empty(place / FILE, shape)
            except OSError as error:
                cause = cause_of(error)
                what = f"there is no place for the weights of {shape[0]:,} rows of {shape[1]:,} tokens ({cause})"
                raise OutputError(what, where=str(work_dir), fix=f"{remedy(cause)}, or leave cache=true out") from None
            found = store.find(ENTRY, key)
            assert found is not None, "just written"
        return cls(found / FILE, first_pass)

    def reads(self, step: int) -> bool:
        """Whether a step takes what is kept."""
        return step >= self.first_pass

    def write(self, rows: list[int], counts: Bool[Tensor, "rows length"], weights: Float[Tensor, " counted"]) -> None:
        """Keeps the weights of the tokens that count."""
        filled = torch.zeros(counts.shape, dtype=weights.dtype)
        filled[counts.cpu()] = weights.cpu()
        # A batch is as wide as its longest row, and what lies beyond is padding.
        np.load(self.path, mmap_mode="r+")[rows, : counts.shape[1]] = filled.numpy()

    def read(self, rows: list[int], counts: Bool[Tensor, "rows length"]) -> Float[Tensor, " counted"]:
        """The weights of the tokens that count.

        Raises:
            CheckpointError: a row was not seen in the first pass, as when a batch of another size goes on.
        """
        kept = torch.from_numpy(np.load(self.path, mmap_mode="r")[rows, : counts.shape[1]]).to(counts.device)[counts]
        if kept.isnan().any():
            raise CheckpointError(
                "does not hold the weights of a row that the first pass should have seen",
                where=str(self.path),
                fix="go on with the batch size of before, or without cache=true",
            )
        return kept


def _write_empty(path: Path, shape: tuple[int, int]) -> None:
    """An array of NaN whose room on the disk is taken now: a full disk would end the process at a write to the map."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    row = np.full(shape[1], np.nan, dtype="<f4").tobytes()
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(shape[0]):
            file.write(row)
