"""Packed weights made dense: what stock transformers makes of the same files, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, GptOssConfig, Mxfp4Config

from burnish.cli import main
from burnish.convert.stage import Unpack
from burnish.convert.unpack import E2M1, from_blocks, from_mxfp4
from burnish.core.checkpoint import Model, load
from burnish.core.errors import CheckpointError, RecipeError
from burnish.quantize.stage import Quantize
from burnish.slim.stage import Slim
from small_models import make, small_tokenizer

DEEPSEEK = {"n_routed_experts": 8, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "v_head_dim": 8, "hidden_size": 32}
KINDS = {"qwen3": {}, "deepseek_v3": DEEPSEEK, "qwen3_moe": {}}


def packed_as_fp8(place: Path, kind: str, block: list[int] | None) -> Path:
    """A small model as DeepSeek publishes large ones: projections in e4m3, scales of blocks beside them."""
    model = Model(module=make(kind, disturbed=True, **KINDS[kind]).to(torch.bfloat16), tokenizer=small_tokenizer())
    path = model.save(place / f"{kind}-dense")
    tensors = load_file(path / "model.safetensors")
    for name, weight in list(tensors.items()):
        if weight.ndim != 2 or not name.endswith("proj.weight"):
            continue
        rows, columns = block or weight.shape
        padded = torch.nn.functional.pad(
            weight.float(), (0, -weight.shape[1] % columns, 0, -weight.shape[0] % rows)
        ).unflatten(1, (-1, columns))
        blocks = padded.unflatten(0, (-1, rows))
        scale = blocks.abs().amax((1, 3)) / 448
        quotients = (blocks / scale[:, None, :, None]).flatten(2).flatten(0, 1)
        tensors[name] = quotients[: weight.shape[0], : weight.shape[1]].to(torch.float8_e4m3fn).contiguous()
        tensors[name + "_scale_inv"] = scale if block else scale.reshape(())
    tensors["model.layers.2.extra.weight"] = torch.ones(3, dtype=torch.bfloat16)  # stock loading passes over it
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}
    (path / "config.json").write_text(json.dumps(config))
    (path / "burnish.json").unlink()  # as it comes from elsewhere
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [[8, 16], None], ids=["blocks", "one scale"])
def test_fp8_becomes_what_stock_transformers_makes_of_it(tmp_path: Path, kind: str, block: list[int] | None):
    path = packed_as_fp8(tmp_path, kind, block)
    out = Unpack()(load(path)).save(tmp_path / "out")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    stock = AutoModelForCausalLM.from_pretrained(
        path, quantization_config=FineGrainedFP8Config(dequantize=True, weight_block_size=block), dtype=torch.bfloat16
    )
    ours = AutoModelForCausalLM.from_pretrained(out)
    assert ours.dtype is torch.bfloat16
    wanted = stock.state_dict()
    assert ours.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("shape", [(16, 32), (24, 40), (7, 17), (3, 24, 40)])
def test_blocks_are_cut_off_at_the_edge(shape: tuple[int, ...]):
    """DeepSeek-V3 has such a matrix: 576 rows in blocks of 128; every number is in the block that its place says."""
    generator = torch.Generator().manual_seed(0)
    stored = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    counts = (*shape[:-2], -(-shape[-2] // 8), -(-shape[-1] // 16))
    powers = torch.randint(120, 130, counts, generator=generator, dtype=torch.uint8)
    for scale in (torch.rand(counts, generator=generator), powers, powers.view(torch.float8_e8m0fnu)):
        dense, numbers = from_blocks(stored, scale, (8, 16)), scale.float()
        if scale.dtype is torch.uint8:
            numbers = 2.0 ** (numbers - 127)
        for place in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
            of_block = (*place[:-2], place[-2] // 8, place[-1] // 16)
            assert dense[tuple(place)] == stored[tuple(place)].float() * numbers[of_block]


def test_what_stock_loading_passes_over_is_unpacked_too_and_the_result_slims(tmp_path: Path):
    out = Unpack()(load(packed_as_fp8(tmp_path, "deepseek_v3", [16, 16]))).save(tmp_path / "out")
    assert "model.layers.2.extra.weight" in load_file(out / "model.safetensors")
    assert load(out).has_tokenizer
    narrow = Slim(width=16, multiple=8, score="magnitude").plan(load(out).plan().with_(carried=()))
    assert narrow.num_parameters < load(out).plan().num_parameters


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = packed_as_fp8(tmp_path, "qwen3", [16, 16])
    main(["convert", "unpack", str(path), "-o", str(tmp_path / "out"), "--dtype", "float32"])
    assert load(tmp_path / "out").module.dtype is torch.float32
    assert load(tmp_path / "out").lineage.stage == "unpack"
    assert "unpack starts" in capsys.readouterr().err


def test_mxfp4_becomes_what_stock_transformers_makes_of_it(tmp_path: Path):
    config = GptOssConfig(
        **{"vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
        **{"max_position_embeddings": 256, "eos_token_id": 0, "pad_token_id": 0},
    )
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "packed")
    small_tokenizer().save_pretrained(tmp_path / "packed")
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32, 16)
        tensors[name + "_blocks"] = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        tensors[name + "_scales"] = torch.randint(100, 130, shape[:3], generator=generator, dtype=torch.uint8)
    save_file(tensors, tmp_path / "packed" / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((tmp_path / "packed" / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.embed_tokens", "lm_head"]}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(raw))
    out = Unpack()(load(tmp_path / "packed")).save(tmp_path / "out")
    stock = AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed", quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, stock[name]) for name, tensor in ours.items())


def test_every_number_and_exponent_of_mxfp4():
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 1, 16)
    exponents = torch.arange(120, 136, dtype=torch.uint8).view(1, 16, 1)
    dense = from_mxfp4(blocks, exponents)
    assert dense.shape == (1, 32, 16)
    for row in range(16):
        for byte in range(16):
            low, high = dense[0, 2 * byte : 2 * byte + 2, row].tolist()
            power = 2.0 ** (int(exponents[0, row, 0]) - 127)
            assert (low, high) == (E2M1[byte] * power, E2M1[row] * power)


def test_other_numbers_of_scales_are_refused():
    with pytest.raises(ValueError, match="scales for"):
        from_blocks(torch.zeros(4, 4).to(torch.float8_e4m3fn), torch.ones(2, 3), (2, 2))


def test_what_cannot_be_unpacked_is_refused(tmp_path: Path, tiny_llama: Path):
    with pytest.raises(RecipeError, match="unpack needs packed weights, but is given dense ones"):
        Unpack()(load(tiny_llama))
    path = packed_as_fp8(tmp_path, "qwen3", [16, 16])
    with pytest.raises(CheckpointError, match="make it dense with burnish convert unpack"):
        _ = load(path).module
    with pytest.raises(RecipeError, match="make it dense with burnish convert unpack"):
        Quantize(method="rtn", bits=4, group_size=32)(load(path))
    tensors = load_file(path / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("_scale_inv"))
    del tensors[gone]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 scales are missing, the first is"):
        Unpack()(load(path))
    tensors[gone] = torch.ones(3, 5)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has \(3, 5\) scales for"):
        Unpack()(load(path)).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tensors[gone.removesuffix("_scale_inv")] = torch.ones(3, 5, dtype=torch.int8)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="neither 8-bit floats nor MXFP4"):
        Unpack()(load(path))


WHOLE_NUMBERS = [{"bits": 3}, {"bits": 4, "symmetric": False}, {"scheme": "w8a8-int8", "bits": 8, "group_size": None}]


@pytest.mark.parametrize("settings", [*WHOLE_NUMBERS, {"scheme": "fp8-dynamic", "group_size": None}])
def test_compressed_tensors_become_what_the_stock_loader_makes(tiny_llama: Path, tmp_path: Path, settings: Any):
    packed = Quantize(method="rtn", **{"group_size": 32} | settings)(load(tiny_llama)).save(tmp_path / "packed")
    dense = Unpack(dtype="float32")(load(packed)).save(tmp_path / "dense")
    wanted = load(packed, dtype=torch.float32).module.state_dict()
    found = AutoModelForCausalLM.from_pretrained(dense).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert load_file(dense / "model.safetensors").keys() == load_file(tiny_llama / "model.safetensors").keys()


@pytest.mark.parametrize("settings", WHOLE_NUMBERS)
def test_whole_numbers_are_unpacked_from_file_to_file_in_other_dtypes(tmp_path: Path, settings: Any):
    module = make("llama", disturbed=True).bfloat16()
    original = Model(module=module, tokenizer=small_tokenizer()).save(tmp_path / "original")
    packed = Quantize(method="rtn", **{"group_size": 32} | settings)(load(original)).save(tmp_path / "packed")
    for name in ("bfloat16", "float32"):
        model = load(packed)
        dense = Unpack(dtype=name)(model).save(tmp_path / name)
        assert not model.is_loaded
        wanted = load(packed, dtype=getattr(torch, name)).module.state_dict()
        found = load(dense, dtype=getattr(torch, name)).module.state_dict()
        assert all(torch.equal(tensor, found[key]) for key, tensor in wanted.items())


def test_damaged_whole_numbers_are_refused(tiny_llama: Path, tmp_path: Path):
    packed = Quantize(method="rtn", bits=4, group_size=32)(load(tiny_llama)).save(tmp_path / "packed")
    (packed / "burnish.json").unlink()  # it has the hash of every file
    file = packed / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("q_proj.weight_packed"))
    save_file(tensors | {name: tensors[name][:, :-1].contiguous()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"words and .* scales are not those of a weight"):
        Unpack()(load(packed)).save(tmp_path / "out")
    save_file(tensors | {name.replace("packed", "g_idx"): torch.zeros(4)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weight_g_idx, which is of a packed weight and is not read"):
        Unpack()(load(packed))
    assert not (tmp_path / "out").exists()


def test_scales_that_are_no_numbers_are_refused(tiny_llama: Path, tmp_path: Path):
    packed = Quantize(method="rtn", bits=4, group_size=32)(load(tiny_llama)).save(tmp_path / "packed")
    tensors = load_file(packed / "model.safetensors")
    name = next(name for name in tensors if name.endswith("q_proj.weight_scale"))
    tensors[name][0, 0] = torch.nan
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    (packed / "burnish.json").unlink()  # it has the hash of every file
    with pytest.raises(CheckpointError, match=r"q_proj.weight: scales are not finite"):
        Unpack()(load(packed)).save(tmp_path / "out")


@pytest.mark.parametrize("settings", [{"group_size": 16}, {"scheme": "fp8-dynamic"}])
def test_packed_experts_are_unpacked_too(tmp_path: Path, settings: dict[str, Any]):
    original = Model(module=make("mixtral", disturbed=True), tokenizer=small_tokenizer()).save(tmp_path / "original")
    packed = Quantize(method="rtn", **settings)(load(original)).save(tmp_path / "packed")
    dense = Unpack(dtype="float32")(load(packed)).save(tmp_path / "dense")
    assert load_file(dense / "model.safetensors").keys() == load_file(original / "model.safetensors").keys()
    wanted, found = load(packed, dtype=torch.float32).module, load(dense, dtype=torch.float32).module
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in wanted.state_dict().items())


def test_a_packed_model_that_is_in_memory_already_is_unpacked_too(tiny_llama: Path, tmp_path: Path):
    packed = load(Quantize(method="rtn", bits=4, group_size=32)(load(tiny_llama)).save(tmp_path / "packed"))
    wanted = packed.module.state_dict()
    dense = Unpack()(packed).save(tmp_path / "dense")
    assert wanted.keys() == load(dense).module.state_dict().keys()
    assert "quantization_config" not in json.loads((dense / "config.json").read_text())
