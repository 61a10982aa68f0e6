"""Preference files: reading them, and refusing pairs that carry no preference.

A pair is a row with `chosen` and `rejected`, and usually `prompt`; each is a string, or a list of chat messages
{role, content} as TRL's conversational format has it. A row without `prompt` must hold the prompt at the start of both
answers. Other columns are kept, and the shapes of well-known data sets are read as they are (`preference_shapes`).
Files are JSON lines (also .gz), JSON arrays or parquet; anything else is a hub id, `owner/name` or `owner/name:split`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from burnish.core.checkpoint import LINEAGE_FILE, write_atomically
from burnish.core.errors import DataError, MissingExtraError, OutputError, SettingsError
from burnish.core.made_data import ABOUT_FILE
from burnish.core.outside import is_text, parquet_rows, parse_json, read_bytes
from burnish.data.preference_shapes import RIGHT, is_shape, parse_columns, shaped
from burnish.data.prompts import text_of

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Pair = dict[str, Any]
OnBadPair = Literal["refuse", "drop"]

BOM = b"\xef\xbb\xbf"
JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson")
KEPT_COLUMNS = ("prompt", "chosen", "rejected", "margin", RIGHT, "tools", "chat_template_kwargs")
"""What the trainers read; everything else stays behind."""


@dataclass
class Pairs:
    """Rows of a preference file and where each came from.

    Attributes:
        rows: the pairs, with all their columns.
        numbers: of each row: its line in a JSON lines file, else its index from 0.
        source: the name of the file in messages.
        dropped: {reason: count} of rows that were left out.
        unread: columns of text that nobody reads, of pairs that have no prompt beside their answers.
    """

    rows: list[Pair]
    numbers: list[int]
    source: str
    dropped: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> str:
        return f"{self.source}:{self.numbers[index]}"

    def dataset(self) -> Dataset:
        """For the trainers: `prompt`, `chosen`, `rejected` and the few other columns they read."""
        datasets = import_datasets()
        present = [column for column in KEPT_COLUMNS if any(column in row for row in self.rows)]
        rows = [{column: row.get(column) for column in present} for row in self.rows]
        if RIGHT in present:  # a row that says nothing of its label is sure of it
            for row in rows:
                right = row[RIGHT]
                row[RIGHT] = 1.0 if right is None else float(right)
        return datasets.Dataset.from_list(rows)


def read_pairs(
    source: str | Path, *, on_bad_pair: OnBadPair = "refuse", limit: int | None = None, columns: str | None = None
) -> Pairs:
    """Reads and checks a preference file.

    Args:
        source: a file, a directory of files, or a hub id with an optional `:split` (default train).
        on_bad_pair: what to do with a pair that is missing, empty or identical on both sides.
        limit: reads this many pairs at most.
        columns: "prompt=THEIRS,chosen=THEIRS", where a file names them otherwise.

    Raises:
        DataError: no such file, malformed rows (with file and line), no pair left, or a bad pair under "refuse".
        SettingsError: a limit below 1.
    """
    if limit is not None and limit < 1:
        raise SettingsError(f"at least one pair must be read, not {limit}", where="limit")
    return pairs_of(_read(source), on_bad_pair=on_bad_pair, limit=limit, columns=columns)


def pairs_of(
    pairs: Pairs, *, on_bad_pair: OnBadPair = "refuse", limit: int | None = None, columns: str | None = None
) -> Pairs:
    """Rows in any of the shapes as checked pairs; arguments and errors as in `read_pairs`."""
    found = shaped(pairs.rows, pairs.numbers, pairs.source, parse_columns(columns))
    read = Pairs(found.rows[:limit], found.numbers[:limit], pairs.source, found.dropped, found.unread)
    return check_pairs(read, on_bad_pair=on_bad_pair)


def write_pairs(pairs: Pairs, path: str | Path) -> Path:
    """Writes the rows with all their columns as JSON lines.

    Raises:
        OutputError: the file exists, or cannot be written.
    """
    target = Path(path)
    if target.exists():
        raise OutputError("exists already", where=str(target), fix="choose another file with -o")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs.rows))
    except OSError as error:
        raise OutputError(f"could not be written ({error.strerror})", where=str(target)) from None
    return target


def pairs_hash(source: str | Path) -> str:
    """sha256 over the rows, so that the same pairs under another name or in another format have the same hash."""
    return rows_digest(_read(source).rows)


def rows_digest(rows: Iterable[Pair]) -> str:
    """sha256 over rows with all their columns, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
    return digest.hexdigest()


