"""Which program computes attention: where each can run, and that a training leaves the model as it was."""

import pytest
import torch

import burnish
from burnish.core.errors import SettingsError
from burnish.train.attention import chosen
from burnish.train.stage import Train

TEXT = "The quick brown fox jumps over the lazy dog. " * 20


def test_auto_leaves_a_model_on_a_cpu_as_it_is():
    assert chosen("auto", "cpu", "float32") == ""


@pytest.mark.parametrize("installed", [True, False])
def test_auto_is_flash_where_it_can_run(installed, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: installed)
    assert chosen("auto", "cuda", "bfloat16") == ("flash_attention_2" if installed else "")
    assert chosen("auto", "cuda:1", "float32") == ""


@pytest.mark.parametrize(
    "attention, device, precision, lacking",
    [
        ("flash", "cpu", "bfloat16", "flash, which needs a GPU"),
        ("flash", "cuda", "float32", "flash, which needs precision: bfloat16"),
        ("flash", "cuda", "bfloat16", "flash, which needs the package flash-attn"),
        ("flex", "cpu", "float32", "flex, whose backward pass runs on GPUs only"),
    ],
)
def test_what_cannot_run_is_refused(attention, device, precision, lacking, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: False)
    with pytest.raises(SettingsError, match=lacking):
        chosen(attention, device, precision)


def test_written_out_attention_trains_alike_and_the_model_has_its_own_again(tiny_llama, tmp_path, capsys):
    start = burnish.load(tiny_llama)
    before = start.module.config._attn_implementation
    trained = {}
    for attention in ("auto", "eager"):
        stage = Train(context=32, batch=4, steps=3, lr=0.01, attention=attention, lora_rank=2)
        made = stage(start, data=[TEXT], work_dir=tmp_path / attention, progress=True)
        assert made.module.config._attn_implementation == before
        trained[attention] = made.module.state_dict()
    assert "attention is computed by eager" in capsys.readouterr().err
    for name, weight in trained["auto"].items():
        torch.testing.assert_close(trained["eager"][name], weight, rtol=1e-3, atol=1e-4)
