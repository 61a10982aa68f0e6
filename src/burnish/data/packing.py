"""Documents packed into rows of one length, for training, so that no document sees another.

A document of n tokens is n - 1 pairs of an input and the token to predict from it. Long documents are cut into pieces
of at most one row (no pair is lost at a cut), and pieces are packed by best fit: the longest first, each into the row
with the least room that takes it. Position ids start again with every piece; transformers keeps pieces apart from that
alone, as long as no attention mask and no cache are given.

What large data comes to lies in files that are mapped, not read: memory holds the sizes of the pieces and one batch.

Packing by best fit: Fewer Truncations Improve Language Modeling (2024, arXiv:2404.10830).
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from burnish.core.errors import DataError
from burnish.data.chat import chat_tokens
from burnish.data.forms import Chat, Completion, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Target of a position whose next token is not trained on."""

Overlong = Literal["auto", "split", "truncate", "drop", "refuse"]


@dataclass(frozen=True)
class Document:
    """Tokens of one text or chat, and which of them are to be predicted.

    Attributes:
        tokens: token ids.
        supervised: whether the token counts in the loss; the first never does, nothing predicts it.
        is_chat: what a cut may make worthless.
    """

    tokens: Int[np.ndarray, " length"]
    supervised: Bool[np.ndarray, " length"]
    is_chat: bool = False


