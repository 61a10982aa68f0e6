"""Labels that contradict each other, repeated pairs and answers without a difference."""

from burnish.align.repeats import find_repeats

LONG = "the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun of a long summer afternoon"


def test_labels_that_go_round_are_found_however_long_the_way():
    split = [("q", "a", "b"), ("q", "b", "c"), ("q", "c", "a"), ("q", "c", "d"), ("other", "b", "a")]
    repeats = find_repeats(split)
    assert repeats.circles == {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2]}
    assert repeats.reasons(1, [10, 11, 12, 13, 14]) == ["this label and those of rows 10, 12 go round in a circle"]
    assert repeats.reasons(3, [10, 11, 12, 13, 14]) == []


def test_the_same_answers_labelled_both_ways_and_twice_alike():
    split = [("q?", "A", "b"), ("Q ?", "B", "a"), ("p", "x", "y"), ("p", "X", "y")]
    repeats = find_repeats(split)
    assert repeats.reasons(0, [1, 2, 3, 4]) == [
        "the same two answers, or nearly so, are labelled the other way in row 2"
    ]
    assert repeats.reasons(2, [1, 2, 3, 4]) == ["the same pair, or nearly so, stands in row 4"]


def test_answers_without_a_difference_are_no_contradiction():
    repeats = find_repeats([("q", LONG, LONG + "!"), ("q", "yes", "no")])
    assert repeats.even == {0} and not repeats.circles and not repeats.copies
    assert repeats.reasons(0, [1, 2]) == ["the two answers are nearly the same"]
