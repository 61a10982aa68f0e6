"""Cutting in rounds is a chain of ordinary nodes: their settings, what is refused, and a run that was interrupted."""

import json

import pytest
from transformers import AutoModelForCausalLM

from burnish.core.checkpoint import Lineage, hash_directory
from burnish.core.errors import RecipeError, SettingsError
from burnish.core.recipe import START, Node, parse_recipe, single_node
from burnish.core.runner import Run
from burnish.slim.stage import Slim
from burnish.stages import ROOMS

TWO = {"target": "60%", "multiple": 8, "rounds": 2, "data": "data.txt"}
NODE = Node("narrow", "slim", START, {})


def parts(settings, model, node=NODE):
    return Slim.parse(settings, where="recipe.yaml").expand(node, model.plan)


def test_two_rounds_are_two_cuts_and_two_recoveries(model_of):
    nodes = parts(TWO, model_of("mixtral"))
    assert [(node.name, node.stage, node.parent) for node in nodes] == [
        ("narrow.cut1", "slim", START),
        ("narrow.distill1", "distill", "narrow.cut1"),
        ("narrow.cut2", "slim", "narrow.distill1"),
        ("narrow", "distill", "narrow.cut2"),
    ]


def test_the_first_model_is_the_teacher_of_every_round(model_of):
    first, recovered, second, last = parts(TWO, model_of("mixtral"), Node("narrow", "slim", "trained", {}))
    assert (first.settings["labels"], first.settings["teacher"]) == ("sampled", None)
    assert (second.settings["labels"], second.settings["teacher"]) == ("teacher", "trained")
    assert recovered.settings["teacher"] == last.settings["teacher"] == "trained"


def test_the_last_width_is_that_of_one_shot(model_of):
    model = model_of("mixtral")
    one, two, three = (parts(TWO | {"rounds": number}, model) for number in (1, 2, 3))
    assert len(one) == 2
    assert one[0].settings["width"] == two[2].settings["width"] == three[4].settings["width"]
    widths = [node.settings["width"] for node in three if node.stage == "slim"]
    assert widths == sorted(set(widths), reverse=True)


def test_ratios_replace_the_equal_ones(model_of):
    nodes = parts(TWO | {"target": None, "width": 8, "ratios": [0.5]}, model_of("mixtral"))
    assert [node.settings["width"] for node in nodes if node.stage == "slim"] == [24, 8]


def test_budgets_are_steps_of_the_batch_and_context(model_of):
    recovery = {"batch": 4, "context": 32, "lr": 0.01}
    nodes = parts(TWO | {"budgets": [1000, 3000], "recovery": recovery}, model_of("mixtral"))
    assert [node.settings["steps"] for node in nodes if node.stage == "distill"] == [8, 24]
    assert nodes[1].settings["lr"] == 0.01


def test_experts_are_dropped_in_rounds(model_of):
    settings = {"method": "drop", "num_experts": 2, "rounds": 2, "data": "data.txt"}
    nodes = parts(settings, model_of("mixtral"))
    assert [node.settings["num_experts"] for node in nodes if node.stage == "slim"] == [3, 2]
    assert {node.settings["teacher"] for node in nodes if node.stage == "slim"} == {None}  # REAP takes no gradient


def test_attention_groups_shrink_along(model_of):
    nodes = parts(TWO | {"rounds": 1, "num_key_value_heads": 1}, model_of("mixtral"))
    assert nodes[0].settings["num_key_value_heads"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": None}, "no data is named"),
        ({"teacher": "start"}, "the teacher of every round is the first model"),
        ({"ratios": [0.5, 0.5]}, "ratios has 2 entries, but 2 rounds have 1"),
        ({"ratios": [1.5]}, "a share between 0 and 1"),
        ({"budgets": [1, 2, 3]}, "budgets has 3 entries, but there are 2 rounds"),
        ({"budgets": [0]}, "each is a number of tokens"),
        ({"rounds": None}, "there are no rounds"),
        ({"rounds": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_rounds_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Slim.parse(TWO | settings, where="recipe.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multiple": 16, "target": None, "width": 32}, "each must leave a smaller width, a multiple of 16"),
        ({"rounds": 9}, "use fewer rounds"),
        ({"recovery": {"lerning_rate": 1}}, "there is no setting 'lerning_rate' here"),
        ({"recovery": {"teacher": "x"}}, "follows from the setting 'teacher' of slim"),
        ({"recovery": {"steps": 5}, "budgets": [100]}, "both say how long"),
    ],
)
def test_rounds_that_cannot_be_are_refused_before_anything_runs(model_of, settings, message):
    with pytest.raises(SettingsError, match=message):
        parts(TWO | settings, model_of("mixtral"))


def test_in_memory_there_is_only_one_step(model_of, texts):
    with pytest.raises(SettingsError, match="in Python chain Slim and Distill"):
        Slim(**TWO)(model_of("mixtral"), calibration=texts)


def test_a_part_may_not_have_the_name_of_another_node(model_of, tmp_path, texts):
    start, data = tmp_path / "start", tmp_path / "data.txt"
    model_of("mixtral").save(start)
    data.write_text(texts[0])
    recipe = f"""
start: {start}
nodes:
  - {{name: narrow.cut1, stage: slim, width: 24, multiple: 8}}
  - {{name: narrow, stage: slim, width: 8, multiple: 8, rounds: 1, data: {data}}}
"""
    with pytest.raises(RecipeError, match=r"one of them called 'narrow.cut1'"):
        Run(parse_recipe(recipe, source="recipe.yaml"), tmp_path / "run", ROOMS)


@pytest.mark.slow
def test_a_run_in_rounds_that_was_killed_goes_on_where_it_was(model_of, tmp_path, texts):
    start, data, out = tmp_path / "start", tmp_path / "data.txt", tmp_path / "out"
    model_of("mixtral").save(start)
    data.write_text(texts[0])
    settings = TWO | {"data": str(data), "calibration": str(data), "tokens": 512, "length": 32, "allow_unseen": True}
    settings |= {"recovery": {"context": 32, "batch": 2, "steps": 3, "optimizer": "adamw"}}

    def run(**changes):
        recipe = single_node("slim", settings, start=str(start), evaluate=None)
        return Run(recipe, tmp_path / "out.run", ROOMS, targets={"slim": out}, **changes)

    class Killed(BaseException):
        pass

    def stop_before_the_second_cut(message):
        if message.startswith("slim.cut2: slim starts"):
            raise Killed

    with pytest.raises(Killed):
        run(log=stop_before_the_second_cut).execute()
    decisions = run().execute()
    assert [decision.action for decision in decisions] == ["skip", "skip", "run", "run"]
    lineage = json.loads((out / "burnish.json").read_text())
    assert lineage["stage"] == "distill"
    assert lineage["parents"]["teacher"] == Lineage(files=hash_directory(start)).hash
    before, after = (AutoModelForCausalLM.from_pretrained(place).num_parameters() for place in (start, out))
    assert 0.5 < after / before <= 0.6


def test_pieces_are_made_in_one_round_of_the_size_of_one_shot(model_of):
    model = model_of("mixtral")
    settings = {"method": "split", "target": "70%", "multiple": 8, "data": "data.txt", "score": "fisher"}
    cut, recovered = parts(settings | {"rounds": 1}, model)
    wanted = Slim(**{name: value for name, value in settings.items() if name != "data"}).plan(model.plan())
    assert Slim.parse(cut.settings, where="cut").plan(model.plan()).config.to_dict() == wanted.config.to_dict()
    assert (recovered.stage, recovered.settings["teacher"]) == ("distill", START)
