"""Every pair is verified, of one question, and of none that measures later; the funnel adds up."""

from __future__ import annotations

from typing import Any

from burnish.diagnose.pairs import DROPPED, counted, paired


def lost(number: int, **fault: Any) -> dict[str, Any]:
    """A lost problem, whose original goes on rightly in one of three ways."""
    after = [
        {"text": text, "tokens": tokens, "right": right}
        for text, tokens, right in (("short", 2, True), ("as long", 6, True), ("no", 6, False))
    ]
    found = {
        "step": 2,
        "steps": 4,
        "before": "so far ",
        "kind": "execution",
        "rates": [1.0, 1.0, 0.0],
        "continuations": after,
    }
    problem = {"id": f"p{number}", "question": f"question {number}", "answer": "4"}
    return {
        "problem": problem,
        "chat": [{"role": "user", "content": problem["question"]}],
        "own": {"text": "so far wrong", "tokens": 9, "right": False},
        "fault": found | {"rejected_tokens": 5} | fault,
    }


def test_a_pair_is_the_right_continuation_of_the_nearest_length_over_the_wrong_one() -> None:
    rows, dropped = paired([lost(1)], [], most=10)
    [row] = rows
    assert row["prompt"] == [{"role": "user", "content": "question 1"}]
    assert row["chosen"] == row["completion"] == [{"role": "assistant", "content": "so far as long"}]
    assert row["rejected"] == [{"role": "assistant", "content": "so far wrong"}]
    assert (row["kind"], row["step"], row["steps"], row["id"]) == ("execution", 2, 4, "p1")
    assert dropped == dict.fromkeys(DROPPED, 0)


def test_what_makes_no_pair_is_counted_by_its_reason() -> None:
    wrong = [{"text": "no", "tokens": 5, "right": False}]
    found = [
        lost(1),
        lost(2, step=0, continuations=[]),
        lost(3, continuations=wrong),
        lost(4, rejected_tokens=100),
        lost(1),
        lost(6),
        lost(7),
    ]
    rows, dropped = paired(found, ["Question 6"], most=1)
    assert [row["id"] for row in rows] == ["p1"]
    assert dropped == dict.fromkeys(DROPPED, 1)
    assert len(rows) + sum(dropped.values()) == len(found)


def test_thirteen_words_in_a_row_of_a_held_out_problem_are_too_many() -> None:
    words = [f"w{n}" for n in range(20)]
    for shared, kept in ((12, 1), (13, 0)):
        one = lost(1)
        one["problem"]["question"] = " ".join([*words[:shared], *(f"x{n}" for n in range(9))])
        rows, _ = paired([one], [" ".join(words)], most=10)
        assert len(rows) == kept


def test_kinds_of_fault_take_turns_until_there_are_enough() -> None:
    found = [lost(n) for n in range(8)] + [lost(n, kind="method") for n in range(8, 11)]
    rows, dropped = paired(found, [], most=8)
    assert [row["kind"] for row in rows].count("method") == 3 and len(rows) == 8
    assert dropped["beyond most"] == 3
    table = counted(rows, [one["fault"] for one in found])
    assert table == [
        {"fault": "execution", "lost": 8, "pairs": 5, "place": 0.5},
        {"fault": "method", "lost": 3, "pairs": 3, "place": 0.5},
    ]
