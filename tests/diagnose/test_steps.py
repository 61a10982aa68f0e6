"""Solutions cut into steps lose nothing; sums are read and computed, and what is no sum is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.diagnose.steps import cut, sums


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("a3+4=7;b7*2=4;#4", ["a3+4=7;", "b7*2=4;", "#4"]),
        ("Step 1: add\nmore of it\nStep 2: divide\n#4", ["Step 1: add\nmore of it\n", "Step 2: divide\n#4"]),
        ("**Step 1** a. b.\n\n**Step 2** c.", ["**Step 1** a. b.\n\n", "**Step 2** c."]),
        ("one\n\ntwo\nstill two\n\nthree", ["one\n\n", "two\nstill two\n\n", "three"]),
        ("one\ntwo", ["one\n", "two"]),
        ("It is 3.5 here. Then 2. So 7", ["It is 3.5 here. ", "Then 2. ", "So 7"]),
        ("all at once", ["all at once"]),
        ("", []),
    ],
)
def test_steps(text: str, steps: list[str]) -> None:
    assert cut(text) == steps


@given(st.text(alphabet="Step 12:;.\n!ab", max_size=60))
def test_steps_joined_are_the_text(text: str) -> None:
    assert "".join(cut(text)) == text and all(cut(text))


@pytest.mark.parametrize(
    ("step", "found"),
    [
        ("So 3 + 4 = 7 apples.", [("3 + 4=7", True)]),
        ("b7*2=15;", [("7*2=15", False)]),
        ("(3+4)*2 = 15", [("(3+4)*2=15", False)]),
        ("10/3=3.33, and 10/3=3.4", [("10/3=3.33", True), ("10/3=3.4", False)]),
        ("1,200*2=2,400 and $5 + $3 = $9", [("1,200*2=2,400", True), ("$5 + $3=$9", False)]),
        ("2+3=5+1=6", [("2+3=5+1", True), ("5+1=6", True)]),
        ("2+3=6+1=7", [("2+3=6+1", False), ("6+1=7", True)]),
        ("6 \u00d7 2 \u2212 2 = 10 \u00f7 1", [("6 \u00d7 2 \u2212 2=10 \u00f7 1", True)]),
        ("007+1=8", [("007+1=8", True)]),
        ("12 = 3 * 5", [("12=3 * 5", False)]),
        ("1. 3+4=7", [("3+4=7", True)]),
    ],
)
def test_sums(step: str, found: list[tuple[str, bool]]) -> None:
    assert list(sums(step)) == found


@pytest.mark.parametrize(
    "step",
    [
        "x = 5",
        "2x+3=7",
        "3+4=7x",
        "5 apples * 2 = 10",
        "3 apples + 4 * 2 = 11",
        "50% * 20 = 10",
        "2**3=9",
        "1/0=5",
        "3=7",
        "((3+4)*2 = 15",
        "f(3)+4=9",
        "__import__('os')=1+1",
        "3+4",
    ],
)
def test_what_is_no_sum_of_numbers_is_left_alone(step: str) -> None:
    assert list(sums(step)) == []


def test_sums_of_chains_are_modulo() -> None:
    assert [true for _, true in sums("a7*2=4;b4-9=5;c5+5=1;", 10)] == [True, True, False]
    assert [true for _, true in sums("a7*2=4;")] == [False]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1+" * 50_000, 0),
        ("(" * 50_000, 0),
        ("1=1" * 20_000, 0),
        ("1,111" * 20_000, 0),
        ("1" * 100_000, 0),
        ("3+4=7 " * 10_000, 10_000),
        ("\n \n" * 30_000, 0),
        ("step 1 " * 20_000, 0),
    ],
)
def test_what_a_model_loops_on_is_read_too(text: str, number: int) -> None:
    # With ways back in the patterns the first of these took half an hour.
    assert sum(true for _, true in sums(text)) == number
    assert "".join(cut(text)) == text
