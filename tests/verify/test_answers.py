"""Where an answer is found in a text, and which answers are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.errors import SettingsError
from burnish.verify import Exact, LastInteger, Number, verifier
from burnish.verify.adapter import boxed, final_answer
from burnish.verify.answers import number_in


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1} or rather \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{7} and then \boxed{8", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"<think>\boxed{1}</think> it is \boxed{2}", "2"),
        (r"\boxed{1}</think> it is \boxed{2}", "2"),
        ("<think>\\boxed{1}", None),
        ("<answer>4</answer> no, <answer> 5 </answer>", "5"),
        ("<answer>5</answer> \\boxed{6}", "6"),
        ("First words.\n**Final answer:** 12 apples", "12 apples"),
        ("The final answer is: 12", "12"),
        ("48/2=24\n#### 72", "72"),
        ("\\boxed{}", None),
        ("I do not know", None),
        ("", None),
    ],
)
def test_the_declared_answer_is_found_after_the_reasoning(text: str, answer: str | None):
    assert final_answer(text) == answer


@given(st.text(alphabet="ab{}\\", max_size=30), st.text(max_size=20))
def test_what_is_boxed_with_balanced_braces_comes_back(inside: str, before: str):
    depth, balanced, skip = 0, True, False
    for letter in inside:
        if skip:
            skip = False
            continue
        skip = letter == "\\"
        depth += (letter == "{") - (letter == "}")
        balanced &= depth >= 0
    if balanced and depth == 0 and not skip and "boxed" not in before:
        assert boxed(f"{before}\\boxed{{{inside}}}") == inside.strip()


@pytest.mark.parametrize(
    ("first", "second"),
    [("0.5", "1/2"), ("$1,250.50 a year", "1250.5"), ("1{,}000", "1000"), ("\\frac{3}{6}", ".5"), ("1e3", "1 000")],
)
def test_numbers_are_compared_exactly_whatever_they_are_written_like(first: str, second: str):
    number = Number()
    assert number.equivalent(first, second)
    assert number.grade(second, {"answer": first}) == 1.0


@pytest.mark.parametrize("text", ["1 or 2", "none", "1/0", "9" * 300, "1e999999999", "1/2/3", "12 34"])
def test_what_is_not_one_number_is_none(text: str):
    assert number_in(text) is None


def test_a_number_is_wrong_when_the_last_digit_is_and_right_within_the_tolerance():
    problem = {"answer": "3.14159"}
    assert Number().grade("3.1415", problem) == 0.0
    assert Number(tolerance=1e-4).grade("3.1415", problem) == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a3+4=7;b7-2=5;#5", "5"),
        ("It is 12, no, -13.", "-13"),
        ("about 1,234,567 people", "1234567"),
        ("it costs 2.50", None),
        ("3 and 2.5", "3"),
        ("<think>so 4", None),
        ("no number", None),
    ],
)
def test_the_last_integer_of_a_text(text: str, answer: str | None):
    assert LastInteger().extract(text) == answer


def test_a_solution_may_stand_where_the_gold_integer_does():
    assert LastInteger().grade("72", {"answer": "48 + 24 = 72\n#### 72"}) == 1.0
    assert LastInteger().grade("48", {"answer": "48 + 24 = 72\n#### 72"}) == 0.0


def test_words_are_compared_without_case_spaces_and_full_stop():
    exact = Exact()
    assert exact.grade(" New  York.", {"answer": "new york"}) == 1.0
    assert exact.grade("York", {"answer": "New York"}) == 0.0


def test_no_answer_earns_nothing():
    assert Exact().score("", {"answer": ""}) == 0.0
    assert Number().grade(None, {"answer": "1"}) == 0.0


def test_a_verifier_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'number'"):
        verifier("numbr")


REPEATS = {
    "box": "\\boxed{",
    "spaces": "\n" + " " * 60,
    "words": "final answer ",
    "groups": "111,",
    "tags": "<answer>",
    "stars": "* ",
}


@pytest.mark.parametrize("name", REPEATS)
@pytest.mark.parametrize("kind", ["exact", "last-integer", "chain"])
def test_a_text_that_repeats_itself_is_read_in_one_pass(name: str, kind: str):
    """Models that loop write such texts; going back in them would take hours."""
    verifier(kind).extract(REPEATS[name] * 30_000)
    verifier(kind).extract("\n" + " " * 100_000 + REPEATS[name] + " " * 100_000)


def test_a_box_after_many_that_never_close_is_found():
    assert boxed("\\boxed{" * 30_000 + "\\boxed{7} }") == "7"
    assert boxed("\\\\boxed{8}") == "8"
