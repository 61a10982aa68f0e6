"""Figures, matrices and the tree: what the report makes of a ledger before it is drawn."""

import re

import pytest

from burnish.core.page.frame import environment
from burnish.report.figures import best_for_size
from burnish.report.layers import split_name, view
from burnish.report.page import MAX_NODES
from burnish.report.run import NodeRecord
from burnish.report.tree import Branch, tree


def test_the_best_line_holds_only_points_that_nothing_beats():
    points = [(3, 1.0), (1, 5.0), (2, 5.0), (2, 2.0), (4, 1.5)]
    assert best_for_size(points) == [(1, 5.0), (2, 2.0), (3, 1.0)]


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
    drawing = found.bars.draw("wide")
    whisker = re.search(r'class="whisker" d="M[\d.]+ ([\d.]+)V([\d.]+)"', drawing)
    assert whisker is not None and float(whisker[2]) < float(whisker[1])
    assert "median of 5, largest 0.500" in drawing


def shape(branches: list[Branch]) -> dict:
    return {one.name: shape(one.children) for one in branches}


def test_the_tree_has_every_node_below_what_it_was_made_from():
    parents = [("a", "start"), ("b", "start"), ("c", "a"), ("d", "c"), ("e", "gone")]
    nodes = [NodeRecord(name, "s", parent, "finished", {}, "", "") for name, parent in parents]
    assert shape(tree(nodes, "m")) == {"start": {"a": {"c": {"d": {}}}, "b": {}}, "e": {}}


def test_the_longest_recipe_that_is_shown_is_drawn_to_its_end():
    nodes = [NodeRecord(f"n{i}", "s", f"n{i - 1}" if i else "start", "finished", {}, "", "") for i in range(MAX_NODES)]
    template = environment("burnish.report").from_string(
        '{% import "run.html.j2" as run %}{{ run.branches(tree, "tree") }}'
    )
    assert template.render(tree=tree(nodes, "m")).count("<li>") == MAX_NODES + 1


def test_a_node_is_told_by_the_settings_that_its_siblings_do_not_share():
    nodes = [
        NodeRecord(f"n{bits}", "s", "start", "finished", {"bits": bits, "group_size": 64}, "", "") for bits in (3, 4)
    ]
    (start,) = tree(nodes, "m")
    assert [start.facts, *(one.facts for one in start.children)] == ["m", "s: bits 3", "s: bits 4"]
