import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core.page.charts import SIZES, Datum, Figure, Series, draw, thin
from burnish.core.page.numbers import MINUS
from burnish.core.page.scale import Scale, fit, tick_labels

finite = st.floats(min_value=-1e9, max_value=1e9)


@given(st.lists(finite, min_size=1, max_size=30), st.booleans(), st.sampled_from([None, False]))
def test_every_value_lies_on_its_axis(values, from_zero, log):
    low, high, is_log = fit(values, from_zero=from_zero, log=log)
    scale = Scale(low, high, 0.0, 100.0, is_log)
    assert all(-0.1 <= scale(value) <= 100.1 for value in values)


@given(st.floats(min_value=1e-9, max_value=1e9), st.floats(min_value=1.001, max_value=1e6))
def test_a_logarithmic_axis_has_at_least_two_ticks_within_it(low, ratio):
    ticks = Scale(low, low * ratio, 0, 1, log=True).ticks(5)
    assert len(ticks) >= 2 and all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in ticks)


@given(finite, st.floats(min_value=1e-3, max_value=1e9))
def test_a_linear_axis_has_between_two_and_nine_ticks(low, span):
    assert 2 <= len(Scale(low, low + span, 0, 1).ticks(5)) <= 9


def test_a_rounding_error_beside_real_values_leaves_the_axis_linear():
    assert fit([1.0, 2e-309]) == pytest.approx((-0.08, 1.08, False))


@given(st.floats(min_value=-1e5, max_value=1e5), st.floats(min_value=1e-4, max_value=1e8), st.booleans())
def test_a_tick_is_where_its_label_says(low, span, log):
    low = abs(low) + 1e-3 if log else low
    ticks = Scale(low, low + span, 0, 1, log).ticks(5)
    read = [float(text.replace(",", "").replace(MINUS, "-")) for text in tick_labels(ticks)]
    assert read == pytest.approx(ticks, rel=1e-6, abs=1e-9)


def test_steps_of_a_quarter_are_not_rounded_away():
    assert tick_labels([0, 0.0025, 0.005, 0.0075, 0.01]) == ["0", "0.0025", "0.0050", "0.0075", "0.0100"]


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis():
    scale = Scale(1, 100, 0, 200, log=True)
    assert (scale(1), scale(10), scale(100)) == (0, 100, 200)


def test_thinning_keeps_the_peaks_and_the_ends():
    data = [Datum(x, 1000.0 if x == 4321 else -7.0 if x == 77 else 0.0) for x in range(10_000)]
    kept = thin(data, 300)
    assert len(kept) <= 310
    assert {0, 77, 4321, 9999} <= {datum.x for datum in kept}


def drawn(figure: Figure, variant: str) -> ElementTree.Element:
    return ElementTree.fromstring(draw(figure, variant))


@pytest.mark.parametrize("variant", SIZES)
def test_everything_that_is_drawn_lies_within_the_picture(variant):
    data = [Datum(10.0**i, 2.0**-i, 1.5**-i * 0.1, 2.5, label=f"point number {i}") for i in range(6)]
    picture = drawn(Figure("t", "d", "x", "y", [Series("s", data, line=True)], log_x=True), variant)
    width, height = SIZES[variant]
    starts = [re.match(r"M([\d.-]+) ([\d.-]+)", shape.get("d", "")) for shape in picture.iter("path")]
    places = [(float(one[1]), float(one[2])) for one in starts if one]
    places += [(float(one.get("x", "nan")), float(one.get("y", "nan"))) for one in picture.iter("text")]
    assert len(places) > 12
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)


def test_labels_do_not_cover_each_other():
    data = [Datum(1 + i * 0.01, 1 + i * 0.01, label="a long label of a node") for i in range(8)]
    picture = drawn(Figure("t", "d", "x", "y", [Series("s", data)]), "wide")
    lines = [one.get("y") for one in picture.iter("text") if one.get("class") == "name"]
    assert lines and len(lines) == len(set(lines))


def test_a_box_reaches_from_its_low_to_its_high_end_and_a_bar_from_zero():
    scale = {"range_x": (0, 2), "range_y": (0, 4)}
    box = drawn(Figure("t", "d", "x", "y", [Series("s", [Datum(1, 2, 1, 3)], bars=1)], **scale), "half")
    bar = drawn(Figure("t", "d", "x", "y", [Series("s", [Datum(1, 2)], bars=1)], **scale), "half")
    ends = []
    for picture in (box, bar):
        shape = next(one.get("d", "") for one in picture.iter("path") if one.get("class") == "bars")
        found = re.match(r"M[\d.]+ ([\d.]+)H[\d.]+V([\d.]+)", shape)
        assert found is not None
        ends.append((float(found[1]), float(found[2])))
    (box_top, box_bottom), (bar_top, bar_bottom) = ends
    unit = box_bottom - bar_top
    assert (bar_bottom - bar_top, box_bottom - box_top) == pytest.approx((2 * unit, 2 * unit), abs=0.2)
