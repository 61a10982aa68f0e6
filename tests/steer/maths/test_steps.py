"""How a reasoning is cut, and which steps check."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.steer.maths.steps import CUES, is_begun, is_checking, pattern_of, steps_in


def test_steps_end_at_separators_before_the_end_of_thinking():
    tokens = [5, 1, 6, 7, 2, 8, 9, 1]
    assert steps_in(tokens, {1, 2}, set(), set()) == [(0, 1), (2, 4), (5, 7)]
    assert steps_in(tokens, {1, 2}, set(), {8}) == [(0, 1), (2, 4)]
    assert steps_in(tokens, {1, 2}, set(), {5}) == []


def test_what_is_blank_is_no_step():
    """1 is a line end, 2 one behind a full stop, 3 a space."""
    separators, blanks = {1, 2}, {1, 3}
    assert steps_in([1, 5, 1, 1, 3, 1, 2, 1, 6, 3, 1], separators, blanks, set()) == [(1, 2), (6, 6), (8, 10)]


@given(tokens=st.lists(st.integers(1, 5), max_size=12))
def test_a_step_has_begun_exactly_where_a_separator_would_end_one(tokens: list[int]):
    separators, blanks = {1, 2}, {1, 3}
    found = steps_in([*tokens, 1], separators, blanks, set())
    assert is_begun(tokens, separators, blanks) == (bool(found) and found[-1][1] == len(tokens))


@pytest.mark.parametrize(
    ("step", "checks"),
    [
        ("Wait, that is 12.", True),
        ("So WAIT\n\n", True),
        ("The waiter waited and awaits.", False),
        ("Let me verify: 3 + 4 = 7.", True),
        ("Let me very quickly add.", False),
        ("Hmm... no", True),
        ("Alternatively, use 2x.", True),
        ("We double-checked it", False),
        ("I double-check it", True),
        ("3 + 4 = 7", False),
    ],
)
def test_english_cues_are_whole_words_in_any_case(step: str, checks: bool):
    assert is_checking(step, pattern_of(CUES)) is checks


def test_a_cue_may_be_a_regular_expression_which_knows_case():
    pattern = pattern_of(["re:^W", "c++"])
    assert is_checking("Wa3+4=7;", pattern)
    assert not is_checking("wa3+4=7;", pattern)
    assert is_checking("in C++ then", pattern)
