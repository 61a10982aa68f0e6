"""Expectations over subsets equal the counting of all subsets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.reason.curves import best, between, votes


def counted(clusters: list[int | None], scores: list[float], drawn: int) -> float:
    """Every subset in every order, of which the earliest of the most frequent answers wins."""
    total = 0.0
    orders = list(itertools.permutations(range(len(clusters)), drawn))
    for order in orders:
        seen = [clusters[place] for place in order if clusters[place] is not None]
        if seen:
            winner = max(seen, key=lambda one: (seen.count(one), -seen.index(one)))
            assert winner is not None
            total += scores[winner]
    return total / len(orders)


@given(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=1, max_size=6), st.lists(st.floats(0, 1), min_size=3))
def test_a_vote_is_that_of_all_subsets_in_all_orders(clusters: list[int | None], scores: list[float]):
    expected = [counted(clusters, scores, drawn) for drawn in range(1, len(clusters) + 1)]
    assert votes(clusters, scores[:3]) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_the_best_is_that_of_all_subsets(scores: list[float]):
    expected = [np.mean([max(one) for one in itertools.combinations(scores, n)]) for n in range(1, len(scores) + 1)]
    assert best(scores) == pytest.approx(expected, abs=1e-12)


def test_the_best_of_right_and_wrong_is_pass_at_n():
    right, num = 5, 24
    expected = [1 - math.comb(num - right, n) / math.comb(num, n) for n in range(1, num + 1)]
    assert best([1.0] * right + [0.0] * (num - right)) == pytest.approx(expected)


def test_a_vote_of_many_samples_is_counted_too():
    """All of 96 samples: the larger cluster wins; one of them: its share."""
    clusters = [0] * 40 + [1] * 30 + list(range(2, 20)) + [None] * 8
    found = votes(clusters, [1.0, *[0.0] * 19])
    assert found[0] == pytest.approx(40 / 96)
    assert found[-1] == pytest.approx(1.0)
    assert np.all(np.diff(found) > -1e-9)


def test_between_two_numbers_each_is_taken_as_often_as_it_is_near():
    curve = np.array([[0.0, 1.0, 3.0], [1.0, 1.0, 2.0]])
    assert between(curve, 1.0) == pytest.approx([0.0, 1.0])
    assert between(curve, 2.25) == pytest.approx([1.5, 1.25])
    assert between(curve, 3.0) == pytest.approx([3.0, 2.0])
