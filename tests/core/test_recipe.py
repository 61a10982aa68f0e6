from pathlib import Path

import pytest

from burnish.core.errors import RecipeError
from burnish.core.recipe import START, parse_recipe, read_recipe

GOOD = """
name: two ways
start: models/x
nodes:
  - {name: nearest, stage: quantize, bits: 3}
  - name: gptq
    from: start
    stage: quantize
    bits: 3
  - stage: report-card
    teacher: nearest
keep: leaves
"""


def parse(text: str):
    return parse_recipe(text, source="r.yaml")


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    return str(caught.value)


def test_a_node_follows_the_previous_one_unless_it_says_from():
    recipe = parse(GOOD)
    assert [(node.name, node.parent) for node in recipe.nodes] == [
        ("nearest", START),
        ("gptq", START),
        ("report-card", "gptq"),
    ]


def test_settings_are_everything_but_name_stage_from_and_launch():
    recipe = parse("start: m\nnodes:\n  - {name: a, stage: quantize, bits: 2, launch: {processes: 3}}")
    assert recipe.nodes[0].settings == {"bits": 2}
    assert recipe.nodes[0].processes == 3


def test_keep_leaves_keeps_only_nodes_without_children():
    assert parse(GOOD).kept() == {"nearest", "report-card"}


def test_nodes_come_after_what_they_need_whatever_the_order_in_the_file():
    recipe = parse("start: m\nnodes:\n  - {name: b, from: a, stage: s}\n  - {name: a, from: start, stage: s}")
    assert [node.name for node in recipe.nodes] == ["a", "b"]


def test_a_setting_that_equals_a_node_name_is_no_dependency():
    assert parse("start: m\nnodes: [{name: gptq, stage: quantize, method: gptq}]").nodes[0].parent == START


def test_start_can_be_given_outside_the_file():
    assert parse_recipe("nodes: [{stage: s}]", source="r", start="elsewhere").start == "elsewhere"


def test_names_may_have_spaces_and_unicode():
    assert parse("start: m\nnodes: [{name: größe drei, stage: s}]").nodes[0].name == "größe drei"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("- 1", "is not a mapping"),
        ("start: m\nnods: []", "r.yaml:2: a recipe has no key 'nods'; did you mean 'nodes'?"),
        ("start: m\nnodes: []", "r.yaml:2: has no nodes; write 'nodes:' and below it '- stage: quantize'"),
        ("start: m", "r.yaml:1: has no nodes; write 'nodes:' and below it"),
        ("start: m\nnodes: {a: {stage: s}}", "nodes is a mapping, where a list is expected; write 'nodes:' and below"),
        ("start: m\nnodes: quantize", "nodes is a string, where a list is expected"),
        ("nodes: [{stage: s}]", "names no start checkpoint"),
        ("start: m\nnodes:\n  - {bits: 3}", "r.yaml:3: node 1 names no stage"),
        ("start: m\nnodes:\n  - stage: s\n  - stage: s", "r.yaml:4: two nodes are called 's'"),
        ("start: m\nnodes: [{name: start, stage: s}]", "'start' is the name of the input"),
        ("start: m\nnodes: [{name: ../up, stage: s}]", "'../up' cannot be a name"),
        ("start: m\nname: /tmp/x\nnodes: [{stage: s}]", "r.yaml:2: '/tmp/x' cannot be a name"),
        ("start: m\nnodes: [{name: a, from: b, stage: s}, {name: b, from: a, stage: s}]", "circle: a -> b -> a"),
        ("start: m\nnodes: [{name: a, from: a, stage: s}]", "circle: a -> a"),
        ("start: m\nnodes: [{name: alpha, stage: s}, {from: alhpa, stage: t}]", "did you mean 'alpha'?"),
        ("start: m\nnodes: [{stage: s, launch: 2}]", "'launch' is written {processes: N}"),
        ("start: m\nnodes: [{stage: s, launch: {processes: 0}}]", "must be at least 1"),
        ("start: m\nkeep: some\nnodes: [{stage: s}]", "r.yaml:2: 'keep' is written all, leaves or"),
        ("start: m\nkeep: [x]\nnodes: [{stage: s}]", "'keep' names 'x', which is no node"),
        ("start: m\nnodes:\n  - {stage: s, bits: 2, bits: 3}", "r.yaml:3: the key 'bits' is written twice"),
        ("start: m\nnodes: [{stage: s}", "r.yaml:2: is not valid YAML"),
        ("start: m\nnodes: !!python/object:os.system [x]", "is not valid YAML"),
        ("a: &a [*a]\nstart: m", "refers to itself"),
        ("start: m\nevaluate: 3\nnodes: [{stage: s}]", "r.yaml:2: 'evaluate' is not a mapping"),
    ],
)
def test_a_mistake_is_one_sentence_with_file_and_line(text: str, expected: str):
    assert expected in refused(text)


def test_aliases_that_expand_without_end_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "entries once its aliases are expanded" in refused("\n".join(lines))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"nothing\.yaml: no such recipe file"):
        read_recipe(tmp_path / "nothing.yaml")


def test_a_binary_file_is_no_recipe(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        read_recipe(path)
