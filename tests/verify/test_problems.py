"""Files of problems, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.core.errors import DataError
from burnish.verify import Exact, read_problems


def written(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_a_row_gets_a_name_and_published_names_of_fields_are_understood(tmp_path: Path):
    path = written(
        tmp_path / "p.jsonl", {"problem": "1+1", "answer": 2}, "", {"unique_id": "x", "prompt": "?", "answer": "!"}
    )
    first, second = read_problems(path, Exact())
    assert (first["id"], first["question"]) == ("p.jsonl:1", "1+1")
    assert (second["id"], second["question"]) == ("x", "?")
    assert len(read_problems(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "1+1"}], r"p.jsonl:1: has no `answer`.*'exact'"),
        ([{"question": "1+1", "answer": None}], "has no `answer`"),
        ([{"answer": "2"}], "has no `question`"),
        (["{"], r"p.jsonl:1: is not valid JSON"),
        ([[1]], "is no JSON object"),
        ([{"id": 1, "question": "a", "answer": "b"}] * 2, r"p.jsonl:2: has the id '1' of line 1"),
        ([""], "holds no problems"),
    ],
)
def test_a_file_that_cannot_be_graded_is_refused_with_its_line(tmp_path: Path, rows: list[object], message: str):
    with pytest.raises(DataError, match=message):
        read_problems(written(tmp_path / "p.jsonl", *rows), Exact())


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(DataError, match="no such file"):
        read_problems(tmp_path / "none.jsonl")
