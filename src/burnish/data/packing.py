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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.core.checkpoint import tokenizer_digest
from burnish.core.errors import DataError
from burnish.data.chat import chat_tokens
from burnish.data.forms import Chat, Completion, Marked, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Target of a position whose next token is not trained on."""

MARKS: dict[str, tuple[type[np.generic], float]] = {
    "kinds": (np.int32, 0),
    "opens": (np.int32, 0),
    "weights": (np.float32, 1),
}
"""{what is known of a target: (its type, what an unmarked one has)}: what kind of token it is
(`burnish.data.trajectories.kinds`), 1 where it opens a turn, and its weight in the loss, below 0 where it is to be
unlearned."""

Overlong = Literal["auto", "split", "truncate", "drop", "refuse"]


@dataclass(frozen=True)
class Document:
    """Tokens of one text or chat, and which of them are to be predicted.

    Attributes:
        tokens: token ids.
        supervised: whether the token counts in the loss; the first never does, nothing predicts it.
        is_chat: what a cut may make worthless.
        marks: what else is known of each token, by the names of `MARKS`; None for a text or an ordinary chat.
    """

    tokens: Int[np.ndarray, " length"]
    supervised: Bool[np.ndarray, " length"]
    is_chat: bool = False
    marks: Mapping[str, np.ndarray] | None = None


@dataclass(frozen=True)
class PackedRows:
    """Rows of equal length, ready for a model.

    Attributes:
        input_ids: token ids.
        targets: the token to predict at each position, or -100.
        position_ids: from 0 in every piece.
        used: number of positions of each row that are not padding (padding is at the end).
        apart: whether a row holds more than one piece.
        kinds, opens, weights: of the targets, see `MARKS`; None where no document has marks.
    """

    input_ids: Int[np.ndarray, "rows length"]
    targets: Int[np.ndarray, "rows length"]
    position_ids: Int[np.ndarray, "rows length"]
    used: Int[np.ndarray, " rows"]
    apart: Bool[np.ndarray, " rows"]
    kinds: Int[np.ndarray, "rows length"] | None = None
    opens: Int[np.ndarray, "rows length"] | None = None
    weights: Float[np.ndarray, "rows length"] | None = None

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
        for array in (self.input_ids, self.targets, self.position_ids, *self._marks().values()):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def is_weighted(self) -> bool:
        """Whether tokens count differently in the loss."""
        return self.weights is not None and bool((self.weights[self.targets != IGNORED] != 1).any())

    @property
    def unlearns(self) -> bool:
        """Whether there are tokens to unlearn, whose weight is below 0."""
        return self.weights is not None and bool((self.weights[self.targets != IGNORED] < 0).any())

    def _marks(self) -> dict[str, np.ndarray]:
        found = {name: getattr(self, name) for name in MARKS}
        return {name: array for name, array in found.items() if array is not None}

    def _with(self, change: Callable[[np.ndarray], np.ndarray]) -> PackedRows:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(array) for name, array in found.items() if array is not None})

    def take(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """A batch: `input_ids`, `targets`, `position_ids` where a row holds several pieces, and what marks there are.

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
        for name, array in self._marks().items():
            batch[name] = torch.from_numpy(array[chosen, :length].copy())
        return batch

    def split(self, count: int) -> tuple[PackedRows, PackedRows]:
        """The first rows, and the last `count` of them."""
        cut = len(self) - count
        return self._with(lambda part: part[:cut]), self._with(lambda part: part[cut:])

    def chosen(self, rows: Sequence[int]) -> PackedRows:
        """The rows of these numbers, in memory; a number may be there more than once."""
        places = np.asarray(rows, dtype=np.int64)
        return self._with(lambda part: part[places])

    def followed_by(self, others: PackedRows) -> PackedRows:
        """These rows and then others of the same length; what has no marks counts as it would without them."""
        known = {name for one in (self, others) for name in one._marks()}

        def column(one: PackedRows, name: str) -> np.ndarray:
            found = getattr(one, name)
            if found is None:
                kind, unmarked = MARKS[name]
                found = np.full(one.targets.shape, unmarked, dtype=kind)
            return found

        names = [field.name for field in fields(self) if field.name not in MARKS or field.name in known]
        return PackedRows(**{name: np.concatenate([column(one, name) for one in (self, others)]) for name in names})

    def spread(self, most: int | None) -> PackedRows:
        """All rows, or `most` of them that are spread evenly where there are more."""
        if most is None or most >= len(self):
            return self
        return self.chosen(np.linspace(0, len(self) - 1, most).round().astype(int).tolist())

    @classmethod
    def mapped(cls, directory: Path) -> PackedRows:
        """What `pack` has written into a directory."""
        names = [
            field.name for field in fields(cls) if field.name not in MARKS or _file(directory, field.name).is_file()
        ]
        return cls(**{name: np.load(_file(directory, name), mmap_mode="r") for name in names})


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
    end, vocabulary = tokenizer.eos_token_id, ""
    prefix = [token for token in prefix if token != end]
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            ids, counts = _text_tokens(tokenizer, row, where=f"{where}, text {number}")
            after = [end] if isinstance(end, int) else []
            tokens = np.array([*prefix, *ids, *after])
            yield Document(tokens, np.array([*[counts.all()] * len(prefix), *counts, *[True] * len(after)]))
            continue
        if isinstance(row, Marked):
            vocabulary = vocabulary or tokenizer_digest(tokenizer, chats=False)
            yield _marked(row, vocabulary)
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


