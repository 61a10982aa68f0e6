import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.report import numbers
from burnish.report.metrics import METRICS, metric
from burnish.report.run import Value


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


def test_a_value_has_the_digits_that_its_interval_supports():
    assert METRICS["perplexity"].write(Value(25.1329, 24.61, 25.69)) == "25.13"


def test_a_share_is_written_in_per_cent():
    assert plain(METRICS["top1_agreement"].write(Value(0.7719, 0.766, 0.778))) == "77.19 %"


def test_an_unknown_metric_keeps_the_name_and_unit_of_the_ledger():
    unknown = metric("blimp_accuracy")
    assert (unknown.label, plain(unknown.write(Value(81.25, unit="points")))) == ("blimp accuracy", "81.25 points")