def try_pairs(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    on_bad_pair: OnBadPair = "refuse",
    columns: str | None = None,
) -> None:
    """Writes out and tokenises the first pairs of a file.

    Raises:
        DataError: as in `read_pairs`, or conversations that the tokenizer's chat template cannot write out.
    """
    from burnish.data.chat import written_out

    pairs = read_pairs(source, on_bad_pair=on_bad_pair, limit=8, columns=columns)
    for index, row in enumerate(pairs.rows):
        if not isinstance(row["chosen"], list):
            tokenizer(row["chosen"])
            continue
        if not tokenizer.chat_template:
            raise DataError(
                "is a conversation, but the tokenizer has no chat template",
                where=pairs.where(index),
                fix="use plain text, or a model with a chat template",
            )
        for column in ("chosen", "rejected"):
            written_out(tokenizer, [*(row.get("prompt") or []), *row[column]], where=pairs.where(index))


def holds_pairs(source: str | Path) -> bool:
    """Whether a data reference is a preference file (its first row has `chosen`) or may be a hub data set of pairs."""
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _format(file) is not None)
        return bool(files) and holds_pairs(files[0])
    if not path.is_file():
        return _hub_name(str(source)) is not None
    form = _format(path)
    if form == "lines":
        first = read_bytes(path).lstrip().partition(b"\n")[0]
        row = parse_json(first, where=str(path), error=DataError) if first.startswith((b"{", BOM)) else None
        return isinstance(row, dict) and is_shape(row)
    return form is not None and any(is_shape(row) for row in _read_file(path).rows[:1])


def check_pairs(pairs: Pairs, *, on_bad_pair: OnBadPair = "refuse") -> Pairs:
    """The pairs that hold a preference. A bad one is an error that names it, or is counted and left out.

    Raises:
        DataError: as in `read_pairs`; also where some pairs are plain text and others conversations.
    """
    kept: list[int] = []
    dropped = dict(pairs.dropped)
    prompted = sum(row.get("prompt") is not None for row in pairs.rows)
    for index, row in enumerate(pairs.rows):
        fault = fault_of(row)
        if fault is None and row.get("prompt") is None and prompted > len(pairs.rows) / 2:
            fault = "the prompt is missing, but other pairs have one"
        if fault is None:
            kept.append(index)
        elif on_bad_pair == "refuse" or fault.startswith("has no column"):
            raise DataError(f"{fault}", where=pairs.where(index), fix=_advice(fault))
        else:
            dropped[fault] = dropped.get(fault, 0) + 1
    if not kept:
        raise DataError("holds no usable pair", where=pairs.source)
    first = isinstance(pairs.rows[kept[0]]["chosen"], list)
    for index in kept:
        if isinstance(pairs.rows[index]["chosen"], list) != first:
            forms = ("plain text", "a conversation")
            raise DataError(
                f"is {forms[not first]}, but the first pair is {forms[first]}",
                where=pairs.where(index),
                fix="write all pairs in one form",
            )
    return Pairs([pairs.rows[i] for i in kept], [pairs.numbers[i] for i in kept], pairs.source, dropped, pairs.unread)


def fault_of(row: Pair) -> str | None:
    """Why a row is not a preference pair, as a clause for a message; None where it is one."""
    for column in ("chosen", "rejected"):
        if column not in row or row[column] is None:
            return f"has no column {column!r}"
    for column in ("prompt", "chosen", "rejected"):
        fault = _form_fault(column, row.get(column))
        if fault is not None:
            return fault
    for column in ("chosen", "rejected"):
        if _is_empty(row[column]):
            return f"the {column} answer is empty"
    if any(not _is_written(row.get(column)) for column in ("prompt", "chosen", "rejected")):
        return "it holds half of a surrogate pair, which is no character"
    margin = row.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float) or not isfinite(margin)):
        return f"the margin is {margin!r}, but it must be a finite number"
    right = row.get(RIGHT)
    if right is not None and (isinstance(right, bool) or not isinstance(right, int | float) or not 0 <= right <= 1):
        return f"{RIGHT} is {right!r}, but it must be a probability from 0 to 1"
    if row["chosen"] == row["rejected"]:
        return "the chosen and the rejected answer are identical"
    if isinstance(row["chosen"], list) != isinstance(row["rejected"], list):
        return "one answer is text and the other a list of messages"
    if row.get("prompt") is not None and isinstance(row["prompt"], list) != isinstance(row["chosen"], list):
        return "of prompt and answers, one is text and the other a list of messages"
    return None


