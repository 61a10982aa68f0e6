"""What goes in comes out: tensors that stock loading passes over, and the words of config.json."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from published import DEEPSEEK_V3, PUBLISHED, publish, with_next_token_layer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from burnish import Quantize, Slim, Upcycle
from burnish.core.checkpoint import Model, load
from burnish.core.checkpoint.passed_over import ignored_tensors
from burnish.core.checkpoint.tensor_files import TensorReader
from burnish.core.errors import SettingsError
from burnish.core.stage import Stage


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text())


def saved_again(directory: Path, out: Path) -> Path:
    """What a stage makes that changes nothing."""
    model = load(directory)
    return model.derive(module=copy.deepcopy(model.module)).save(out)


@pytest.mark.parametrize("raw", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_a_config_keeps_its_words(tmp_path: Path, raw: dict[str, Any]):
    written = config_of(saved_again(publish(tmp_path / "in", raw), tmp_path / "out"))
    kept = {key: value for key, value in raw.items() if key not in ("auto_map", "transformers_version")}
    assert {key: written.get(key) for key in kept} == kept
    added = written.keys() - raw.keys()
    assert added <= {"dtype", "rope_parameters", "num_local_experts"}
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("raw", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_both_dialects_are_read_as_before(tmp_path: Path, raw: dict[str, Any]):
    before, after = publish(tmp_path / "in", raw), saved_again(tmp_path / "in", tmp_path / "out")
    new = AutoConfig.from_pretrained(after)
    assert new.rope_parameters == AutoConfig.from_pretrained(before).rope_parameters
    assert new.rope_parameters["rope_theta"] == raw["rope_theta"]
    older = {key: value for key, value in config_of(after).items() if key in raw}  # what a reader of version 4 knows
    (tmp_path / "older").mkdir()
    (tmp_path / "older" / "config.json").write_text(json.dumps(older))
    assert AutoConfig.from_pretrained(tmp_path / "older").rope_parameters == new.rope_parameters


def test_a_slimmer_config_says_so_under_every_name(tmp_path: Path):
    publish(tmp_path / "in", PUBLISHED["qwen3-moe"])
    slim = Slim(method="drop", num_experts=2, score="magnitude")
    written = config_of(slim(load(tmp_path / "in")).save(tmp_path / "out"))
    assert written["num_experts"] == 2
    assert written.get("num_local_experts", 2) == 2
    assert written["rope_theta"] == 1_000_000
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_another_dtype_is_said_under_both_names(tmp_path: Path):
    publish(tmp_path / "in", PUBLISHED["llama-3"])
    model = load(tmp_path / "in", dtype=torch.float32)
    written = config_of(model.derive(module=model.module).save(tmp_path / "out"))
    assert written["dtype"] == written["torch_dtype"] == "float32"


# -- tensors that stock loading passes over --------------------------------------------------------------------------


@pytest.fixture
def deepseek(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A DeepSeek-V3 with its layer for multi-token prediction, and the tensors of that layer."""
    directory = publish(tmp_path / "in", DEEPSEEK_V3)
    return directory, with_next_token_layer(directory)


def same_bytes(directory: Path, expected: dict[str, torch.Tensor]) -> bool:
    reader = TensorReader(directory)
    return all(
        torch.equal(reader.read(name), tensor) and reader.meta[name].dtype == tensor.dtype
        for name, tensor in expected.items()
    )


def test_the_layer_for_multi_token_prediction_is_found(deepseek: tuple[Path, dict[str, torch.Tensor]]):
    directory, layer = deepseek
    assert ignored_tensors(directory)[0].keys() == layer.keys()


def test_rounding_carries_it(deepseek: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path):
    directory, layer = deepseek
    out = Quantize(method="rtn", group_size=16)(load(directory)).save(tmp_path / "out")
    assert same_bytes(out, layer)
    written = config_of(out)
    assert written["num_nextn_predict_layers"] == 1
    assert "model.layers.2.eh_proj" in written["quantization_config"]["ignore"]
    assert load(out).module(torch.arange(8)[None]).logits.isfinite().all()


def test_rounding_from_disk_to_disk_carries_what_is_passed_over(tiny_llama: Path, tmp_path: Path):
    directory = Path(shutil.copytree(tiny_llama, tmp_path / "in"))
    extra = {"extra.weight": torch.arange(6, dtype=torch.int16).view(2, 3)}
    save_file(load_file(directory / "model.safetensors") | extra, directory / "model.safetensors")
    out = Quantize(method="rtn", group_size=32, stream=True)(load(directory)).save(tmp_path / "out")
    ((name, _),) = ignored_tensors(out.parent / "in")[0].items()
    assert name == "extra.weight"
    assert torch.equal(load_file(out / "model-00002-of-00002.safetensors")["extra.weight"], extra["extra.weight"])
    assert load(out).module(torch.arange(8)[None]).logits.isfinite().all()


