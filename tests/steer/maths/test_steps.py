"""How a reasoning is cut, and which steps check."""

import pytest

from burnish.steer.maths.steps import CUES, is_checking, pattern_of, spans, step_ends


def test_steps_end_at_separators_before_the_end_of_thinking():
    tokens = [5, 1, 6, 7, 2, 8, 9, 1]
    assert step_ends(tokens, {1, 2}, set()) == [1, 4, 7]
    assert step_ends(tokens, {1, 2}, {8}) == [1, 4]
    assert step_ends(tokens, {1, 2}, {5}) == []
    assert spans([1, 4, 7]) == [(0, 2), (2, 5), (5, 8)]


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
