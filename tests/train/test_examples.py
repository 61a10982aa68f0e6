"""The recipes and examples of this room run, small."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import transformers

import burnish
from burnish.core.recipe import read_recipe
from burnish.train.stage import Train

ROOT = Path(__file__).resolve().parents[2]
CHATML = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize("name", ["train_optimizers", "train_chat"])
def test_the_nodes_of_a_recipe_train_a_small_model(name, tiny_llama, tmp_path):
    for node in read_recipe(ROOT / "recipes" / f"{name}.yaml", start="start").nodes:
        if "lora_rank" in node.settings:
            pytest.importorskip("peft")
        model = burnish.load(tiny_llama)
        model.tokenizer.chat_template = CHATML
        stage = Train.parse(node.settings | {"steps": 2, "context": 192}, where=node.where)
        is_chat = node.settings["data"].endswith(".jsonl")
        data = str(ROOT / node.settings["data"]) if is_chat else [(ROOT / "LICENSE").read_text()]
        trained = stage(model, data=data, work_dir=tmp_path / node.name)
        assert isinstance(trained.module, transformers.LlamaForCausalLM)
        rows = (tmp_path / node.name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [1, 2]


def test_the_example_with_a_loss_of_its_own_runs(monkeypatch, capsys, tmp_path):
    (tmp_path / "text.txt").write_text((ROOT / "LICENSE").read_text())
    monkeypatch.setattr(sys, "argv", ["own_loss.py", str(tmp_path / "text.txt"), "2"])
    runpy.run_path(str(ROOT / "examples" / "own_loss.py"))
    assert "in 2 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_with_a_bound_measures_three_models(tiny_llama, capsys):
    losses = runpy.run_path(str(ROOT / "examples" / "keep_the_old.py"))["main"](str(tiny_llama), "3")
    assert set(losses) == {"start", "free", "bounded"}
    assert "bounded" in capsys.readouterr().out


def test_chats_of_the_examples_are_chats():
    for line in (ROOT / "examples" / "data" / "chats.jsonl").read_text().splitlines():
        assert json.loads(line)["messages"][-1]["role"] == "assistant"
