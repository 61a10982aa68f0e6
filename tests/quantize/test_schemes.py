"""Schemes with rounded activations, several schemes in one checkpoint, and what is refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.core.checkpoint import Model, load, read_safetensors_header
from burnish.core.errors import EngineError, SettingsError
from burnish.quantize.settings import complete_scheme
from burnish.quantize.stage import Quantize
from small_models import make

DOWN = "re:.*down_proj"
QKV = "re:.*(q|k|v)_proj"


def read(directory):
    return AutoModelForCausalLM.from_pretrained(directory, quantization_config=CompressedTensorsConfig(dequantize=True))


def assert_the_same_weights(loaded, module):
    for name, parameter in module.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def written_bytes(directory):
    header = read_safetensors_header(directory / "model.safetensors").values()
    return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", ["fp8-dynamic", "w8a8-int8"])
def test_the_saved_checkpoint_is_the_module_in_memory(model, tmp_path, scheme, dtype):
    model.dtype = dtype
    quantized = Quantize(method="rtn", scheme=scheme)(model)
    quantized.save(tmp_path / "out")
    assert_the_same_weights(read(tmp_path / "out"), quantized.module)


@pytest.mark.parametrize(("scheme", "dtype"), [("fp8-dynamic", "F8_E4M3"), ("w8a8-int8", "I8")])
def test_weights_lie_on_disk_in_eight_bits(model, tmp_path, scheme, dtype):
    directory = Quantize(method="rtn", scheme=scheme)(model).save(tmp_path / "out")
    header = read_safetensors_header(directory / "model.safetensors")
    assert header["model.layers.0.mlp.down_proj.weight"]["dtype"] == dtype
    assert header["model.layers.0.mlp.down_proj.weight_scale"]["shape"] == [64, 1]


@pytest.mark.parametrize("scheme", ["fp8-dynamic", "w8a8-int8"])
def test_transformers_rounds_activations_as_the_configuration_says(model, ids, tmp_path, scheme):
    """Without any argument the stock loader also rounds activations token by token: near the dense model, not equal."""
    quantized = Quantize(method="rtn", scheme=scheme)(model)
    quantized.save(tmp_path / "out")
    with torch.no_grad():
        dense = quantized.module(ids).logits
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
    difference = float((stock - dense).norm() / dense.norm())
    assert 0 < difference < 0.05  # eight bits of activation in 14 layers


def test_one_sided_rounding_works_on_float8(model, texts, tmp_path):
    settings = {"scheme": "fp8-dynamic", "tokens": 512, "length": 32}
    quantized = Quantize(method="gptq", **settings)(model, calibration=texts)
    nearest = Quantize(method="rtn", **settings)(model)
    quantized.save(tmp_path / "out")
    assert_the_same_weights(read(tmp_path / "out"), quantized.module)
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(quantized.module.get_parameter(name), nearest.module.get_parameter(name))


@pytest.mark.parametrize(
    "settings",
    [
        {"scheme": "fp8-dynamic"},
        {"scheme": "w8a8-int8"},
        {"bits": 4, "group_size": 32, "overrides": {DOWN: {"bits": 8}}},
        {"bits": 4, "group_size": 32, "overrides": {DOWN: {"scheme": "fp8-dynamic"}, QKV: {"symmetric": False}}},
    ],
)
def test_planned_bytes_are_those_on_disk(model, tmp_path, settings):
    stage = Quantize(method="rtn", **settings)
    planned = stage.plan(model.plan()).num_bytes
    written = written_bytes(stage(model).save(tmp_path / "out"))
    assert planned == pytest.approx(written, rel=0.01)  # the input's file header is counted with its weights


@pytest.mark.parametrize(
    "overrides",
    [
        {DOWN: {"bits": 8}},
        {DOWN: {"group_size": None}, QKV: {"bits": 8, "symmetric": False}},
        {DOWN: {"scheme": "fp8-dynamic"}},
        {DOWN: {"scheme": "w8a8-int8"}, "model.layers.1.self_attn.o_proj": {"scheme": "fp8-dynamic"}},
    ],
)
def test_several_schemes_in_one_checkpoint_load_in_transformers(model, tmp_path, overrides):
    quantized = Quantize(method="rtn", bits=4, group_size=32, overrides=overrides)(model)
    quantized.save(tmp_path / "out")
    assert_the_same_weights(read(tmp_path / "out"), quantized.module)


def test_the_first_pattern_that_matches_counts(model):
    overrides = {"model.layers.0.mlp.down_proj": {"bits": 8}, DOWN: {"bits": 2}}
    quantized = Quantize(method="rtn", bits=4, group_size=32, overrides=overrides)(model)
    groups = quantized.quantization_config["config_groups"].values()
    targets = {group["weights"]["num_bits"]: group["targets"] for group in groups}
    assert targets == {4: ["Linear"], 8: ["model.layers.0.mlp.down_proj"], 2: ["model.layers.1.mlp.down_proj"]}


def test_overrides_inherit_what_they_leave_out():
    stage = Quantize(bits=3, group_size=32, symmetric=False, overrides={DOWN: {"bits": 8}})
    assert stage.overrides[DOWN].model_dump() == {"scheme": "int", "bits": 8, "group_size": 32, "symmetric": False}


def test_settings_read_the_same_after_they_were_written():
    stage = Quantize(scheme="w8a8-int8", overrides={DOWN: {"scheme": "int", "bits": 8}})
    again = Quantize.parse(stage.model_dump(mode="json"), where="recipe.yaml")
    assert again == stage and again.canonical() == stage.canonical()
    assert (stage.bits, stage.group_size) == (8, None)


def test_a_scheme_states_its_parts_also_where_a_command_line_repeats_them():
    assert complete_scheme({"scheme": "fp8-dynamic", "bits": "8"})["group_size"] is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "w8a8-int8", "bits": 4}, "bits is 4, but w8a8-int8 has bits 8"),
        ({"scheme": "fp8-dynamic", "group_size": 64}, "group_size is 64, but fp8-dynamic has one scale per row"),
        ({"scheme": "w8a8-int8", "overrides": {DOWN: {"bits": 4}}}, "in overrides, re:.*down_proj: bits is 4"),
        ({"scheme": "fp4"}, "scheme is 'fp4'"),
        ({"scheme": ["int"]}, "scheme"),
        ({"overrides": {DOWN: {"bit": 8}}}, "overrides"),
        ({"overrides": [DOWN]}, "overrides"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message.replace("*", r"\*")):
        Quantize.parse(settings, where="recipe.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overrides": {"re:.*q_proj": {"bits": 8}}}, "which vLLM joins with it"),
        ({"overrides": {"re:.*gate_proj": {"symmetric": False}}}, "which vLLM joins with it"),
        ({"overrides": {"re:.*dwon_proj": {"bits": 8}}}, "matches none of the matrices"),
        ({"overrides": {DOWN: {"scheme": "fp8-dynamic"}}, "scale_search": True}, "scale_search is for integer grids"),
        ({"overrides": {DOWN: {"group_size": 48}}}, "group_size 48 does not divide"),
    ],
)
def test_impossible_overrides_are_refused_when_planned(model, settings, message):
    with pytest.raises(SettingsError, match=message):
        Quantize(**settings).plan(model.plan())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 4, "engine": "vllm", "overrides": {DOWN: {"bits": 3}}}, "no built-in kernel for 3-bit"),
        ({"bits": 8, "engine": "vllm-cpu"}, "no kernel for packed 8-bit"),
    ],
)
def test_an_engine_without_a_kernel_is_refused(model, settings, message):
    with pytest.raises(EngineError, match=message):
        Quantize(**settings).plan(model.plan())


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 8, "engine": "vllm"},
        {"scheme": "fp8-dynamic", "engine": "vllm"},
        {"scheme": "w8a8-int8", "engine": "vllm-cpu"},
    ],
)
def test_an_engine_with_a_kernel_is_not_refused(model, settings):
    assert Quantize(**settings).plan(model.plan()).num_bytes > 0


def test_the_plan_says_that_dense_measurements_leave_activations_out(model):
    notes = Quantize(scheme="w8a8-int8").plan(model.plan()).notes
    assert any("rounds activations" in note for note in notes)


@pytest.fixture
def mixtral(model):
    module = make("mixtral", num_hidden_layers=1, num_local_experts=2, num_experts_per_tok=1)
    return Model(module=module, tokenizer=model.tokenizer)


@pytest.mark.parametrize(
    "settings", [{"scheme": "fp8-dynamic"}, {"group_size": 32, "overrides": {"re:.*o_proj": {"bits": 8}}}]
)
def test_experts_load_in_transformers(mixtral, tmp_path, settings):
    mixtral.dtype = torch.bfloat16  # transformers opens float8 experts in bfloat16, whatever the model's dtype
    quantized = Quantize(method="rtn", **settings)(mixtral)
    quantized.save(tmp_path / "out")
    assert_the_same_weights(read(tmp_path / "out"), quantized.module)


def test_plain_int8_experts_are_refused(mixtral):
    with pytest.raises(SettingsError, match="not as plain int8"):
        Quantize(scheme="w8a8-int8").plan(mixtral.plan())


def test_experts_with_a_scheme_of_their_own_are_refused(mixtral):
    with pytest.raises(SettingsError, match="one scheme for all experts"):
        Quantize(group_size=32, overrides={"re:.*experts.*": {"bits": 8}}).plan(mixtral.plan())


def test_a_packed_checkpoint_of_each_scheme_opens_as_one(model, tmp_path):
    Quantize(method="rtn", scheme="fp8-dynamic")(model).save(tmp_path / "out")
    assert load(tmp_path / "out").plan().num_parameters == model.plan().num_parameters
