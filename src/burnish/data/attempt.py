"""Data tried on a tokenizer before any work starts: the first rows, and whether a text fills one window."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from burnish.core.errors import DataError
from burnish.data.packing import documents
from burnish.data.read import Data, read_texts, rows_of
from burnish.data.windows import cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 8
CHARS_PER_TOKEN = 8
"""More than any tokenizer puts into one on the average; a longer text need not be tokenised whole."""


def try_rows(
    tokenizer: PreTrainedTokenizerBase, data: Data, config: Any, *, where: str, skip_bad: bool = False
) -> None:
    """Tokenises the first rows, chats through the template.

    Args:
        tokenizer: that will be there.
        data: of a stage.
        config: of the model, whose embeddings must have a row for every token.
        where: what messages call the data.
        skip_bad: rows that cannot be used are left out, as long as one can be.

    Raises:
        DataError: as `documents`, or a token that the model does not have.
    """
    name = data if isinstance(data, str) else where
    skipped: list[str] | None = [] if skip_bad else None
    first = islice(rows_of(data, skipped=skipped), ROWS)
    found = list(documents(tokenizer, first, where=name, skipped=skipped))
    if not found:
        raise DataError(f"none of the first rows can be used; the first: {skipped[0] if skipped else ''}", where=name)
    check_ids((int(token) for document in found for token in document.tokens), config)


def try_window(
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    length: int,
    config: Any,
    *,
    num_windows: int = 1,
    max_chars: int | None = None,
    where: str = "text",
) -> None:
    """Whether a text fills the windows that are cut from it.

    Raises:
        DataError: it is too short, its chats cannot be written out, or the model does not have one of its tokens.
    """
    texts = read_texts(data, tokenizer=tokenizer)
    some = min(CHARS_PER_TOKEN * length * num_windows, max_chars or sum(map(len, texts)))
    name = data if isinstance(data, str) else where
    if sum(map(len, texts)) > some:
        try:
            tokens = cut(tokenizer, texts, length, num_windows=num_windows, max_chars=some, where=name).tokens
        except DataError:  # tokens of many characters: the whole text decides
            tokens = cut(tokenizer, texts, length, num_windows=num_windows, max_chars=max_chars, where=name).tokens
    else:
        tokens = cut(tokenizer, texts, length, num_windows=num_windows, max_chars=max_chars, where=name).tokens
    check_ids(tokens.flatten().tolist(), config)


def check_ids(ids: Iterable[int], config: Any) -> None:
    """Refuses token ids beyond the embedding: the tokenizer belongs to another model."""
    known = config.get_text_config().vocab_size
    largest = max(ids, default=0)
    if largest >= known:
        raise DataError(
            f"the tokenizer makes token id {largest:,}, but the model has {known:,} embeddings",
            fix="use the tokenizer that the model was trained with",
        )


def check_length(length: int, default: int, config: Any, *, name: str = "length") -> None:
    """Refuses windows that were asked for and are longer than the model's positions; a default is cut to fit."""
    from burnish.core.errors import SettingsError

    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if longest is not None and length > longest and length != default:
        raise SettingsError(
            f"{name} is {length:,}, but the model's positions end at {longest:,}", where=name, fix=f"use {longest}"
        )
