"""A teacher's top-k logits on disk: computed once, then read in place of the teacher.

    DIR/ids.npy                 uint16 (int32 for vocabularies above 65,536)    rows x length x k
    DIR/log_probabilities.npy   float32, over the whole vocabulary              rows x length x k
    DIR/teacher.json            k, temperature, hash of the rows, how many rows are done

6 bytes (8) a kept logit, against 4 bytes for each of the vocabulary's: k = 8 of 49,152 is 48 bytes a position in place
of 196,608. Log-probabilities stay in float32, so a training from disk differs from one with the teacher beside it by
rounding only. Files are mapped, not read: memory holds one batch. An interrupted capture goes on where it stopped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from burnish.core.checkpoint import write_atomically
from burnish.core.errors import CheckpointError, SettingsError
from burnish.distill.maths.divergence import top_k_targets
from burnish.train.losses import model_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from burnish.core.progress import Progress
    from burnish.data.packing import PackedRows

FACTS_FILE, IDS_FILE, LOG_PROBABILITIES_FILE = "teacher.json", "ids.npy", "log_probabilities.npy"
IDS, LOG_PROBABILITIES = "teacher_ids", "teacher_log_probabilities"
"""Keys of a batch."""
SMALL_VOCABULARY = 2**16
SAVE_EVERY = 64
"""Batches between two notes of how far a capture is."""


@dataclass(frozen=True)
class TaughtRows:
    """Rows whose batches carry what a teacher predicts at each of their positions.

    Attributes:
        rows: what was captured on.
        ids: (rows, length, k) token ids, mapped from disk.
        log_probabilities: (rows, length, k) of the teacher, in nats.
    """

    rows: PackedRows
    ids: np.ndarray
    log_probabilities: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def hash(self) -> str:
        return self.rows.hash

    def take(self, rows: list[int]) -> dict[str, Tensor]:
        batch = self.rows.take(rows)
        length = batch["input_ids"].shape[1]
        batch[IDS] = torch.from_numpy(self.ids[rows, :length].astype(np.int64))
        batch[LOG_PROBABILITIES] = torch.from_numpy(self.log_probabilities[rows, :length])
        return batch


def capture_top_k(
    teacher: PreTrainedModel,
    rows: PackedRows,
    directory: Path,
    *,
    k: int,
    temperature: float = 1.0,
    batch_size: int = 8,
    progress: Progress,
) -> TaughtRows:
    """Runs the teacher over all rows, unless `directory` holds the result already.

    Args:
        teacher: in evaluation mode, on its device.
        rows: packed as the student will see them.
        directory: where the files go; made if need be.
        k: logits per position.
        temperature: of the log-probabilities.
        batch_size: rows per forward pass.
        progress: where to show a bar.

    Raises:
        SettingsError: k is larger than the vocabulary.
        CheckpointError: the directory holds logits of other rows or settings.
    """
    vocab_size = teacher.config.get_text_config().vocab_size
    if k > vocab_size:
        raise SettingsError(f"top_k is {k:,}, but the vocabulary has {vocab_size:,} tokens", fix="lower top_k")
    facts = {"k": k, "temperature": temperature, "rows": rows.hash, "vocab_size": vocab_size}
    done = _done(directory, facts)
    directory.mkdir(parents=True, exist_ok=True)
    shape = (len(rows), rows.length, k)
    id_type = np.uint16 if vocab_size <= SMALL_VOCABULARY else np.int32
    ids = _map(directory / IDS_FILE, id_type, shape, fresh=not done)
    log_probabilities = _map(directory / LOG_PROBABILITIES_FILE, np.float32, shape, fresh=not done)

    def note(count: int) -> None:
        ids.flush()
        log_probabilities.flush()
        write_atomically(directory / FACTS_FILE, json.dumps(facts | {"done": count}))

    with progress.task("teacher's logits", total=len(rows), unit="rows") as task, torch.no_grad():
        task.advance(done)
        for number, start in enumerate(range(done, len(rows), batch_size), start=1):
            some = list(range(start, min(start + batch_size, len(rows))))
            batch = {name: tensor.to(teacher.device) for name, tensor in rows.take(some).items()}
            chosen, values = top_k_targets(teacher(**model_inputs(batch)).logits.float(), k, temperature)
            length = chosen.shape[1]
            ids[some, :length] = chosen.cpu().numpy().astype(id_type)
            log_probabilities[some, :length] = values.cpu().numpy()
            task.advance(len(some))
            if number % SAVE_EVERY == 0:
                note(some[-1] + 1)
    note(len(rows))
    return read_top_k(directory, rows)


def read_top_k(directory: Path, rows: PackedRows) -> TaughtRows:
    """What `capture_top_k` wrote, for the same rows.

    Raises:
        CheckpointError: nothing is there, it is unfinished, or it belongs to other rows.
    """
    facts = _facts(directory)
    if facts is None or facts["done"] < len(rows):
        raise CheckpointError("holds no finished logits of a teacher", where=str(directory))
    if facts["rows"] != rows.hash:
        raise CheckpointError("holds a teacher's logits on other data", where=str(directory), fix="capture them anew")
    ids, log_probabilities = (
        np.load(directory / name, mmap_mode="r", allow_pickle=False) for name in (IDS_FILE, LOG_PROBABILITIES_FILE)
    )
    return TaughtRows(rows, ids, log_probabilities)


def num_bytes(directory: Path) -> int:
    """Size on disk."""
    return sum((directory / name).stat().st_size for name in (IDS_FILE, LOG_PROBABILITIES_FILE))


def _facts(directory: Path) -> dict[str, Any] | None:
    path = directory / FACTS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _done(directory: Path, facts: dict[str, Any]) -> int:
    found = _facts(directory)
    if found is None:
        return 0
    if {key: found[key] for key in facts} != facts:
        raise CheckpointError(
            "holds a teacher's logits on other data or with other settings", where=str(directory), fix="delete it"
        )
    return found["done"]


def _map(path: Path, dtype: Any, shape: tuple[int, ...], *, fresh: bool) -> np.memmap[Any, Any]:
    if fresh:
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    return np.lib.format.open_memmap(path, mode="r+")