def _form_fault(column: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return None
    if not isinstance(value, list):
        return f"{column!r} is of type {type(value).__name__}, but it must be text or a list of messages"
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"{column!r} holds a message without a role"
        if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            return f"{column!r} holds a message without content"
    return None


def _is_written(value: Any) -> bool:
    """Whether all text in a prompt or an answer can be written out."""
    return is_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _is_empty(value: str | list[dict[str, Any]]) -> bool:
    """Nothing was said and no tool was called in the answer, or in the last message of a conversation."""
    if isinstance(value, str):
        return not value.strip()
    return not value or not (text_of(value[-1:]).strip() or value[-1].get("tool_calls"))


def import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "align", "preference training") from None
    return datasets


# -- files ---------------------------------------------------------------------------------------------------------


def _read(source: str | Path) -> Pairs:
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _format(file) is not None)
        if not files:
            raise DataError("holds no .jsonl, .jsonl.gz, .json or .parquet file", where=str(path))
        read = [_read_file(file) for file in files]
        rows = [row for part in read for row in part.rows]
        return Pairs(rows, [number for part in read for number in part.numbers], str(path))
    return _read_file(path) if path.is_file() else _read_hub(str(source))


def _format(path: Path) -> str | None:
    name = path.name.lower()
    if name in (LINEAGE_FILE, ABOUT_FILE):  # beside rows that a stage has made
        return None
    if name.endswith(JSON_LINES):
        return "lines"
    return {".json": "json", ".parquet": "parquet"}.get(path.suffix.lower())


def _read_file(path: Path) -> Pairs:
    form = _format(path)
    if form is None:
        raise DataError("is not a .jsonl, .jsonl.gz, .json or .parquet file", where=str(path))
    if form == "parquet":
        rows = [dict(row) for row in parquet_rows(path)]
        return Pairs(rows, list(range(len(rows))), path.name)
    content = read_bytes(path)
    if form == "json":
        listed = parse_json(content, where=str(path), error=DataError)
        if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
            raise DataError("is not a list of objects", where=str(path), fix="write one object a line, as .jsonl")
        return Pairs(listed, list(range(len(listed))), path.name)
    rows, numbers = [], []
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            rows.append(_row(line, f"{path.name}:{number}"))
            numbers.append(number)
    return Pairs(rows, numbers, path.name)


def _row(line: bytes, where: str) -> Pair:
    row = parse_json(line, where=where, error=DataError)
    if not isinstance(row, dict):
        raise DataError("is not a JSON object", where=where)
    return row


def _read_hub(name: str) -> Pairs:
    named = _hub_name(name)
    if named is None:
        raise DataError("no such preference file", where=name)
    identifier, split = named
    datasets = import_datasets()
    from huggingface_hub.errors import HfHubHTTPError

    try:
        rows: Iterable[Pair] = datasets.load_dataset(identifier, split=split)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise DataError(
            f"is neither a file nor a data set that the hub can give ({error.__class__.__name__})",
            where=name,
            fix="check the path, the name and the split",
        ) from None
    listed = [dict(row) for row in rows]
    return Pairs(listed, list(range(len(listed))), name)


def _hub_name(name: str) -> tuple[str, str] | None:
    """(owner/name, split) of a hub data set, or None for what can only be a path."""
    identifier, _, split = name.partition(":")
    if identifier.count("/") != 1 or identifier.startswith((".", "/", "~")) or _format(Path(identifier)) is not None:
        return None
    return identifier, split or "train"


def _advice(fault: str) -> str:
    if fault.startswith("has no column"):
        return "name the two answers 'chosen' and 'rejected', or pass --columns chosen=THEIRS,rejected=THEIRS"
    if fault.startswith(RIGHT):
        return "write shares of 1, not percents or words; or remove that row, or pass --on-bad-pair drop"
    return "remove that row, or pass --on-bad-pair drop"
