import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.report.charts import WIDTHS, Datum, Figure, Series, draw, thin
from burnish.report.figures import best_for_size
from burnish.report.layers import split_name, view
from burnish.report.numbers import MINUS
from burnish.report.run import Node
from burnish.report.scale import Scale, fit, tick_labels
from burnish.report.tree import tree

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


def test_the_best_line_holds_only_points_that_nothing_beats():
    points = [(3, 1.0), (1, 5.0), (2, 5.0), (2, 2.0), (4, 1.5)]
    assert best_for_size(points) == [(1, 5.0), (2, 2.0), (3, 1.0)]


@pytest.mark.parametrize("variant", WIDTHS)
def test_everything_that_is_drawn_lies_within_the_picture(variant):
    data = [Datum(10.0**i, 2.0**-i, 1.5**-i * 0.1, 2.5, label=f"point number {i}") for i in range(6)]
    chart = draw(Figure("t", "d", "x", "y", [Series("s", data, line=True)], log_x=True), variant)
    marks = [mark for line in chart.lines for mark in line.marks]
    assert all(0 <= mark.x <= chart.width and 0 <= mark.y <= chart.height for mark in marks)
    assert all(0 <= label.x <= chart.width for label in chart.labels)


def test_labels_do_not_cover_each_other():
    data = [Datum(1 + i * 0.01, 1 + i * 0.01, label="a long label of a node") for i in range(8)]
    chart = draw(Figure("t", "d", "x", "y", [Series("s", data)]), "wide")
    lines = [label.y for label in chart.labels]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("model.layers.12.self_attn.q_proj", 12, "self_attn.q_proj"),
        ("model.layers.3.mlp.experts.7.w1.weight", 3, "mlp.experts.*.w1"),
        ("lm_head.weight", None, "lm_head"),
    ],
)
def test_a_matrix_name_splits_into_layer_and_role(name, layer, role):
    assert split_name(name) == (layer, role)


def test_the_table_of_matrices_begins_with_the_worst():
    rows = [{"name": f"model.layers.{i}.q", "relative_error": error} for i, error in enumerate([0.1, 0.4, 0.2])]
    found = view("n", rows)
    assert found is not None and [row[0] for row in found.rows] == [f"model.layers.{i}.q" for i in (1, 2, 0)]


def test_experts_share_a_bar_with_a_whisker_to_the_largest():
    rows = [{"name": f"model.layers.0.experts.{e}.w1", "relative_error": e / 10} for e in range(1, 6)]
    found = view("n", rows)
    assert found is not None
    bar = found.charts[0].rows[0].bars[0]
    assert bar.whisker is not None and bar.whisker < bar.y
    assert "median of 5, largest 0.500" in bar.title


def test_siblings_share_a_lane_and_an_only_child_stays_in_its_parents():
    nodes = [
        Node(name, "s", parent, "finished", {}, "", "")
        for name, parent in [("a", "start"), ("b", "start"), ("c", "a"), ("d", "c")]
    ]
    at = {row.name: row.x for row in tree(nodes, "m").rows}
    assert at["a"] == at["b"] > at["start"]
    assert at["a"] == at["c"] == at["d"]


def test_links_of_the_tree_end_at_the_child():
    nodes = [Node(name, "s", "start", "finished", {}, "", "") for name in "ab"]
    drawn = tree(nodes, "m")
    ends = [float(found.group(1)) for link in drawn.rows[0].links if (found := re.search(r"H([\d.]+)$", link))]
    assert ends == [drawn.rows[1].x, drawn.rows[2].x]


def test_a_node_is_told_by_the_settings_that_its_siblings_do_not_share():
    nodes = [
        Node(f"n{bits}", "quantize", "start", "finished", {"bits": bits, "group_size": 64}, "", "") for bits in (3, 4)
    ]
    assert [row.facts for row in tree(nodes, "m").rows[1:]] == ["bits 3", "bits 4"]
