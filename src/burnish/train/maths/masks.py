"""Which token sees which, of rows that hold one document or several.

    causal         j <= i, both in one document
    window, sinks  and (i - j < window, or j is one of the first `sinks` tokens of the document)

A token sees itself and window - 1 tokens before it. Without sinks the attention of trained models has nowhere to put
what it gives to no token (Efficient Streaming Language Models with Attention Sinks, 2023, arXiv:2309.17453).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def document_numbers(position_ids: Int[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """The document of each token, from 0 in every row: one begins where positions do not go on by one."""
    begins = torch.nn.functional.pad(position_ids.diff(dim=1) != 1, (1, 0))
    return begins.cumsum(dim=1)


def places_within(documents: Int[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """How many tokens of its document stand before each token."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.nn.functional.pad(documents.diff(dim=1) != 0, (1, 0), value=True)
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def visible(
    documents: Int[Tensor, "rows length"], window: int | None = None, sinks: int = 0
) -> Bool[Tensor, "rows length length"]:
    """Whether token i (second dimension) sees token j (third)."""
    place = torch.arange(documents.shape[1], device=documents.device)
    behind = place[:, None] - place
    seen = (behind >= 0) & (documents[:, :, None] == documents[:, None])
    if window is None:
        return seen
    near = (behind < window)[None]
    return seen & (near | (places_within(documents) < sinks)[:, None] if sinks else near)
