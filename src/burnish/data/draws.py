"""What made problems share: each drawn by itself, questions that are kept apart, and their files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from burnish.core.errors import DataError
from burnish.core.outside import parse_json, read_bytes

TRIES = 1000
"""Draws of a new question before there are said to be no more."""


class HasQuestion(Protocol):
    """A problem; `question` is what tells it from another."""

    @property
    def question(self) -> str: ...


Drawn = TypeVar("Drawn", bound=HasQuestion)


def draws(
    draw: Callable[[random.Random], Drawn],
    number: int,
    *,
    kind: str,
    seed: int,
    apart_from: frozenset[str] | set[str] = frozenset(),
    distinct: bool = False,
    fix: str,
) -> Iterator[Drawn]:
    """Draws problems; number n depends on the seed and n, and on which questions are taken.

    Args:
        draw: one.
        number: how many.
        kind: what each is called, which other kinds of one seed are independent of.
        seed: of all draws.
        apart_from: questions that must not occur; another seed alone does not keep small problems apart.
        distinct: no question occurs twice.
        fix: what to do where no further question can be found.

    Raises:
        DataError: no further question can be found.
    """
    taken = set(apart_from)
    for index in range(number):
        random_ = random.Random(f"{kind} {seed} {index}")
        drawn = next((one for one in (draw(random_) for _ in range(TRIES)) if one.question not in taken), None)
        if drawn is None:
            raise DataError(
                f"only {index:,} {kind}s were found whose question is new, in {TRIES:,} draws for the next",
                where=f"{kind}s",
                fix=fix,
            )
        if distinct:
            taken.add(drawn.question)
        yield drawn


def questions_of(path: Path) -> set[str]:
    """The questions of a file of problems.

    Raises:
        DataError: no file, or a line without a question.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    found = set()
    for number, line in enumerate(read_bytes(path).splitlines(), start=1):
        row = parse_json(line, where=f"{path}:{number}", error=DataError)
        if not isinstance(row, dict) or not isinstance(row.get("question"), str):
            raise DataError("has no `question`", where=f"{path}:{number}")
        found.add(row["question"])
    return found


def json_lines(rows: Iterator[dict[str, Any]]) -> str:
    """Rows as the text of a `.jsonl` file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
