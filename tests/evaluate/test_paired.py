import pytest

from burnish.core.errors import DataError, SettingsError
from burnish.evaluate import compare


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
