"""Reading texts: the ones that ship with burnish, and a user's own files.

A reference to data is one of

* the name of a shipped text: `wikitext2-valid`, `wikitext2-test`;
* a `.txt` file (one text), a `.jsonl` file (one row a line), a `.json` file (a list of rows, or one a line), each
  perhaps compressed as `.gz`;
* a `.parquet` file with the columns of a row;
* a directory of such files, read in the order of their names;
* a dataset of the hub, `hf://datasets/OWNER/NAME`, see `burnish.data.hub`;
* a list of strings, from Python.

What a row may be stands in `burnish.data.forms`. Chats become text through the tokenizer's template. A row that is
none stops the reading, or is left out and named where that is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint import LINEAGE_FILE
from burnish.core.errors import DataError, nearest
from burnish.core.made_data import ABOUT_FILE
from burnish.core.outside import local_path, parquet_rows, parse_json, read_bytes, read_lines
from burnish.data.chat import written_out
from burnish.data.forms import COLUMNS, Chat, Completion, Marked, Row, as_row
from burnish.data.hub import hub_hash, hub_rows, is_hub
from burnish.data.wikitext import detokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = Path(__file__).parent / "texts"
SHIPPED = {"wikitext2-valid": "wikitext2_valid.txt.gz", "wikitext2-test": "wikitext2_test.txt.gz"}
"""Texts inside the package (CC BY-SA 3.0, see texts/LICENSE.md), detokenised when read."""

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

Data = str | Path | Sequence[str]


def read_texts(data: Data, *, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """The texts behind a reference; chats are written out with the tokenizer's chat template.

    Args:
        data: a shipped name, a file, a directory, or the texts themselves.
        tokenizer: needed for `messages` rows only.

    Raises:
        DataError: missing, empty, not text, malformed (with line number), or chats without a chat template.
    """
    texts = []
    for row in read_rows(data):
        if isinstance(row, str):
            texts.append(row)
            continue
        if tokenizer is None or not tokenizer.chat_template:
            raise DataError(
                "holds chats (`messages`), but the tokenizer has no chat template to write them out with",
                where=_name(data),
                fix="use rows with `text`, or a model with a chat template",
            )
        texts.append(written_out(tokenizer, row, where=_name(data)))
    return texts


def read_rows(data: Data, *, skipped: list[str] | None = None) -> list[Row]:
    """The rows behind a reference, all of them in memory.

    Raises:
        DataError: see `rows_of`.
    """
    return list(rows_of(data, skipped=skipped))


def rows_of(data: Data, *, skipped: list[str] | None = None) -> Iterator[Row]:
    """The rows behind a reference, one after the other: a string for a text, a list of messages for a chat.

    Of files with a row a line, and of parquet files, memory holds some rows only.

    Args:
        data: a shipped name, a file, a directory, or the rows themselves.
        skipped: leave out rows that cannot be read, and put here what is wrong with each and where; None refuses them.

    Returns:
        Of at least one row, unless all were left out.

    Raises:
        DataError: missing, empty, not text, or a row that cannot be read, with its number.
    """
    found: Iterable[Row]
    if not isinstance(data, str | Path):
        found = _as_rows(_numbered(data), skipped)
    elif not str(data).strip():
        raise DataError("an empty name is no data", fix="name a file, a directory or a text that ships with burnish")
    elif str(data) in SHIPPED and not Path(data).exists():
        packed = TEXTS / SHIPPED[str(data)]
        found = [detokenise(_decode(read_bytes(packed), str(packed)))]
    elif is_hub(data):
        found = _as_rows(hub_rows(str(data)), skipped)
    else:
        found = _read_path(local_path(str(data)), str(data), skipped)
    empty = True
    for row in found:
        if row.strip() if isinstance(row, str) else row:
            empty = False
            yield row
    if empty and not skipped:
        raise DataError("holds no text", where=_name(data))


def files_digest(data: str | Path) -> str:
    """sha256 of the files behind a reference, which is quicker than `data_hash` and knows one format from another."""
    digest, path = hashlib.sha256(), local_path(str(data)) or Path(data)
    for file in _files(path):
        with file.open("rb") as content:
            digest.update(f"{file.relative_to(path)} {hashlib.file_digest(content, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def num_bytes(data: Data | None) -> int:
    """Of the files behind a reference; 0 for rows that are in memory already, and where there is none."""
    path = None if not isinstance(data, str | Path) or str(data) in SHIPPED or is_hub(data) else local_path(str(data))
    if path is None:
        return 0
    return sum(file.stat().st_size for file in _files(path))


def data_hash(data: Data) -> str:
    """sha256 over the rows, so that the same text under another name or in another format has the same hash.

    A dataset of the hub is named by its commit, and not read for that. Rows that cannot be read do not count: whether
    they may be left out is for those to say who work with the others, and so is what is wrong where none can be read.
    """
    if is_hub(data):
        return hub_hash(str(data))
    digest = hashlib.sha256()
    for row in rows_of(data, skipped=[]):
        digest.update(row_hash(row).encode())
    return digest.hexdigest()


def row_hash(row: Row) -> str:
    """sha256 of one text or chat, and of what comes with it."""
    beside: list[Any] = []
    if isinstance(row, Chat) and (row.tools or row.first):
        beside = [row.tools, row.first]
    elif isinstance(row, Completion):
        beside = [row.start]
    if isinstance(row, Marked):
        beside += [row.marks]
    content = [row, *beside] if beside else row
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_disjoint(calibration: Data, evaluation: Data) -> None:
    """Refuses to measure on what was calibrated on.

    Raises:
        DataError: the two references hold the same text, or share documents.
    """
    seen = {row_hash(row) for row in rows_of(calibration, skipped=[])}
    shared = sum(row_hash(row) in seen for row in rows_of(evaluation, skipped=[]))
    if shared:
        raise DataError(
            f"shares {shared} of its texts with {_name(calibration)}, which the model is made with, so what it "
            "measures would be too good",
            where=_name(evaluation),
            fix="measure on other texts",
        )


def _name(data: Data) -> str:
    return str(data) if isinstance(data, str | Path) else "the given texts"


def _numbered(rows: Sequence[Any]) -> Iterator[tuple[Any, str]]:
    """What a Python caller gave, with names for it; a list is the messages of a chat."""
    for number, row in enumerate(rows, start=1):
        yield (
            {"text": row} if isinstance(row, str) else {"messages": row} if isinstance(row, list) else row,
            f"text {number}",
        )


def _as_rows(found: Iterable[tuple[Any, str]], skipped: list[str] | None) -> Iterator[Row]:
    """(row, where) as texts and chats. A row may also be a function that gives it, and raises where it cannot."""
    for row, where in found:
        try:
            yield as_row(row() if callable(row) else row, where=where)
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(str(error))


def _read_path(path: Path | None, name: str, skipped: list[str] | None) -> Iterator[Row]:
    if path is None or not path.exists():
        guess = nearest(name, list(SHIPPED))
        advice = f"did you mean {guess!r}?" if guess else f"texts that ship with burnish are {', '.join(SHIPPED)}"
        raise DataError("no such file or text", where=name, fix=advice)
    if path.is_dir():
        found = (file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
        files = sorted(
            file for file in found if file.name not in (LINEAGE_FILE, ABOUT_FILE)
        )  # beside rows that a stage has made
        if not files:
            raise DataError(f"has no files of the kinds {', '.join(SUFFIXES)}", where=str(path))
        for file in files:
            yield from _read_path(file, str(file), skipped)
    elif not path.name.endswith(SUFFIXES):
        raise DataError("is of no kind that can be read", where=str(path), fix=f"use {', '.join(SUFFIXES)}")
    elif path.suffix == ".parquet":
        rows = enumerate(parquet_rows(path, COLUMNS), start=1)
        yield from _as_rows(((row, f"{path}, row {number}") for number, row in rows), skipped)
    elif path.name.endswith((".json", ".json.gz", ".jsonl", ".jsonl.gz")):
        yield from _as_rows(_json_rows(path), skipped)
    else:
        yield _decode(read_bytes(path), str(path))


def _decode(content: bytes, where: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte {error.start:,} cannot be read)", where=where) from None
    if "\0" in text:
        raise DataError("is a binary file, not text", where=where)
    return text


def _json_rows(path: Path) -> Iterator[tuple[Any, str]]:
    """The rows of a list, or one a line."""
    lines: Iterable[bytes] = read_lines(path)
    if ".jsonl" not in path.name:
        content = read_bytes(path)
        text = _decode(content, str(path))
        if text.lstrip().startswith("["):
            for number, row in enumerate(parse_json(text, where=str(path), error=DataError), start=1):
                yield row, f"{path}, row {number}"
            return
        lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield partial(_parsed, line, where), where


def _parsed(line: bytes, where: str) -> Any:
    return parse_json(_decode(line, where), where=where, error=DataError)
