"""Nearest rounding of model types that the table of architectures does not know."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.core.checkpoint import load
from burnish.core.errors import CheckpointError, SettingsError
from burnish.quantize.stage import Quantize
from small_models import SHAPE, small_tokenizer

RTN = Quantize(method="rtn", bits=4, group_size=32)


def unknown(kind, place, **settings):
    from transformers import AutoConfig

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SHAPE | {"hidden_act": "silu"} | settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    small_tokenizer().save_pretrained(place)
    return load(place)


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("stablelm", 14),
        ("gpt_neox", 8),
        ("opt", 12),
        ("olmo", 14),
        ("apertus", 12),
    ],
)
def test_its_linear_layers_are_rounded_and_a_stock_loader_reads_them(kind, number, ids, tmp_path):
    model = unknown(kind, tmp_path / "model")
    notes = RTN.plan(model.plan()).notes
    assert any("has no row" in note and "dense stays lm_head" in note for note in notes)
    quantized = RTN(model)
    assert len(quantized.packed) == number
    quantized.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        found, original = read(input_ids=ids).logits, model.module(input_ids=ids).logits
        assert torch.equal(found, quantized.module(input_ids=ids).logits)
    assert not torch.allclose(found, original)


def test_what_groups_do_not_divide_stays_dense_and_is_listed(tmp_path):
    model = unknown("stablelm", tmp_path / "model", intermediate_size=80)
    notes = " ".join(RTN.plan(model.plan()).notes)
    assert "model.layers.0.mlp.down_proj" in notes and "model.layers.0.mlp.up_proj" not in notes
    assert not any("down_proj" in name for name in RTN(model).packed)


def test_methods_that_look_at_text_still_need_a_row(tmp_path):
    model = unknown("stablelm", tmp_path / "model")
    for settings in ({"method": "gptq"}, {"method": "rtn", "refit": 1}):
        with pytest.raises(CheckpointError, match="does not know model_type 'stablelm'"):
            Quantize(**settings).plan(model.plan())


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("gpt_bigcode", {}), ("mamba2", {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 8})],
)
def test_a_type_that_stock_loaders_could_not_read_is_refused(kind, shape, tmp_path):
    with pytest.raises(SettingsError, match=f"cannot load a packed {kind}"):
        RTN.plan(unknown(kind, tmp_path / "model", **shape).plan())


def test_a_type_with_other_names_on_disk_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"'olmo_hybrid' has no row .* other names on disk"):
        RTN.plan(unknown("olmo_hybrid", tmp_path / "model").plan())


def test_it_is_not_streamed(tmp_path):
    model = unknown("stablelm", tmp_path / "model")
    with pytest.raises(SettingsError, match="stream is true, but model_type 'stablelm' has no row"):
        Quantize(method="rtn", group_size=32, stream=True)(model)
