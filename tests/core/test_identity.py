"""A model's identity: of its directory while it is untouched, of what is in memory once anything was changed."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from burnish.core.checkpoint import Lineage, Model, content_hash, hash_directory, load, move
from burnish.core.checkpoint import model as model_file


@pytest.fixture
def model(tiny_llama: Path) -> Model:
    return load(tiny_llama)


def test_untouched_it_is_the_hash_of_the_directory_read_or_not(model: Model, tiny_llama: Path):
    expected = content_hash(hash_directory(tiny_llama))
    assert model.identity == expected
    _ = model.tokenizer(["a text", "a longer text"], padding=True), model.config  # what callers do with them all day
    with torch.no_grad():
        model.module(torch.arange(5)[None])
    assert model.identity == expected


def test_nothing_is_loaded_for_it(model: Model):
    _ = model.identity
    assert "module" not in model.__dict__ and "tokenizer" not in model.__dict__


def _in_place(model: Model) -> None:
    with torch.no_grad():
        model.module.model.layers[0].mlp.up_proj.weight.mul_(1.5)


def _behind_autograd(model: Model) -> None:
    model.module.model.layers[0].mlp.up_proj.weight.data.mul_(1.5)


def _one_element(model: Model) -> None:
    model.module.model.norm.weight.data[3] += 1e-3


def _replaced_parameter(model: Model) -> None:
    up = model.module.model.layers[1].mlp.up_proj
    up.weight = nn.Parameter(up.weight.detach().flip(0).clone())


def _replaced_module(model: Model) -> None:
    other = copy.deepcopy(model.module)
    other.lm_head.weight.data.zero_()
    model.module = other


def _given_module(model: Model) -> None:
    other = copy.deepcopy(load(model.path or "").module)
    other.lm_head.weight.data.zero_()
    model.module = other


def _buffer(model: Model) -> None:
    model.module.model.rotary_emb.inv_freq.mul_(2)


def _a_number_of_a_part(model: Model) -> None:
    model.module.model.layers[0].self_attn.scaling *= 2


def _another_activation(model: Model) -> None:
    model.module.model.layers[0].mlp.act_fn = nn.ReLU()


def _dtype(model: Model) -> None:
    model.module.to(torch.bfloat16)


def _config(model: Model) -> None:
    model.config.rms_norm_eps = 0.5


def _config_of_the_module(model: Model) -> None:
    model.module.config.rms_norm_eps = 0.5


def _chat_template(model: Model) -> None:
    model.tokenizer.chat_template = "{{ messages[0].content }}"


def _vocabulary(model: Model) -> None:
    model.tokenizer.add_tokens(["<new>"])


def _packed(model: Model) -> None:
    model.packed = {"lm_head.weight": {"lm_head.weight_packed": torch.zeros(3, dtype=torch.int32)}}


@pytest.mark.parametrize(
    "change",
    [
        _in_place,
        _behind_autograd,
        _one_element,
        _replaced_parameter,
        _replaced_module,
        _given_module,
        _buffer,
        _a_number_of_a_part,
        _another_activation,
        _dtype,
        _config,
        _config_of_the_module,
        _chat_template,
        _vocabulary,
        _packed,
    ],
)
def test_any_change_in_memory_changes_it(model: Model, tiny_llama: Path, change: Callable[[Model], None]):
    before = model.identity
    change(model)
    assert model.identity != before
    again = load(tiny_llama)  # in an order of its own: changed before anybody asked
    change(again)
    assert again.identity == model.identity


def _hook(part: nn.Module) -> None:
    part.register_forward_hook(lambda part, inputs, output: output * 1.5)


def _pre_hook(part: nn.Module) -> None:
    part.register_forward_pre_hook(lambda part, inputs: (inputs[0] * 1.5,))


def _wrapped(part: nn.Module) -> None:
    forward = part.forward
    part.forward = lambda x: forward(x) * 1.5


@pytest.mark.parametrize("attach", [_hook, _pre_hook, _wrapped])
def test_code_put_on_a_part_makes_it_another_model(model: Model, tiny_llama: Path, attach: Callable[[nn.Module], None]):
    before = model.identity
    attach(model.module.model.layers[0].mlp)
    assert model.identity != before
    assert model.identity == model.identity
    again = load(tiny_llama)
    attach(again.module.model.layers[0].mlp)
    assert again.identity != model.identity  # nothing says that two functions do the same


def test_hidden_states_and_training_mode_leave_it_what_it_is(model: Model):
    before = model.identity
    model.module.train()
    model.module.gradient_checkpointing_enable()
    model.module(torch.arange(5)[None], output_hidden_states=True, output_attentions=True)
    assert model.identity == before


def test_what_was_changed_and_changed_back_is_the_same_again(model: Model):
    before = model.identity
    weight = model.module.lm_head.weight
    kept = weight.detach().clone()
    weight.data.zero_()
    assert model.identity != before
    weight.data.copy_(kept)
    assert model.identity == before


def test_an_edited_config_that_was_never_read_with_its_weights_counts(tiny_llama: Path):
    edited = load(tiny_llama)
    edited.config.rms_norm_eps = 0.5
    assert edited.identity != load(tiny_llama).identity
    assert edited.module.config.rms_norm_eps == 0.5


def test_the_config_is_the_modules_once_there_is_one(model: Model):
    assert model.config.rms_norm_eps != 0.5
    model.module.config.rms_norm_eps = 0.5
    assert model.config.rms_norm_eps == 0.5
    model.config = copy.deepcopy(model.config)
    assert model.config is model.module.config


def test_a_model_read_in_another_dtype_is_another_and_the_dtype_on_disk_is_none(model: Model, tiny_llama: Path):
    assert model.module.dtype is torch.float32
    assert load(tiny_llama, dtype=torch.float32).identity == model.identity
    half = load(tiny_llama, dtype=torch.bfloat16)
    before = half.identity
    assert before != model.identity
    assert half.module.dtype is torch.bfloat16
    assert half.identity == before


def test_equal_contents_in_memory_are_one_model_whatever_they_were_made_from(model: Model, tiny_llama: Path):
    one, other = (load(tiny_llama).derive(module=load(tiny_llama).module) for _ in range(2))
    assert one.identity == other.identity
    other.module.lm_head.weight.data[0, 0] += 1
    assert one.identity != other.identity


def test_moving_a_model_to_a_device_leaves_it_what_it_is(model: Model):
    before = model.identity
    move(model.module, "cpu")
    assert model.identity == before


def test_a_saved_model_has_the_hash_of_its_new_directory_until_it_is_changed(model: Model, tmp_path: Path):
    model.module.lm_head.weight.data.mul_(2)
    model.save(tmp_path / "out")
    assert model.identity == load(tmp_path / "out").identity == content_hash(hash_directory(tmp_path / "out"))
    model.module.lm_head.weight.data.mul_(2)
    assert model.identity != load(tmp_path / "out").identity


def test_a_directory_that_was_written_again_does_not_speak_for_what_was_read_before(tiny_llama: Path, tmp_path: Path):
    place = Path(shutil.copytree(tiny_llama, tmp_path / "place"))
    model = load(place)
    model.module.lm_head.weight.data.mul_(1)
    before = model.identity
    changed = load(tiny_llama)
    changed.module.lm_head.weight.data.mul_(2)
    shutil.rmtree(place)
    changed.save(place)
    assert model.identity not in (before, changed.identity)
    assert load(place).identity == changed.identity


def test_a_file_changed_by_hand_counts_whatever_the_lineage_says(tiny_llama: Path, tmp_path: Path):
    load(tiny_llama).save(tmp_path / "out")
    before = load(tmp_path / "out").identity
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    lineage = Lineage.read(tmp_path / "out")
    assert lineage is not None and lineage.hash == before
    assert load(tmp_path / "out").identity != before


def test_a_hash_that_is_known_is_not_computed_again(model: Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_file, "hash_directory", lambda directory: pytest.fail("the files were read"))
    model.trust_hash("known")
    assert model.identity == "known"


def test_a_tokenizer_given_in_place_of_its_own_counts(model: Model, tiny_llama: Path):
    before = model.identity
    other = AutoTokenizer.from_pretrained(tiny_llama)
    other.chat_template = "{{ messages[0].content }}"
    model.tokenizer = other
    assert model.identity != before
