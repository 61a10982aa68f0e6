"""Of several stock forms of one size the nearest to the model is kept, measured on text that scored nothing."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from burnish.arch import describe
from burnish.core.checkpoint import Model, load, plan_config
from burnish.core.errors import DataError, SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.slim.best import forms
from burnish.slim.collect import down_views
from burnish.slim.price import Distance
from burnish.slim.stage import Slim
from small_models import make, small_config

SMALL = {"method": "best", "tokens": 512, "length": 32, "multiple": 8, "allow_unseen": True}
WIDE = {"intermediate_size": 512, "num_experts": 8}


def made(model, texts, place, target="60%"):
    """The smaller model, and the table of forms."""
    ledger = Ledger(None)
    ctx = Context({"calibration": texts}, place, "cpu", seeded_generator(0), Progress(False), ledger)
    smaller = Slim(target=target, **SMALL).run(model, ctx)
    (rows,) = [row["rows"] for row in ledger.rows if row["row"] == "table" and row["name"] == "slim forms"]
    return smaller, rows


@pytest.fixture
def olmoe(tiny_llama):
    return Model(module=make("olmoe", disturbed=True, **WIDE), tokenizer=load(tiny_llama).tokenizer)


def test_the_nearest_form_is_the_one_that_is_made(olmoe, texts, tmp_path):
    smaller, rows = made(olmoe, texts, tmp_path)
    assert {row["form"] for row in rows} >= {"narrow", "split in 2", "split in 4", "drop", "7 experts of 336"}
    (chosen,) = [row for row in rows if row["chosen"]]
    assert chosen["nats per token"] == min(row["nats per token"] for row in rows)
    assert smaller.plan().num_parameters == chosen["parameters"]
    allowed = olmoe.plan().num_parameters * 6 // 10
    assert all(0.9 * allowed < row["parameters"] <= allowed for row in rows)
    assert any("whole pieces" in row["form"] for row in rows)
    read = AutoModelForCausalLM.from_pretrained(smaller.save(tmp_path / "out"), experts_implementation="eager")
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        assert torch.equal(read(ids).logits, smaller.module(ids).logits)


def test_experts_that_do_nothing_make_another_form_the_nearest(olmoe, texts, tmp_path):
    for view in down_views(olmoe.module, "experts"):
        if view.expert == 2:
            view.write_(view.tensor * 0)
    smaller, rows = made(olmoe, texts, tmp_path)
    (chosen,) = [row["form"] for row in rows if row["chosen"]]
    assert chosen == "7 experts of 336"
    sizes = describe(smaller.module).experts
    assert (sizes.num_experts, sizes.intermediate_size) == (7, 336)


def test_the_distance_is_from_the_model_as_it_was(olmoe):
    windows = torch.randint(3, 384, (2, 24), generator=torch.Generator().manual_seed(0))
    distance = Distance(olmoe.module, windows)
    assert distance(olmoe.module) == pytest.approx(0, abs=1e-7)
    for view in down_views(olmoe.module, "experts"):
        view.write_(view.tensor * 0)
    assert distance(olmoe.module) > 1e-4


def test_without_windows_to_compare_on_it_is_refused(olmoe, tmp_path):
    with pytest.raises(DataError, match="no window is left"):
        Slim(target="70%", **SMALL | {"tokens": 10**6})(olmoe, calibration=["a b c d e f g h " * 20])


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("phimoe", {"narrow", "drop"}),
        ("jamba", {"drop"}),
        ("qwen3_moe", {"narrow", "split in 2", "split in 4", "drop"}),
    ],
)
def test_forms_that_a_class_cannot_have_are_left_out(kind, names):
    own = {"jamba": {"num_experts": 16}, "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 512}}
    before = plan_config(small_config(kind, **own.get(kind, {"intermediate_size": 256})))
    stage = Slim(target="80%", **SMALL)
    assert {name for name, _, _ in forms(stage, before) if " of " not in name and "whole" not in name} == names
    planned = stage.plan(before)
    assert any("the nearest of" in note for note in planned.notes)


def test_pieces_are_tried_whose_widths_are_multiples():
    """As of GPT-OSS, whose experts are 2,880 wide."""
    before = plan_config(small_config("gpt_oss", intermediate_size=2880))
    names = {name for name, _, _ in forms(Slim(target="70%", **SMALL | {"multiple": 64}), before)}
    assert "split in 3" in names
    assert not {"split in 2", "split in 4"} & names


def test_a_target_that_no_form_reaches_is_refused():
    with pytest.raises(SettingsError, match="are left"):
        Slim(target="1%", **SMALL).plan(plan_config(small_config("mixtral")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 4}, "give a target"),
        ({"target": "50%", "refit": "alone"}, "refit does not go with method: best"),
        ({"target": "50%", "score": "fisher"}, "score does not go with method: best"),
        ({"target": "50%", "stream": True}, "method best compares whole networks"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Slim.parse({"method": "best"} | settings, where="recipe.yaml")
