"""Texts that are nearly the same, found among many."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.data.near_copies import NEAR, same_texts

LONG = "the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun of a long summer afternoon"


def test_texts_are_the_same_but_for_case_and_space():
    assert same_texts(["No, thanks.", "no,  THANKS .", "no"]) == same_texts(["a", "a", "b"])
    assert len(set(same_texts(["x > 3", "x < 3", "\U0001f44d", "\U0001f44e", "", "-"]))) == 6


def test_texts_that_differ_in_one_word_of_many_are_nearly_the_same():
    one, other, third = same_texts([LONG, LONG.replace("afternoon", "evening"), LONG[: len(LONG) // 2]])
    assert one == other != third


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(), max_size=8))
def test_equal_texts_have_one_number_and_nothing_breaks(texts):
    numbers = same_texts([*texts, *texts])
    assert numbers[: len(texts)] == numbers[len(texts) :]


def test_nearly_equal_texts_are_found_as_often_as_the_bands_promise():
    draw = np.random.default_rng(0)
    vocabulary = [f"w{index}" for index in range(3000)]
    found = 0
    for _ in range(200):
        words = list(draw.choice(vocabulary, 60))
        changed = [*words[:57], *draw.choice(vocabulary, 3)]  # 55 of 61 triples are in both
        one, other = same_texts([" ".join(words), " ".join(changed)])
        found += one == other
    assert NEAR < 55 / 61 and found >= 195
