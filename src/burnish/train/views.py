"""A view of a batch: the positions of every document, drawn, and which tokens they change.

The draw of a document is a function of the seed, the step, the number of its row and its place there: the same however
a step is cut into micro-batches and processes, and after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.data.packing import pieces
from burnish.train.losses import ROWS, STEP, Batch
from burnish.train.maths.masks import document_numbers, places_within, visible
from burnish.train.maths.positions import cyclic_positions, skip_positions
from burnish.train.objective import Objective


@dataclass(frozen=True)
class View:
    """Other positions for the tokens of a batch.

    Attributes:
        position_ids: of every token.
        shares: of the documents' losses: of a token behind the change, what the tokens of its document that count are
            together over how many of them stand there; 0 elsewhere. The mean over the changed tokens of a document so
            counts as much as its next-token loss does.
    """

    position_ids: Int[Tensor, "rows length"]
    shares: Float[Tensor, "rows length"]


def documents_of(batch: Batch) -> Int[Tensor, "rows length"]:
    """The number of each token's document in its row."""
    if "position_ids" in batch:
        return document_numbers(batch["position_ids"])
    return torch.zeros_like(batch["input_ids"])


def has_view(objective: Objective, seed: int, step: int) -> bool:
    """Whether a step has the second view; the same for every process."""
    if objective.view == "none":
        return False
    return objective.view_prob >= 1 or bool(np.random.default_rng((seed, step)).random() < objective.view_prob)


def drawn(objective: Objective, batch: Batch, counts: Bool[Tensor, "rows length"], seed: int) -> View:
    """A view of every document of a batch.

    Args:
        objective: which view, and its largest gap.
        batch: with its step and the numbers of its rows.
        counts: tokens whose label counts; with weights of the data, by these.
        seed: of the training.
    """
    documents = documents_of(batch).cpu()
    amounts = (batch["weights"] * counts if "weights" in batch else counts).float().cpu()
    positions = batch.get("position_ids", torch.arange(documents.shape[1])).cpu().expand_as(documents).clone()
    shares = torch.zeros(documents.shape)
    step, rows = int(batch[STEP]), batch[ROWS].tolist()
    counted = counts.cpu()
    for row, start, last in pieces(batch):
        length = last + 1 - start
        rng = np.random.default_rng((seed, step, rows[row], start))
        piece, own = slice(start, last + 1), slice(start, start + int((documents[row] == documents[row, start]).sum()))
        changed = 0
        if objective.view == "cyclic":
            positions[row, piece] = cyclic_positions(length, int(rng.integers(length)))
        else:
            changed = int(rng.integers(length))
            gap = int(rng.integers(1, (objective.max_skip or length) + 1))
            positions[row, own] = skip_positions(own.stop - start, changed, gap)
        behind = counted[row, piece] & (torch.arange(length) >= changed)
        shares[row, piece][behind] = float(amounts[row, piece].sum()) / int(behind.sum())
    device = batch["input_ids"].device
    return View(positions.to(device), shares.to(device))


def attention_mask(
    attention: str, documents: Int[Tensor, "rows length"], window: int | None = None, sinks: int = 0
) -> Any:
    """`burnish.train.maths.masks.visible` as an implementation of attention in transformers takes it.

    Given in this form a mask is used as it is: none is read out of position ids, where a step would be a border.

    Args:
        attention: its name in transformers: sdpa, eager or flex_attention.
        documents, window, sinks: as there.
    """
    if attention == "flex_attention":
        return _blocks(documents, window, sinks)
    return as_taken(attention, visible(documents, window, sinks)[:, None])


def as_taken(attention: str, seen: Bool[Tensor, "rows heads length length"]) -> Tensor:
    """Which token sees which, as sdpa takes it, or eager, which adds it."""
    if attention == "eager":
        return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, torch.finfo(torch.float32).min)
    return seen


def _blocks(documents: Tensor, window: int | None, sinks: int) -> Any:
    """The mask of flex attention, which leaves out blocks of 128 by 128 that it hides."""
    from torch.nn.attention.flex_attention import create_block_mask

    rows, length = documents.shape
    rule = mask_rule(documents, window, sinks)
    return create_block_mask(rule, rows, None, length, length, device=documents.device.type)


def mask_rule(documents: Int[Tensor, "rows length"], window: int | None, sinks: int) -> Any:
    """`visible` as a function of row, head, query and key."""
    place = places_within(documents)

    def rule(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = (key <= query) & (documents[row, query] == documents[row, key])
        if window is None:
            return seen
        return seen & ((query - key < window) | (place[row, key] < sinks))

    return rule


def longest_document(position_ids: np.ndarray, counts: np.ndarray) -> int:
    """Tokens of the longest document that counts, a stretch of rows at a time, for they may lie on disk."""
    return max(
        _longest(position_ids[start : start + 1024], counts[start : start + 1024])
        for start in range(0, len(counts), 1024)
    )


def _longest(position_ids: np.ndarray, counts: np.ndarray) -> int:
    return int(np.where(counts, position_ids, -1).max()) + 1
