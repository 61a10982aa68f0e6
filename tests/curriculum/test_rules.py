"""Rules over measured values: when a phase ends, and when an earlier one is being forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.curriculum.rules import forgotten, gain, smoothed

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def test_the_smoothed_value_takes_half_of_what_is_new():
    assert smoothed([0.0, 1.0, 1.0, 0.0]) == [0.0, 0.5, 0.75, 0.375]


@given(VALUES, st.integers(1, 5))
def test_a_gain_needs_as_many_looks_as_it_is_measured_over(values: list[float], looks: int):
    found = gain(values, looks)
    assert (found is None) == (len(values) <= looks)
    if found is not None:
        curve = smoothed(values)
        assert found == curve[-1] - curve[len(curve) - 1 - looks]


@given(st.floats(0, 1), st.integers(1, 5))
def test_a_value_that_stands_still_has_gained_nothing(value: float, looks: int):
    assert gain([value] * (looks + 1), looks) == 0


def test_forgotten_is_what_fell_from_its_best_by_more_than_may_be():
    values = {"easy": [0.5, 0.9, 0.8], "middle": [0.7, 0.66], "unmeasured": []}
    assert forgotten(values, 0.05) == {"easy": pytest.approx(0.1)}
    assert forgotten(values, 0.2) == {}


@given(VALUES)
def test_what_is_at_its_best_is_not_forgotten(values: list[float]):
    assert forgotten({"easy": [*values, max(values)]}, 1e-9) == {}