def _marked(row: Marked, vocabulary: str) -> Document:
    """What is settled already, for this tokenizer alone."""
    if row.tokenizer not in ("", vocabulary):
        raise DataError(
            "has token ids of another tokenizer",
            where=row.where,
            fix="make the rows again for this model: burnish data trajectories --tokenizer MODEL",
        )
    ids = np.array(row.marks["input_ids"], dtype=np.int64)
    counts = np.array(row.marks["labels"], dtype=np.int64) != IGNORED
    turns = np.array(row.marks.get("turn", np.zeros(len(ids))), dtype=np.int32)
    before = np.concatenate([[-1], turns[:-1]])
    return Document(
        ids,
        counts,
        is_chat=True,
        marks={
            "kinds": np.array(row.marks.get("kind", np.zeros(len(ids))), dtype=np.int32),
            "opens": (counts & (turns != before)).astype(np.int32),
            "weights": np.array(row.marks.get("weights", np.ones(len(ids))), dtype=np.float32),
        },
    )


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
                marks = document.marks and {name: array[1:][piece] for name, array in document.marks.items()}
                pieces.append(inputs[piece], targets[piece], marks)
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
    """Inputs and targets one after the other, 8 bytes a position, in memory or in files of a directory; marks too, from
    the first piece on that has some.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory, self.sizes = directory, list[int]()
        self._flat = {name: self._open(name) for name in ("inputs", "targets")}

    def _open(self, name: str) -> Any:
        return BytesIO() if self.directory is None else (self.directory / f"{name}.flat").open("wb+")

    def append(self, inputs: np.ndarray, targets: np.ndarray, marks: Mapping[str, np.ndarray] | None = None) -> None:
        if marks is not None and len(self._flat) == 2:
            for name, (kind, plain) in MARKS.items():
                self._flat[name] = self._open(name)
                for size in self.sizes:
                    self._flat[name].write(np.full(size, plain, kind).tobytes())
        self.sizes.append(len(inputs))
        self._flat["inputs"].write(inputs.astype(np.int32).tobytes())
        self._flat["targets"].write(targets.astype(np.int32).tobytes())
        for name in list(self._flat)[2:]:
            kind, plain = MARKS[name]
            part = np.full(len(inputs), plain) if marks is None else marks[name]
            self._flat[name].write(part.astype(kind).tobytes())

    def laid_out(self, length: int, padding: int) -> PackedRows:
        """In rows; the files of the pieces are gone."""
        flat = {name: self._read(name) for name in self._flat}
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        rows = _best_fit(self.sizes, length)
        input_ids, targets, position_ids = (
            self._array(name, (len(rows), length), np.int32) for name in ("input_ids", "targets", "position_ids")
        )
        used = self._array("used", (len(rows),), np.int64)
        apart = self._array("apart", (len(rows),), np.bool_)
        marks = {name: self._array(name, (len(rows), length), MARKS[name][0]) for name in list(flat)[2:]}
        for number, row in enumerate(rows):
            start = end = 0
            for piece in row:
                start, end = end, end + self.sizes[piece]
                place = slice(starts[piece], starts[piece + 1])
                input_ids[number, start:end], targets[number, start:end] = flat["inputs"][place], flat["targets"][place]
                for name, array in marks.items():
                    array[number, start:end] = flat[name][place]
                position_ids[number, start:end] = np.arange(end - start)
            input_ids[number, end:], targets[number, end:] = padding, IGNORED
            # Padding goes on counting: it comes last, so it can see the last piece but is never predicted from.
            position_ids[number, start:] = np.arange(length - start)
            used[number], apart[number] = end, len(row) > 1
            for array in marks.values():
                array[number, end:] = 0
        del flat
        for file in self._flat.values():
            file.close()
            if self.directory is not None:
                Path(str(file.name)).unlink()
        return PackedRows(input_ids, targets, position_ids, used, apart, **marks)

    def _read(self, name: str) -> np.ndarray:
        file, kind = self._flat[name], MARKS[name][0] if name in MARKS else np.int32
        if self.directory is None:
            return np.frombuffer(file.getbuffer(), dtype=kind)
        file.flush()
        return np.memmap(file, dtype=kind, mode="r")

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
