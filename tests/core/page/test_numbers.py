import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.page import numbers


def plain(text: str) -> str:
    return text.replace(numbers.SPACE, " ").replace(numbers.MINUS, "-")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (269_060_552, "269 MB"), (1_310_000_000, "1.31 GB"), (79_400_000, "79.4 MB")],
)
def test_bytes_are_decimal_with_three_digits(value, text):
    assert plain(numbers.number_bytes(value)) == text


@pytest.mark.parametrize(
    ("value", "text"), [(576, "576"), (9999, "9,999"), (134_515_008, "134.5 M"), (8_030_261_248, "8.030 B")]
)
def test_counts_are_written_as_parameters_are_spoken_of(value, text):
    assert plain(numbers.number_count(value)) == text


@pytest.mark.parametrize(("low", "high", "digits"), [(24.6, 25.7, 2), (112, 141, 0), (0.0436, 0.0484, 4), (1, 1, 3)])
def test_an_interval_decides_how_many_decimals_are_shown(low, high, digits):
    assert numbers.interval_digits(low, high) == digits


def test_a_negative_number_that_rounds_to_zero_has_no_sign():
    assert numbers.decimal(-0.0004, 2) == "0.00"


@given(st.floats(min_value=1e-12, max_value=1e15))
def test_three_significant_digits_are_within_half_a_per_cent(value):
    text = plain(numbers.significant(value, 3)).replace(",", "")
    assert float(text) == pytest.approx(value, rel=0.0051)