@dataclass(frozen=True)
class PackedRows:
    """Rows of equal length, ready for a model.

    Attributes:
        input_ids: token ids.
        targets: the token to predict at each position, or -100.
        position_ids: from 0 in every piece.
        used: number of positions of each row that are not padding (padding is at the end).
        apart: whether a row holds more than one piece.
    """

    input_ids: Int[np.ndarray, "rows length"]
    targets: Int[np.ndarray, "rows length"]
    position_ids: Int[np.ndarray, "rows length"]
    used: Int[np.ndarray, " rows"]
    apart: Bool[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def length(self) -> int:
        return self.input_ids.shape[1]

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss."""
        return int((self.targets != IGNORED).sum())

    @property
    def hash(self) -> str:
        """sha256 of the content."""
        digest = hashlib.sha256()
        for array in (self.input_ids, self.targets, self.position_ids):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """A batch: `input_ids`, `targets`, and `position_ids` where a row holds several pieces.

        Columns that are padding in every row are left out. Without position ids models use their fastest attention.
        """
        chosen = np.asarray(rows)
        length = int(self.used[chosen].max())
        batch = {
            "input_ids": torch.from_numpy(self.input_ids[chosen, :length].astype(np.int64)),
            "targets": torch.from_numpy(self.targets[chosen, :length].astype(np.int64)),
        }
        if self.apart[chosen].any():
            batch["position_ids"] = torch.from_numpy(self.position_ids[chosen, :length].astype(np.int64))
        return batch

    def split(self, count: int) -> tuple[PackedRows, PackedRows]:
        """The first rows, and the last `count` of them."""
        cut = len(self) - count
        parts = [getattr(self, field.name) for field in fields(self)]
        return PackedRows(*(part[:cut] for part in parts)), PackedRows(*(part[cut:] for part in parts))

    def spread(self, most: int | None) -> PackedRows:
        """All rows, or `most` of them that are spread evenly where there are more."""
        if most is None or most >= len(self):
            return self
        places = np.linspace(0, len(self) - 1, most).round().astype(int)
        return PackedRows(*(getattr(self, field.name)[places] for field in fields(self)))

    @classmethod
    def mapped(cls, directory: Path) -> PackedRows:
        """What `pack` has written into a directory."""
        return cls(*(np.load(_file(directory, field.name), mmap_mode="r") for field in fields(cls)))


def documents(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row], *, where: str = "data", skipped: list[str] | None = None
) -> Iterator[Document]:
    """Texts and chats as tokens: of a text every token counts, of a chat what the assistant says.

    A text is given the tokens that the tokenizer puts in front by itself (often none) and its end-of-sequence token.

    Args:
        tokenizer: of the model.
        rows: from `burnish.data.rows_of`.
        where: what error messages call the data.
        skipped: leave out chats that cannot be used, and put here what is wrong with each; None refuses them.

    Raises:
        DataError: a chat that the tokenizer's template cannot write out, or that has nothing to learn from.
    """
    prefix: list[int] = tokenizer("", add_special_tokens=True)["input_ids"]
    end = tokenizer.eos_token_id
    prefix = [token for token in prefix if token != end]
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            ids, counts = _text_tokens(tokenizer, row, where=f"{where}, text {number}")
            after = [end] if isinstance(end, int) else []
            tokens = np.array([*prefix, *ids, *after])
            yield Document(tokens, np.array([*[counts.all()] * len(prefix), *counts, *[True] * len(after)]))
            continue
        try:
            place = row.where if isinstance(row, Chat) else ""
            tokens, counts = chat_tokens(tokenizer, row, where=place or f"{where}, chat {number}")
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(str(error))
            continue
        yield Document(tokens, counts, is_chat=True)


def _text_tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, where: str) -> tuple[list[int], np.ndarray]:
    """Token ids, and which of them count: all, or those that begin in the completion."""
    start = text.start if isinstance(text, Completion) else 0
    if start and not tokenizer.is_fast:
        raise DataError("needs a fast tokenizer to find where the completion begins", where=where)
    encoded = tokenizer(
        str(text),
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=bool(start),
        verbose=False,
    )
    ids: list[int] = encoded["input_ids"]
    if not start:
        return ids, np.ones(len(ids), dtype=bool)
    return ids, np.array(encoded["offset_mapping"]).reshape(-1, 2)[:, 0] >= start


def pack(
    found: Iterable[Document],
    length: int,
    *,
    overlong: Overlong = "split",
    where: str = "data",
    padding: int = 0,
    directory: Path | None = None,
) -> PackedRows:
    """Documents in rows of `length` positions; the order of rows follows the first document of each.

    Args:
        found: from `documents`.
        length: positions of a row, the context of the training.
        overlong: what happens to a document that does not fit: cut into pieces, cut off, left out, or an error; auto
            cuts texts and refuses chats.
        where: what error messages call the data.
        padding: token id at unused positions; the model never predicts from them.
        directory: where the rows are written, for `PackedRows.mapped`; None keeps them in memory.

    Raises:
        DataError: a document is too long and `overlong` is "refuse", or nothing is left to train on.
    """
    pieces = _Pieces(directory)
    for number, document in enumerate(found, start=1):
        inputs = document.tokens[:-1]
        targets = np.where(document.supervised[1:], document.tokens[1:], IGNORED)
        rule = overlong if overlong != "auto" else "refuse" if document.is_chat else "split"
        if len(inputs) > length and rule == "refuse":
            raise DataError(
                f"document {number} has {len(document.tokens):,} tokens, but the context is {length:,}",
                where=where,
                fix="raise the context, or set overlong to split, truncate or drop",
            )
        if len(inputs) > length and rule == "drop":
            continue
        last = length if rule == "truncate" else len(inputs)
        for start in range(0, min(last, len(inputs)), length):
            piece = slice(start, min(start + length, last))
            if (targets[piece] != IGNORED).any():
                pieces.append(inputs[piece], targets[piece])
    if not pieces.sizes:
        raise DataError("holds nothing to train on", where=where)
    return pieces.laid_out(length, padding)


def pieces(batch: Mapping[str, Tensor]) -> Iterator[tuple[int, int, int]]:
    """Row, first position and last position that counts of every piece of a batch, those without any left out."""
    counts, positions = (batch["targets"] != IGNORED).cpu(), batch.get("position_ids")
    for row, counted in enumerate(counts):
        begins = [0] if positions is None else (positions[row] == 0).nonzero()[:, 0].tolist()
        for start, end in zip(begins, [*begins[1:], len(counted)], strict=True):
            places = counted[start:end].nonzero()[:, 0]
            if len(places):
                yield row, start, start + int(places[-1])


class _Pieces:
    """Inputs and targets one after the other, 8 bytes a position, in memory or in files of a directory."""

    def __init__(self, directory: Path | None) -> None:
        self.directory, self.sizes = directory, list[int]()
        names = ("inputs", "targets")
        self._flat = [BytesIO() if directory is None else (directory / f"{name}.flat").open("wb+") for name in names]

    def append(self, *parts: np.ndarray) -> None:
        self.sizes.append(len(parts[0]))
        for file, part in zip(self._flat, parts, strict=True):
            file.write(part.astype(np.int32).tobytes())

    def laid_out(self, length: int, padding: int) -> PackedRows:
        """In rows; the files of the pieces are gone."""
        inputs, wanted = (self._read(file) for file in self._flat)
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        rows = _best_fit(self.sizes, length)
        input_ids, targets, position_ids = (
            self._array(name, (len(rows), length), np.int32) for name in ("input_ids", "targets", "position_ids")
        )
        used = self._array("used", (len(rows),), np.int64)
        apart = self._array("apart", (len(rows),), np.bool_)
        for number, row in enumerate(rows):
            start = end = 0
            for piece in row:
                start, end = end, end + self.sizes[piece]
                place = slice(starts[piece], starts[piece + 1])
                input_ids[number, start:end], targets[number, start:end] = inputs[place], wanted[place]
                position_ids[number, start:end] = np.arange(end - start)
            input_ids[number, end:], targets[number, end:] = padding, IGNORED
            # Padding goes on counting: it comes last, so it can see the last piece but is never predicted from.
            position_ids[number, start:] = np.arange(length - start)
            used[number], apart[number] = end, len(row) > 1
        del inputs, wanted
        for file in self._flat:
            file.close()
            if self.directory is not None:
                Path(str(file.name)).unlink()
        return PackedRows(input_ids, targets, position_ids, used, apart)

    def _read(self, file: Any) -> np.ndarray:
        if self.directory is None:
            return np.frombuffer(file.getbuffer(), dtype=np.int32)
        file.flush()
        return np.memmap(file, dtype=np.int32, mode="r")

    def _array(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
        if self.directory is None:
            return np.empty(shape, dtype)
        return np.lib.format.open_memmap(_file(self.directory, name), mode="w+", dtype=dtype, shape=shape)


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.npy"


def _best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the pieces in each row."""
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room left -> rows with exactly that
    rooms: list[int] = []  # the keys of by_room that are not empty, sorted
    for piece in sorted(range(len(sizes)), key=lambda piece: (-sizes[piece], piece)):
        size = sizes[piece]
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            rows.append([])
            row, room = len(rows) - 1, capacity
        else:
            room = rooms[place]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room]
                rooms.pop(place)
        rows[row].append(piece)
        left = room - size
        if left:
            if left not in by_room:
                by_room[left] = []
                bisect.insort(rooms, left)
            by_room[left].append(row)
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])
