"""The stage from settings to a checkpoint that a stock loader reads."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.core.checkpoint import Model, load, read_safetensors_header
from burnish.core.errors import DataError, EngineError, NumericalError, RecipeError, SettingsError
from burnish.core.kinds import Weights
from burnish.quantize.factors import choose_factors
from burnish.quantize.stage import Quantize
from small_models import make, small_llama, small_tokenizer

SMALL = {"group_size": 32, "tokens": 512, "length": 32}


def logits(module, ids):
    with torch.no_grad():
        return module(input_ids=ids).logits.float()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_saved_checkpoint_is_the_module_in_memory(model, ids, tmp_path, bits, symmetric):
    quantized = Quantize(method="rtn", bits=bits, symmetric=symmetric, group_size=32)(model)
    quantized.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    torch.testing.assert_close(logits(read, ids), logits(quantized.module, ids), rtol=0, atol=0)
    assert load(tmp_path / "out").plan().weights is Weights.PACKED


@pytest.mark.parametrize("group_size", [None, 64])
def test_channel_and_group_scales_load_without_any_argument(model, ids, tmp_path, group_size):
    quantized = Quantize(method="rtn", bits=4, group_size=group_size)(model)
    quantized.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(read, ids), logits(quantized.module, ids), rtol=0, atol=0)


@pytest.fixture
def untied(tmp_path):
    small_llama(tie_word_embeddings=False).save_pretrained(tmp_path / "untied")
    small_tokenizer().save_pretrained(tmp_path / "untied")
    return load(tmp_path / "untied")


@pytest.mark.parametrize("loader", [None, CompressedTensorsConfig(dequantize=True)], ids=["default", "dequantized"])
def test_an_untied_head_of_another_width_is_read_as_it_was_rounded(untied, ids, tmp_path, loader):
    stage = Quantize(method="rtn", bits=3, group_size=32, head_bits=8)
    quantized = stage(untied)
    quantized.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **({"quantization_config": loader} if loader else {}))
    torch.testing.assert_close(logits(read, ids), logits(quantized.module, ids), rtol=0, atol=0)
    head, before = (one.module.lm_head.weight for one in (quantized, untied))
    step = before.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 128
    assert ((head - before).unflatten(1, (-1, 32)).abs() <= step * 1.01).all() and not torch.equal(head, before)
    header = read_safetensors_header(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight_packed" in header and "lm_head.weight" not in header
    dense = Quantize(method="rtn", bits=3, group_size=32).plan(untied.plan())
    planned, size = stage.plan(untied.plan()), (tmp_path / "out" / "model.safetensors").stat().st_size
    assert planned.num_bytes < dense.num_bytes and abs(size - planned.num_bytes) < 0.1 * size


def test_a_head_that_cannot_be_packed_is_refused_in_words(model, untied):
    with pytest.raises(SettingsError, match="no stock loader reads a packed embedding"):
        Quantize(method="rtn", group_size=32, head_bits=8).plan(model.plan())
    for other, name in (({"target": "3.0bits"}, "target"), ({"stream": True}, "stream")):
        with pytest.raises(SettingsError, match=f"head_bits and {name} cannot"):
            Quantize(method="rtn", group_size=32, head_bits=8, **other).plan(untied.plan())
    with pytest.raises(EngineError, match="lm_head"):
        Quantize(method="rtn", group_size=32, bits=4, head_bits=3, engine="vllm").plan(untied.plan())


def test_bfloat16_checkpoints_stay_bfloat16(model, ids, tmp_path):
    model.dtype = torch.bfloat16
    quantized = Quantize(method="gptq", bits=4, **SMALL)(model, calibration=[str(SMALL) * 200])
    quantized.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    assert quantized.module.dtype is torch.bfloat16
    header = read_safetensors_header(tmp_path / "out" / "model.safetensors")
    assert {entry["dtype"] for name, entry in header.items() if name.endswith("weight_scale")} == {"BF16"}
    for name, parameter in quantized.module.named_parameters():
        assert torch.equal(read.get_parameter(name), parameter), name


def test_the_input_model_is_left_alone(model, texts):
    before = {name: parameter.clone() for name, parameter in model.module.named_parameters()}
    Quantize(method="gptq", bits=2, **SMALL)(model, calibration=texts)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.module.named_parameters())


@pytest.mark.parametrize("method", ["gptq", "yaqa"])
def test_the_same_settings_give_the_same_bits(model, texts, method):
    stage = Quantize(method=method, bits=3, **SMALL)
    first, second = (stage(model, calibration=texts).packed for _ in range(2))
    for weight, tensors in first.items():
        assert all(torch.equal(tensor, second[weight][name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 48}, "group_size 48 does not divide the 64 inputs"),
        ({"method": "yaqa", "propagate": True}, "propagate is for gptq"),
        ({"method": "yaqa", "stream": True}, "yaqa compares whole models unless damping and sketch are given"),
        ({"method": "rtn", "curve": True}, "rtn uses no calibration text"),
        ({"method": "gptq", "curve": True, "propagate": True}, "leave propagate and stream out"),
        ({"ignore": ("model.layers.0.self_attn.q_proj",)}, "vLLM joins into one matrix"),
        ({"ignore": ("lm_hat",)}, "matches no matrix"),
        ({"ignore": ("re:.*",)}, "nothing left"),
        ({"ignore": ("re:[",)}, "'re:\\[' is not a regular expression"),
    ],
)
def test_impossible_settings_are_refused_when_planned(model, settings, message):
    with pytest.raises(SettingsError, match=message):
        Quantize(**settings).plan(model.plan())


def test_the_message_on_group_sizes_says_which_do(model):
    with pytest.raises(SettingsError, match="use 16, 32, 64 or one scale per row"):
        Quantize(group_size=128).plan(model.plan())
    odd = Model(module=make("llama", intermediate_size=40), tokenizer=model.tokenizer)
    with pytest.raises(SettingsError, match=r"divide the 40 inputs; use one scale per row \(group_size: null\)"):
        Quantize(group_size=64).plan(odd.plan())


@pytest.mark.parametrize(("given", "tokens"), [("65k", 65_000), ("1.5M", 1_500_000), (65_536, 65_536), (None, 16_384)])
def test_tokens_may_be_given_short(given, tokens):
    assert Quantize.parse({"tokens": given}, where="recipe.yaml").num_tokens == tokens


def test_tokens_that_are_no_number_are_refused():
    with pytest.raises(SettingsError, match="tokens is '65q'"):
        Quantize.parse({"tokens": "65q"}, where="recipe.yaml")


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(SettingsError, match=f"bits is {bits}"):
        Quantize.parse({"bits": bits}, where="recipe.yaml")


def test_an_engine_without_a_kernel_is_refused(model):
    with pytest.raises(EngineError, match="no built-in kernel for 3-bit"):
        Quantize(bits=3, engine="vllm").plan(model.plan())


def test_planned_bytes_are_those_on_disk(model, tmp_path):
    stage = Quantize(method="rtn", bits=3, group_size=32)
    planned = stage.plan(model.plan()).num_bytes
    directory = stage(model).save(tmp_path / "out")
    header = read_safetensors_header(directory / "model.safetensors").values()
    written = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header)
    assert planned == pytest.approx(written, rel=0.01)  # the input's file header is counted with its weights


@pytest.mark.parametrize(("free", "passes"), [(1_000_000_000, "1 pass"), (1, "2 passes")])
def test_a_text_is_read_as_often_as_free_memory_makes_it(model, monkeypatch, free, passes):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    (note,) = [
        note for note in Quantize(method="gptq", stream=False, **SMALL).plan(model.plan()).notes if "pass" in note
    ]
    assert passes in note


def test_too_short_a_text_is_refused_with_what_would_do(model):
    with pytest.raises(DataError, match="windows"):
        Quantize(length=64, tokens=128)(model, calibration=["a short text. " * 40])


def test_fewer_tokens_than_inputs_are_refused_with_what_would_do(model, texts):
    with pytest.raises(DataError, match=r"widest layer has 128 inputs; .*--tokens 512 or more"):
        Quantize(length=16, tokens=96)(model, calibration=texts)


def test_weights_that_are_not_finite_are_refused_by_name(model):
    model.module.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.up_proj"):
        Quantize(method="rtn")(model)


def test_activations_that_are_not_finite_are_refused_by_name(model, texts):
    model.module.model.layers[0].input_layernorm.weight.data[0] = float("inf")
    with pytest.raises(NumericalError, match=r"layers\.0.*calibration text are not finite"):
        Quantize(method="gptq", **SMALL)(model, calibration=texts)


def test_ignored_matrices_stay_as_they_are(model, ids, tmp_path):
    quantized = Quantize(method="rtn", bits=2, group_size=32, ignore=("re:.*layers.1.*",))(model)
    quantized.save(tmp_path / "out")
    assert quantized.quantization_config["ignore"] == sorted(
        [
            "lm_head",
            *(n.removesuffix(".weight") for n, _ in model.module.named_parameters() if "layers.1" in n and "proj" in n),
        ]
    )
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(read, ids), logits(quantized.module, ids), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("damping", "advice"), [(1e-4, "damping: 0.01 or more"), (0.1, "other text"), (None, "other text")]
)
def test_a_factor_without_a_decomposition_is_refused_by_name(model, texts, monkeypatch, damping, advice):
    # Whether float32 decomposes one that is nearly singular depends on the processor; this one it never does.
    def indefinite(*arguments):
        factors = choose_factors(*arguments)
        return replace(factors, input_side=-factors.input_side)

    monkeypatch.setattr("burnish.quantize.method.choose_factors", indefinite)
    shown = "held-out" if damping is None else str(damping)
    with pytest.raises(NumericalError, match=rf"layers\..*not positive definite with damping {shown}(.|\n)*{advice}"):
        Quantize(method="gptq", damping=damping, **SMALL)(model, calibration=texts)


@pytest.mark.parametrize("method", ["gptq", "fp8", "bitsandbytes"])
def test_a_packed_checkpoint_of_another_program_is_refused_with_its_name(tiny_llama, tmp_path, method):
    place = shutil.copytree(tiny_llama, tmp_path / method)
    config = json.loads((place / "config.json").read_text()) | {"quantization_config": {"quant_method": method}}
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=f"(dense original|convert unpack): .*quant_method '{method}'"):
        Quantize(method="rtn")(load(place))
