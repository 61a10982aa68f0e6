"""A checkpoint that is damaged or made to harm gives one sentence, and nothing outside its directory is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from malformed import MALFORMED, Spoil, config, edited

from burnish.core.checkpoint import Model, load, remarks
from burnish.core.errors import CheckpointError, CheckpointWarning


@pytest.fixture
def good(tiny_llama: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_llama, tmp_path / "model")
    return tmp_path / "model"


def read_whole(directory: Path) -> Model:
    """Everything that a stage could ask for."""
    model = load(directory)
    assert model.plan() and model.tokenizer and model.module
    return model


@pytest.mark.parametrize(("spoil", "sentence"), MALFORMED.values(), ids=MALFORMED.keys())
def test_one_sentence_says_what_is_wrong(good: Path, spoil: Spoil, sentence: str):
    spoil(good)
    with pytest.raises(CheckpointError) as caught:
        read_whole(good)
    line = str(caught.value)
    assert sentence in line
    assert "\n" not in line and len(line) < 700


def test_the_list_is_long_enough():
    assert len(MALFORMED) >= 40


# -- what may be chosen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation", "owner/kernel"),
        ("attn_implementation", "flash_attention_2"),
        ("_experts_implementation", "owner/kernel"),
        ("transformers_weights", "other.safetensors"),
        ("auto_map", {"AutoModelForCausalLM": "modeling.Evil"}),
        ("to_dict", "not a method any more"),
        ("get_text_config", 7),
        ("base_model_tp_plan", {"layers.*": "owner/plan"}),
        ("output_attentions", True),
        ("return_dict", False),
        ("configuration_files", ["config.4.0.0/../../../x.json"]),
    ],
)
def test_what_a_config_may_not_choose_is_dropped_and_said(good: Path, key: str, value: object):
    expected = load(good).module.state_dict()
    config(**{key: value})(good)
    (remark,) = remarks(good)
    assert remark.startswith(key) and "left out" in remark
    with pytest.warns(CheckpointWarning, match=key):
        model = load(good)
    ids = torch.arange(8)[None]
    assert model.module(ids).logits.shape == (1, 8, 384)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.module.state_dict().items())
    model.save(good.parent / "out")
    assert remarks(good.parent / "out") == []


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_an_attention_of_ours_is_kept(good: Path, name: str):
    config(_attn_implementation=name)(good)
    assert remarks(good) == []
    assert load(good).module.config._attn_implementation == name


def test_what_a_nested_config_may_not_choose_is_dropped_too(tmp_path: Path):
    from transformers import Gemma3Config

    raw = Gemma3Config().to_dict()
    raw["text_config"]["_attn_implementation"] = "owner/kernel"
    raw["architectures"] = ["Gemma3ForConditionalGeneration"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert any("text_config" in remark and "_attn_implementation" in remark for remark in remarks(tmp_path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fast_tokenizer_files", ["../outside/tokenizer.1.0.0.json"]),
        ("vocab_file", "/etc/hostname"),
        ("init_inputs", ["/etc/hostname"]),
        ("auto_map", {"AutoTokenizer": ["tokenization.Evil", None]}),
    ],
)
def test_files_that_a_tokenizer_names_are_not_read(good: Path, key: str, value: object):
    expected = load(good).tokenizer("What a time it was.")["input_ids"]
    (good.parent / "outside").mkdir()
    (good.parent / "outside" / "tokenizer.1.0.0.json").write_text("not a tokenizer")
    edited("tokenizer_config.json", **{key: value})(good)
    assert load(good).tokenizer("What a time it was.")["input_ids"] == expected


def test_a_cache_of_the_hub_with_its_links_loads(good: Path, tmp_path: Path):
    repository = tmp_path / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(good.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert read_whole(snapshot).module.num_parameters() > 0


def test_a_link_out_of_the_hubs_cache_is_refused(good: Path, tmp_path: Path):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in good.iterdir():
        (snapshot / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match="is a link out of the checkpoint"):
        load(snapshot)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["an index that leads up", "weights that are a link outwards"])
def test_a_command_says_so_in_one_line(good: Path, name: str):
    spoil, sentence = MALFORMED[name]
    spoil(good)
    command = [sys.executable, "-P", "-m", "burnish", "evaluate", str(good)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=good.parent)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
