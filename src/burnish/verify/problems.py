"""Reading problems: JSON Lines, one object a line, a name for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from burnish.core.errors import DataError
from burnish.core.outside import parse_json, read_bytes, read_lines
from burnish.verify.adapter import Verifier

ASKED = frozenset({"question", "problem"})
TRAINED = frozenset({"text", "messages", "conversations", "completion", "chosen"})
"""Keys of problems, and those of rows that training reads."""


def read_problems(
    path: str | Path, verifier: Verifier | None = None, *, limit: int | None = None
) -> list[dict[str, Any]]:
    """The problems of a `.jsonl` or `.jsonl.gz` file; a row without `id` gets the file's name and its line.

    Args:
        path: of the file.
        verifier: what will grade them; each is checked for what it needs.
        limit: read so many only.

    Raises:
        DataError: no file, no JSON objects (with the line), two of one `id`, no problems, or a field missing.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="name a .jsonl file with one problem a line")
    problems: list[dict[str, Any]] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        if limit is not None and len(problems) >= limit:
            break
        where = f"{path}:{number}"
        row = parse_json(line, where=where, error=DataError)
        if not isinstance(row, dict):
            raise DataError("is no JSON object", where=where)
        problem = verifier.adapted(row) if verifier else row
        name = str(problem.setdefault("id", f"{path.name}:{number}"))
        if name in lines:
            raise DataError(f"has the id {name!r} of line {lines[name]}", where=where, fix="give every problem its own")
        lines[name] = number
        if verifier:
            verifier.check(problem, where=where)
        problems.append(problem)
    if not problems:
        raise DataError("holds no problems", where=str(path))
    return problems


def holds_problems(reference: str | Path) -> bool:
    """Whether a file holds problems for a verifier, and no texts, chats or pairs that training reads."""
    path = Path(reference).expanduser()
    if not path.is_file() or not path.name.endswith((".jsonl", ".jsonl.gz")):
        return False
    first = next((line for line in read_lines(path) if line.strip()), b"{}")
    row = parse_json(first, where=f"{path}:1", error=DataError)
    return isinstance(row, dict) and not ASKED.isdisjoint(row) and TRAINED.isdisjoint(row)