def test_saving_again_carries_it_once(deepseek: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path):
    directory, layer = deepseek
    out = saved_again(saved_again(directory, tmp_path / "one"), tmp_path / "two")
    assert same_bytes(out, layer)
    assert TensorReader(out).meta.keys() == TensorReader(directory).meta.keys()


def test_a_cut_that_would_leave_it_wrong_is_refused(deepseek: tuple[Path, dict[str, torch.Tensor]]):
    directory, layer = deepseek
    with pytest.raises(SettingsError, match=rf"{len(layer)} tensors that stock loading passes over"):
        Slim(width=32, multiple=16, score="magnitude")(load(directory))


def test_a_layer_that_the_config_disowns_is_left_behind(deepseek: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path):
    directory, layer = deepseek
    (directory / "config.json").write_text(json.dumps(config_of(directory) | {"num_nextn_predict_layers": 0}))
    notes = load(directory).plan().notes
    assert any("left behind" in note and str(len(layer)) in note for note in notes)
    out = Slim(width=32, multiple=16, score="magnitude")(load(directory)).save(tmp_path / "out")
    assert not TensorReader(out).meta.keys() & layer.keys()


def test_the_plan_says_what_is_carried(deepseek: tuple[Path, dict[str, torch.Tensor]]):
    directory, layer = deepseek
    (note,) = load(directory).plan().notes
    assert f"{len(layer)} tensors that stock loading passes over are carried along unchanged" in note


def test_nothing_is_carried_where_nothing_is_passed_over(tiny_llama: Path, tmp_path: Path):
    out = saved_again(tiny_llama, tmp_path / "out")
    assert (out / "model.safetensors").is_file() and not (out / "model.safetensors.index.json").exists()


def multimodal(directory: Path) -> Path:
    """A Qwen3.5 of text and images, as its class saves it."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    from small_models import small_tokenizer

    text = {
        **{"vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 128},
        **{
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
        },
        "layer_types": ["linear_attention", "full_attention"],
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
    vision |= {"patch_size": 4, "num_position_embeddings": 16}
    ids = {"image_token_id": 380, "video_token_id": 381, "vision_start_token_id": 382, "vision_end_token_id": 383}
    torch.manual_seed(0)
    Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **ids)).save_pretrained(
        directory
    )
    small_tokenizer().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text('{"patch_size": 4}')
    return directory


def test_training_the_text_of_a_multimodal_model_keeps_its_eyes(tmp_path: Path):
    from transformers import Qwen3_5ForConditionalGeneration

    from burnish import Train

    directory = multimodal(tmp_path / "in")
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 50)
    stage = Train(data=str(tmp_path / "text.txt"), context=32, steps=1, batch=1, lr=1e-2)
    out = stage(load(directory)).save(tmp_path / "out")
    before, after = TensorReader(directory), TensorReader(out)
    assert before.meta.keys() == after.meta.keys()
    visual = {name for name in before.meta if ".visual." in name}
    assert len(visual) == 21 and same_bytes(out, {name: before.read(name) for name in visual})
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(before.read(name), after.read(name))
    assert config_of(out)["architectures"] == ["Qwen3_5ForConditionalGeneration"]
    assert config_of(out)["vision_config"] == config_of(directory)["vision_config"]
    assert (out / "preprocessor_config.json").read_bytes() == (directory / "preprocessor_config.json").read_bytes()
    _, info = Qwen3_5ForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


# -- settings of generation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [Quantize(method="rtn", group_size=32), Upcycle(num_experts=2, top_k=1)])
def test_generation_settings_that_transformers_would_not_write_are_carried(
    tiny_llama: Path, tmp_path: Path, stage: Stage
):
    directory = Path(shutil.copytree(tiny_llama, tmp_path / "in"))
    content = b'{"temperature": 0.6,\n "top_p": 0.9, "eos_token_id": [0, 1]}'
    (directory / "generation_config.json").write_bytes(content)
    out = stage(load(directory)).save(tmp_path / "out")
    assert (out / "generation_config.json").read_bytes() == content


def test_generation_settings_that_a_caller_changed_are_written(tiny_llama: Path, tmp_path: Path):
    model = load(tiny_llama)
    module = copy.deepcopy(model.module)
    module.generation_config.max_new_tokens = 7
    out = model.derive(module=module).save(tmp_path / "out")
    assert json.loads((out / "generation_config.json").read_text())["max_new_tokens"] == 7


def test_a_model_in_memory_alone_is_saved_as_transformers_saves_it(tiny_llama: Path, tmp_path: Path):
    module = load(tiny_llama).module
    out = Model(module=module).save(tmp_path / "out")
    assert config_of(out)["rope_parameters"]["rope_theta"] == 10_000
