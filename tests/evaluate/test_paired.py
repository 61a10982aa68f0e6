import math

import numpy as np
import pytest
import scipy.stats

from burnish.core.errors import DataError, SettingsError
from burnish.evaluate import compare
from burnish.evaluate.maths.bootstrap import bootstrap, expanded_level, paired_bootstrap

ONES = np.ones(40)
SKEWED = np.random.default_rng(0).lognormal(size=40)


def test_value_is_the_ratio_of_sums_not_the_mean_of_ratios():
    assert bootstrap(np.array([1.0, 9.0]), np.array([1.0, 3.0])).value == 2.5


def test_interval_equals_scipys_percentile_bootstrap_at_the_expanded_level():
    ours = bootstrap(SKEWED, ONES)
    level = expanded_level(40, 0.95)
    theirs = scipy.stats.bootstrap(
        (SKEWED,), np.mean, method="percentile", confidence_level=1 - 2 * level, n_resamples=20_000, rng=1
    ).confidence_interval
    # Both ends are quantiles of 10,000 and 20,000 random means; their standard error is about 2 % of the width.
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.08 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.08 * width)


def test_expanded_level_is_the_plain_level_for_many_sequences():
    assert expanded_level(100_000, 0.95) == pytest.approx(0.025, rel=1e-3)


@pytest.mark.parametrize("num", [6, 20])
def test_interval_covers_the_mean_as_often_as_it_says(num: int):
    generator = np.random.default_rng(num)
    hits = 0
    for seed in range(400):
        interval = bootstrap(generator.normal(size=num), np.ones(num), resamples=2000, seed=seed)
        hits += interval.low <= 0 <= interval.high
    # 400 draws of a 95 % event have a standard deviation of 1.1 %; four of them are allowed.
    assert 0.906 < hits / 400 < 0.994


def test_equal_ratios_leave_no_doubt():
    weights = np.array([1.0, 2.0, 5.0])
    interval = bootstrap(3 * weights, weights)
    assert (interval.low, interval.high) == pytest.approx((3.0, 3.0))


def test_one_sequence_gives_no_interval():
    interval = bootstrap(np.array([2.0]), np.array([4.0]))
    assert interval.value == 0.5 and math.isnan(interval.low) and math.isnan(interval.high)


def test_pairing_removes_what_both_share():
    shared = 100 * SKEWED
    noise = np.random.default_rng(1).normal(size=40)
    interval = paired_bootstrap(shared + 0.5 + 0.1 * noise, shared, ONES)
    assert interval.low > 0.4 and interval.high < 0.6


def test_pairing_a_model_with_itself_gives_zero():
    interval = paired_bootstrap(SKEWED, SKEWED, ONES)
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_compare_gives_the_difference_per_token():
    first = {"tokens": [10.0, 10.0, 10.0], "nats": [30.0, 32.0, 28.0]}
    second = {"tokens": [10.0, 10.0, 10.0], "nats": [25.0, 27.0, 23.0]}
    interval = compare(first, second)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.5, 0.5, 0.5))


def test_compare_refuses_different_sequences():
    with pytest.raises(DataError, match="not measured on the same sequences"):
        compare({"tokens": [10.0], "nats": [1.0]}, {"tokens": [11.0], "nats": [1.0]})


def test_compare_names_the_missing_column():
    with pytest.raises(DataError, match="second evaluation: has no column 'kl'"):
        compare({"tokens": [1.0], "kl": [0.0]}, {"tokens": [1.0]}, column="kl")


def test_compare_refuses_unknown_columns():
    with pytest.raises(SettingsError, match="'bytes' cannot be compared"):
        compare({"tokens": [1.0]}, {"tokens": [1.0]}, column="bytes")
