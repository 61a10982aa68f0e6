"""A teacher's top-k logits on disk: computed once, then read in place of the teacher.

    DIR/rows-000000512/key.json                the teacher, the rows, k, temperature
    DIR/rows-000000512/ids.npy                 uint16 (int32 for vocabularies above 65,536)    rows x length x k
    DIR/rows-000000512/log_probabilities.npy   float32, over the whole vocabulary              rows x length x k

6 bytes (8) a kept logit, against 4 bytes for each of the vocabulary's: k = 8 of 49,152 is 48 bytes a position in place
of 196,608. Log-probabilities stay in float32, so a training from disk differs from one with the teacher beside it by
rounding only. Files are mapped, not read: memory holds one batch. A part of the rows is an entry of the store, so an
interrupted capture goes on with the part that it was in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from burnish.arch import AllLogits, Head, head_of
from burnish.core.errors import SettingsError
from burnish.core.store import Store
from burnish.train.losses import model_inputs
from burnish.train.maths.divergence import top_k_targets
from burnish.train.maths.stretches import in_stretches, tokens_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.core.progress import Progress
    from burnish.data.packing import PackedRows

FILES = ("ids.npy", "log_probabilities.npy")
IDS, LOG_PROBABILITIES = "teacher_ids", "teacher_log_probabilities"
"""Keys of a batch."""
SMALL_VOCABULARY = 2**16
PART = 512
"""Rows of an entry; what is lost with a killed capture."""


@dataclass(frozen=True)
class TaughtRows:
    """Rows whose batches carry what a teacher predicts at each of their positions.

    Attributes:
        rows: what was captured on.
        ids: of each part (rows, length, k) token ids, mapped from disk.
        log_probabilities: of each part (rows, length, k) of the teacher, in nats.
    """

    rows: PackedRows
    ids: list[np.ndarray]
    log_probabilities: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hash(self) -> str:
        return self.rows.hash

    @property
    def num_bytes(self) -> int:
        """Of the kept logits."""
        return sum(part.nbytes for part in (*self.ids, *self.log_probabilities))

    def take(self, rows: list[int]) -> dict[str, Tensor]:
        batch = self.rows.take(rows)
        length = batch["input_ids"].shape[1]
        batch[IDS] = torch.from_numpy(_picked(self.ids, rows, length).astype(np.int64))
        batch[LOG_PROBABILITIES] = torch.from_numpy(_picked(self.log_probabilities, rows, length))
        return batch


def _picked(parts: list[np.ndarray], rows: list[int], length: int) -> np.ndarray:
    return np.stack([parts[row // PART][row % PART, :length] for row in rows])


def capture_top_k(
    teacher: PreTrainedModel,
    rows: PackedRows,
    directory: Path,
    *,
    identity: str,
    vocabulary: int | None = None,
    k: int,
    temperature: float = 1.0,
    batch_size: int = 8,
    progress: Progress,
) -> TaughtRows:
    """Runs the teacher over all rows that `directory` does not hold yet.

    Args:
        teacher: in evaluation mode, on its device.
        rows: packed as the student will see them.
        directory: of the store; made if need be.
        identity: of the teacher.
        vocabulary: its tokens, from the first on, that the student has too; None for all.
        k: logits per position.
        temperature: of the log-probabilities.
        batch_size: rows per forward pass.
        progress: where to show a bar.

    Raises:
        SettingsError: k is larger than the vocabulary.
        CheckpointError: the directory holds logits of another teacher, of other rows or settings.
        OSError: no room.
    """
    vocab_size = vocabulary or teacher.config.get_text_config().vocab_size
    if k > vocab_size:
        raise SettingsError(f"top_k is {k:,}, but the vocabulary has {vocab_size:,} tokens", fix="lower top_k")
    store = Store(directory)
    key = {"teacher": identity, "rows": rows.hash, "top_k": k, "temperature": temperature, "vocabulary": vocab_size}
    head = head_of(teacher) or AllLogits()
    parts = []
    with progress.task("teacher's logits", total=len(rows), unit="rows") as task:
        for first in range(0, len(rows), PART):
            part = range(first, min(first + PART, len(rows)))
            name = f"rows-{first:09d}"
            if store.find(name, key) is None:
                with store.writing(name, key) as path:
                    _capture(teacher, head, rows, part, path, k, temperature, batch_size, vocab_size)
            task.advance(len(part))
            parts.append(store.directory / name)
    return TaughtRows(rows, *([np.load(path / file, mmap_mode="r") for path in parts] for file in FILES))


@torch.no_grad()
def _capture(
    teacher: PreTrainedModel,
    head: Head | AllLogits,
    rows: PackedRows,
    part: range,
    path: Path,
    k: int,
    temperature: float,
    batch_size: int,
    vocab_size: int,
) -> None:
    """Writes what the teacher predicts on some rows."""
    id_type = np.uint16 if vocab_size <= SMALL_VOCABULARY else np.int32
    shape = (len(part), rows.length, k)
    ids, log_probabilities = (
        np.lib.format.open_memmap(path / file, mode="w+", dtype=dtype, shape=shape)
        for file, dtype in zip(FILES, (id_type, np.float32), strict=True)
    )

    def predicted(states: Tensor) -> tuple[Tensor, Tensor]:
        return top_k_targets(head.logits(states)[:, :vocab_size].float(), k, temperature)

    for start in range(0, len(part), batch_size):
        some = part[start : start + batch_size]
        batch = {name: tensor.to(teacher.device) for name, tensor in rows.take(list(some)).items()}
        _, states = head.last_hidden(teacher, **model_inputs(batch))
        count, length, _ = states.shape
        chosen, values = in_stretches(predicted, [states.flatten(0, 1)], tokens_at_once(states.device, vocab_size))
        ids[start : start + count, :length] = chosen.cpu().numpy().astype(id_type).reshape(count, length, k)
        log_probabilities[start : start + count, :length] = values.cpu().numpy().reshape(count, length, k)
    ids.flush()
    log_probabilities.flush()
