"""AutoRound's library on our windows: what it gives back is packed, and what it cannot be asked is refused."""

import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.core.checkpoint import Model
from burnish.core.errors import MissingExtraError, SettingsError
from burnish.quantize.autoround import taken_back
from burnish.quantize.formats import FORMATS
from burnish.quantize.stage import Quantize
from small_models import make

SMALL = {"method": "autoround", "group_size": 32, "tokens": 512, "length": 32, "iterations": 2}


@pytest.mark.slow
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_the_library_rounds_is_written_and_read_as_it_is_in_memory(model, texts, ids, tmp_path, symmetric):
    before = torch.get_rng_state()
    ignored = "model.layers.0.self_attn.o_proj"
    stage = Quantize(bits=3, symmetric=symmetric, ignore=(ignored,), overrides={"re:.*down_proj": {"bits": 4}}, **SMALL)
    quantized = stage(model, calibration=texts)
    assert torch.equal(torch.get_rng_state(), before)
    quantized.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids).logits, quantized.module(input_ids=ids).logits)
    theirs, ours = (dict(one.module.named_parameters()) for one in (model, quantized))
    assert torch.equal(theirs[f"{ignored}.weight"], ours[f"{ignored}.weight"])
    for name, levels in (("model.layers.0.mlp.up_proj.weight", 8), ("model.layers.1.mlp.down_proj.weight", 16)):
        groups = ours[name].detach().unflatten(1, (-1, 32)).flatten(0, 1)
        assert max(len(group.unique()) for group in groups) <= levels
        error, step = ours[name] - theirs[name], 2 * theirs[name].detach().abs().max() / (levels - 1)
        assert 0 < error.abs().max() < 1.5 * step  # the nearest level, or the one beyond it


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_and_scales_are_those_of_the_library(symmetric):
    scheme = FORMATS["int"](3, 4, symmetric)
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 8, (2, 8), generator=draw)
    scale, zero = torch.tensor([[0.5, -0.25], [1.0, 2.0]]), torch.tensor([[4.0, 4.0], [4.0, 4.0]])
    if not symmetric:
        zero = torch.tensor([[0.0, 7.0], [3.0, 4.0]])
    values = (codes - zero.repeat_interleave(4, 1)) * scale.repeat_interleave(4, 1)
    layer = SimpleNamespace(weight=values.to(torch.bfloat16), scale=scale.half(), zp=zero)
    found, grid = taken_back(layer, scheme, torch.bfloat16, values)
    assert torch.equal(found.int(), codes - 4) and torch.equal(grid.values(found), values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "3.0bits"}, "autoround rounds by itself, so that target"),
        ({"refit": 1}, "so that refit means nothing to it"),
        ({"damping": 0.1}, "so that damping"),
        ({"scale_search": True}, "so that scale_search"),
        ({"head_bits": 8}, "so that head_bits|head_bits is 8"),
        ({"curve": True}, "so that curve"),
        ({"stream": True}, "autoround takes the whole model"),
        ({"propagate": True}, "propagate is for gptq"),
        ({"scheme": "w8a8-int8"}, "packed integers alone"),
    ],
)
def test_what_it_cannot_be_asked_is_refused_when_planned(model, settings, message):
    settings = SMALL | settings
    if "scheme" in settings:
        del settings["group_size"]
    with pytest.raises(SettingsError, match=message):
        Quantize(**settings).plan(model.plan())


def test_experts_are_refused_when_planned(model):
    mixtral = Model(module=make("mixtral"), tokenizer=model.tokenizer)
    with pytest.raises(SettingsError, match="is no linear layer by itself, and autoround is handed such alone"):
        Quantize(**SMALL).plan(mixtral.plan())


def test_without_the_library_the_extra_is_named(model, texts, monkeypatch):
    monkeypatch.setitem(sys.modules, "auto_round", None)
    with pytest.raises(MissingExtraError, match=r"burnish\[autoround\]"):
        Quantize(**SMALL)(model, calibration=texts)
