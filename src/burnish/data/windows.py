"""Texts cut into windows of tokens: for evaluation, in order, and for calibration, drawn with a seed.

Windows do not overlap, and no special tokens are added inside a text. Several texts are laid end to end with the
tokenizer's end-of-sequence token between them, as in pre-training, so a window may span two documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from burnish.core.errors import DataError
from burnish.data.read import Data, read_texts

if TYPE_CHECKING:  # a file is hashed by commands that compute nothing and start without torch
    import torch
    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Slice:
    """Windows of tokens, and how much text they stand for.

    Attributes:
        tokens: token ids, one window a row.
        num_bytes: UTF-8 bytes behind the tokens that a model predicts in each window (all but the first).
    """

    tokens: Int[Tensor, "num length"]
    num_bytes: Int[Tensor, " num"]


def cut(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    length: int,
    *,
    num_windows: int | None = None,
    max_chars: int | None = None,
    where: str = "text",
) -> Slice:
    """The first `num_windows` non-overlapping windows of `length` tokens.

    Args:
        tokenizer: turns text into token ids; its special tokens are not added.
        texts: laid end to end in this order.
        length: tokens per window.
        num_windows: how many are wanted; None takes all that are whole.
        max_chars: the texts are cut here before tokenising.
        where: what error messages call the text.

    Raises:
        DataError: the text has fewer tokens than asked for; the message says how many.
    """
    import torch

    ids, num_bytes = _tokenise(
        tokenizer, texts, max_chars=max_chars, enough=length * num_windows if num_windows else None
    )
    wanted = length * (num_windows or 1)
    if len(ids) < wanted:
        limit = f" in its first {max_chars:,} characters" if max_chars and sum(map(len, texts)) > max_chars else ""
        raise DataError(
            f"has {len(ids):,} tokens{limit}, but {num_windows or 1} windows of {length:,} need {wanted:,}",
            where=where,
            fix="use a longer text, fewer windows or a shorter context",
        )
    count = num_windows or len(ids) // length
    tokens = torch.tensor(ids[: count * length]).view(count, length)
    sizes = torch.tensor(num_bytes[: count * length]).view(count, length)
    return Slice(tokens, sizes[:, 1:].sum(dim=1))


def windows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    length: int,
    max_tokens: int | None = None,
    *,
    max_chars: int | None = None,
    where: str = "text",
) -> Int[Tensor, "num length"]:
    """Non-overlapping windows in order; at most `max_tokens` tokens, or fewer where the text is shorter.

    Raises:
        DataError: the text does not fill one window, or `max_tokens` is less than one window.
    """
    if max_tokens is not None and max_tokens < length:
        raise DataError(f"{max_tokens:,} tokens do not fill one window of {length:,}", where=where)
    tokens = cut(tokenizer, texts, length, max_chars=max_chars, where=where).tokens
    return tokens if max_tokens is None else tokens[: max_tokens // length]


def calibration(
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    *,
    length: int = 512,
    max_tokens: int = 65_536,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "num length"]:
    """Windows to collect statistics from: `max_tokens // length` of them, drawn without replacement, in text order.

    Args:
        tokenizer: of the model to calibrate.
        data: a shipped text, a file, a directory or a list of strings (see `read_texts`).
        length: tokens per window.
        max_tokens: tokens in all; a shorter text gives as many whole windows as it has.
        generator: the source of the choice; without one the first windows are taken.

    Raises:
        DataError: nothing to read, or less text than one window.
    """
    import torch

    where = "calibration text" if not isinstance(data, str) else data
    every = windows(tokenizer, read_texts(data, tokenizer=tokenizer), length, where=where)
    count = min(len(every), max_tokens // length)
    if count == 0:
        raise DataError(f"{max_tokens:,} tokens do not fill one window of {length:,}", where=where)
    if generator is None:
        return every[:count]
    chosen = torch.randperm(len(every), generator=generator)[:count].sort().values
    return every[chosen]


def _tokenise(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_chars: int | None, enough: int | None
) -> tuple[list[int], list[int]]:
    """Token ids of all texts, and for every token the UTF-8 bytes of text it stands for.

    Stops early once it has `enough` tokens, which saves tokenising a large file for a few windows.
    """
    ids: list[int] = []
    sizes: list[int] = []
    remaining = max_chars
    end = tokenizer.eos_token_id
    for number, text in enumerate(texts):
        if remaining is not None:
            text = text[:remaining]
            remaining -= len(text)
        if not text:
            continue
        if number and isinstance(end, int):
            ids.append(end)
            sizes.append(0)
        new_ids, new_sizes = _tokenise_one(tokenizer, text)
        ids += new_ids
        sizes += new_sizes
        if enough is not None and len(ids) >= enough:
            break
    return ids, sizes


def _tokenise_one(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[int]]:
    has_offsets = bool(tokenizer.is_fast)
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=has_offsets,
        return_attention_mask=False,
        verbose=False,
    )
    ids: list[int] = encoded["input_ids"]
    if not has_offsets:  # no offsets; exact wherever a token stands for whole characters
        return ids, [len(str(tokenizer.decode([token])).encode()) for token in ids]
    # From end to end, so that a space which the offsets leave out is counted with the word that follows, and a
    # character made of several tokens is counted once.
    ends = np.maximum.accumulate(np.array([0, *(end for _, end in encoded["offset_mapping"])]))
    return ids, np.diff(_byte_positions(text)[ends]).tolist()


def _byte_positions(text: str) -> np.ndarray:
    """Offset in UTF-8 bytes of every character boundary of the text."""
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])
