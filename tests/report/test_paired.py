import numpy as np
import pytest

from burnish.report.paired import paired_difference


def test_value_is_the_difference_of_the_sums_over_the_sum_of_weights():
    found = paired_difference([1.0, 2.0, 3.0], [2.0, 2.0, 6.0], [1.0, 1.0, 2.0])
    assert found.value == pytest.approx((1 + 0 + 3) / 4, abs=1e-15)


def test_interval_of_a_constant_difference_is_that_constant():
    found = paired_difference([5.0, 1.0, 9.0], [5.5, 1.5, 9.5], [1.0, 1.0, 1.0])
    assert (found.low, found.high) == pytest.approx((0.5, 0.5), abs=1e-12)


def test_what_is_common_to_both_cancels():
    rng = np.random.default_rng(1)
    hard = rng.normal(3, 10, 200)
    own = rng.normal(0.1, 0.05, 200)
    found = paired_difference(hard, hard + own, np.ones(200))
    assert found.high - found.low < 0.02  # the texts' own spread of 10 would give about 2.8


def test_swapping_the_two_mirrors_the_interval():
    rng = np.random.default_rng(3)
    a, b, w = rng.normal(size=12), rng.normal(size=12), rng.uniform(1, 2, 12)
    there, back = paired_difference(a, b, w), paired_difference(b, a, w)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=1e-12)


@pytest.mark.parametrize(("shift", "noise"), [(0.0, True), (1.0, False), (-1.0, False)])
def test_within_noise_means_that_the_interval_includes_zero(shift, noise):
    change = np.random.default_rng(4).normal(0, 0.1, 20)
    found = paired_difference(np.zeros(20), change - change.mean() + shift, np.ones(20))
    assert found.within_noise is noise
