"""What the benchmark of Lookahead makes of first and second requests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import lookahead


def test_a_second_request_is_compared_with_the_first_one_by_length():
    def answers(copies: bool, *passes: list[int]) -> list[dict[str, Any]]:
        return [{"length": 10, "copies": copies, "passes": one} for one in passes]

    found = lookahead._second({"chain": 8, "answers": answers(True, [5, 2], [4, 2]) + answers(False, [10, 2])})
    assert found.splitlines()[-1] == "| 10 | 2 | 4.5 | 2.0 | 1 of 2 | 10.0 | 2.0 | 1 of 1 |"


def test_a_second_request_takes_the_least_passes_where_nothing_else_was_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lookahead, "LENGTHS", (5, 10, 11))
    known = [{"kind": "chat", "prompt": list(range(20)), "answer": list(range(50, 61))}]
    assert [one["passes"] for one in lookahead.second(known)] == [[5, 2], [10, 2], [11, 3]]
