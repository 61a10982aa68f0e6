"""Reading texts: the ones that ship with burnish, and a user's own files.

A reference to data is one of

* the name of a shipped text: `wikitext2-valid`, `wikitext2-test`;
* a `.txt` file (one text), a `.jsonl` file (one row a line, with `text` or `messages`), either compressed as `.gz`;
* a `.parquet` file with a column `text` or `messages`;
* a directory of such files, read in the order of their names;
* a list of strings, from Python.

`messages` rows are chats in the form that chat templates take; they become text through the tokenizer's template.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.errors import DataError, nearest
from burnish.core.outside import local_path, parquet_rows, parse_json, read_bytes
from burnish.data.chat import written_out
from burnish.data.wikitext import detokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = Path(__file__).parent / "texts"
SHIPPED = {"wikitext2-valid": "wikitext2_valid.txt.gz", "wikitext2-test": "wikitext2_test.txt.gz"}
"""Texts inside the package (CC BY-SA 3.0, see texts/LICENSE.md), detokenised when read."""

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")

Data = str | Path | Sequence[str]
Row = str | list[dict[str, Any]]


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


def read_rows(data: Data) -> list[Row]:
    """The rows behind a reference as they are: a string for a text, a list of messages for a chat."""
    if not isinstance(data, str | Path):
        rows: list[Row] = [_row({"text": row, "messages": row}, where=f"text {n}") for n, row in enumerate(data, 1)]
    elif not str(data).strip():
        raise DataError("an empty name is no data", fix="name a file, a directory or a text that ships with burnish")
    elif str(data) in SHIPPED and not Path(data).exists():
        packed = TEXTS / SHIPPED[str(data)]
        rows = [detokenise(_decode(read_bytes(packed), packed))]
    else:
        rows = _read_path(local_path(str(data)), str(data))
    rows = [row for row in rows if (row.strip() if isinstance(row, str) else row)]
    if not rows:
        raise DataError("holds no text", where=_name(data))
    return rows


def data_hash(data: Data) -> str:
    """sha256 over the rows, so that the same text under another name or in another format has the same hash."""
    digest = hashlib.sha256()
    for row in read_rows(data):
        digest.update(row_hash(row).encode())
    return digest.hexdigest()


def row_hash(row: Row) -> str:
    """sha256 of one text or chat."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def check_disjoint(calibration: Data, evaluation: Data) -> None:
    """Refuses to measure on what was calibrated on.

    Raises:
        DataError: the two references hold the same text, or share documents.
    """
    seen = {row_hash(row) for row in read_rows(calibration)}
    shared = sum(row_hash(row) in seen for row in read_rows(evaluation))
    if shared:
        raise DataError(
            f"shares {shared} of its texts with {_name(calibration)}, which the model is made with, so what it "
            "measures would be too good",
            where=_name(evaluation),
            fix="measure on other texts",
        )


def _name(data: Data) -> str:
    return str(data) if isinstance(data, str | Path) else "the given texts"


def _read_path(path: Path | None, name: str) -> list[Row]:
    if path is None or not path.exists():
        guess = nearest(name, list(SHIPPED))
        advice = f"did you mean {guess!r}?" if guess else f"texts that ship with burnish are {', '.join(SHIPPED)}"
        raise DataError("no such file or text", where=name, fix=advice)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
        if not files:
            raise DataError(f"has no files of the kinds {', '.join(SUFFIXES)}", where=str(path))
        return [row for file in files for row in _read_path(file, str(file))]
    if not path.name.endswith(SUFFIXES):
        raise DataError("is of no kind that can be read", where=str(path), fix=f"use {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    text = _decode(read_bytes(path), path)
    if ".jsonl" in path.name:
        return _read_json_lines(text, path)
    return [text]


def _decode(content: bytes, path: Path) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8 text (byte {error.start:,} cannot be read)", where=str(path)) from None
    if "\0" in text:
        raise DataError("is a binary file, not text", where=str(path))
    return text


def _read_json_lines(text: str, path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        rows.append(_row(parse_json(line, where=where, error=DataError), where=where))
    return rows


def _read_parquet(path: Path) -> list[Row]:
    rows = parquet_rows(path, ("text", "messages"))
    return [_row(row, where=f"{path}, row {number}") for number, row in enumerate(rows, start=1)]


def _row(row: Any, *, where: str) -> Row:
    """Checks one row: a string under `text`, or a list of {role, content} under `messages`."""
    if isinstance(row, dict) and isinstance(row.get("text"), str):
        return row["text"]
    messages = row.get("messages") if isinstance(row, dict) else None
    if isinstance(messages, list) and all(_is_message(part) for part in messages):
        return messages
    raise DataError("has neither `text` (a string) nor `messages` (a list of {role, content})", where=where)


def _is_message(part: Any) -> bool:
    """Whether it is {role, content, ...} in the types of JSON."""
    if not isinstance(part, dict) or not isinstance(part.get("role"), str) or "content" not in part:
        return False
    try:
        json.dumps(part)
    except (TypeError, ValueError):
        return False  # a date or bytes, out of a parquet file
    return True
