"""GGUF files against the checkpoints they are made of, as the gguf package and stock transformers read them."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen3Config

import warm
from burnish.core.checkpoint import load
from burnish.core.checkpoint.packed_integers import packed_weights
from burnish.core.errors import BurnishError, CheckpointError, MissingExtraError, OutputError, SettingsError
from burnish.export import write_gguf
from burnish.quantize.stage import Quantize
from small_models import small_llama, small_tokenizer

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16, whose scales float16 holds."""
    place = tmp_path_factory.mktemp("export") / "bfloat16"
    small_llama().bfloat16().save_pretrained(place)
    small_tokenizer().save_pretrained(place)
    return place


def changed(source: Path, place: Path, **settings: object) -> Path:
    """A copy with other settings in its config.json."""
    shutil.copytree(source, place)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | settings))
    return place


def small_qwen(place: Path, kind: Any) -> Path:
    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    config = kind(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, tie_word_embeddings=False, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # biases and norms too, which start at 0 and 1
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def values_of(path: Path) -> dict[str, np.ndarray]:
    """What the gguf package makes of every tensor, in float32."""
    return {
        tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        for tensor in gguf.GGUFReader(path).tensors
    }


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


def stock(path: Path, **settings: int):
    """As stock transformers reads it, with settings that it does not read."""
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "extra"), [(Qwen2Config, {}), (Qwen3Config, {"head_dim": 16})])
def test_a_dense_model_is_the_same_in_stock_transformers(config, extra, tmp_path):
    source = small_qwen(tmp_path / "model", config)
    write_gguf(source, tmp_path / "model.gguf")
    ours = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    assert torch.equal(logits(ours), logits(stock(tmp_path / "model.gguf", **extra)))


@pytest.mark.slow
def test_llama_and_its_tokenizer_are_the_same_in_stock_transformers(tiny_llama, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(tiny_llama, path)
    ours = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    assert torch.equal(logits(ours), logits(stock(path)))
    reader = gguf.GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert tokens == tokenizer.convert_ids_to_tokens(list(range(len(tokens))))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"bits": 2}, "Q4_0"),
        ({"bits": 3, "group_size": 32}, "Q4_0"),
        ({"bits": 4}, "Q4_0"),
        ({"bits": 4, "symmetric": False}, "Q5_0"),
        ({"bits": 5}, "Q5_0"),
        ({"bits": 8}, "Q8_0"),
        ({"bits": 8, "quantize_embedding": 8}, "Q8_0"),
        ({"scheme": "w8a8-int8", "bits": 8, "group_size": None}, "Q8_0"),
    ],
)
def test_packed_weights_keep_every_bit(halved, tmp_path, settings, name):
    place, path = tmp_path / "packed", tmp_path / "packed.gguf"
    Quantize(method="rtn", **{"group_size": 32} | settings)(load(halved)).save(place)
    packed = dict(packed_weights(load(place)))
    written = write_gguf(place, path)
    assert written.types[name] == len(packed) and not written.multiplied_out and not written.rounded
    found, config = values_of(path), load(place).config
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for disk, weight in packed.items():
        repeats = weight.levels.shape[1] // weight.scale.shape[1]
        expected = weight.levels.float() * weight.scale.float().repeat_interleave(repeats, dim=1)
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(disk.split(".")[-2])
        if heads:  # pairs that rotate together are neighbours in llama.cpp
            expected = expected.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        assert np.array_equal(found[str(table.get_name(disk, try_suffixes=(".weight",)))], expected.numpy()), disk


def test_a_weight_that_no_block_holds_is_written_dense_and_told(tiny_llama, halved, tmp_path):
    for source, size, reason in (
        (halved, 16, "groups of 16 inputs are no multiples of 32"),
        (tiny_llama, 32, "float16 does not hold its scales"),
    ):
        place, path = tmp_path / f"packed-{size}", tmp_path / f"packed-{size}.gguf"
        Quantize(method="rtn", bits=4, group_size=size)(load(source)).save(place)
        written = write_gguf(place, path)
        assert "Q4_0" not in written.types and set(written.multiplied_out.values()) == {reason}
        found = values_of(path)
        weight = dict(packed_weights(load(place)))["model.layers.0.mlp.down_proj.weight"]
        expected = weight.product().to(weight.scale.dtype).float()
        assert np.array_equal(found["blk.0.ffn_down.weight"], expected.numpy())


def test_dense_weights_are_rounded_where_that_is_asked_for(tiny_llama, tmp_path):
    written = write_gguf(tiny_llama, tmp_path / "model.gguf", dense="q8_0")
    assert written.types["Q8_0"] == len(written.rounded) > 0
    exact, rounded = small_llama().state_dict(), values_of(tmp_path / "model.gguf")
    embedding = exact["model.embed_tokens.weight"].float().numpy()
    assert 0 < np.abs(rounded["token_embd.weight"] - embedding).max() <= np.abs(embedding).max() / 127


def test_frequencies_are_scaled_as_transformers_scales_them(tiny_llama, tmp_path):
    source = changed(tiny_llama, tmp_path / "scaled", rope_parameters=LLAMA3, rope_scaling=LLAMA3)
    write_gguf(source, tmp_path / "scaled.gguf")
    model = AutoModelForCausalLM.from_pretrained(source)
    width = 2 * len(model.model.rotary_emb.inv_freq)
    plain = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    divided = plain / torch.from_numpy(values_of(tmp_path / "scaled.gguf")["rope_freqs.weight"].copy())
    assert torch.allclose(divided, model.model.rotary_emb.inv_freq.double(), rtol=1e-6)


def test_a_later_vocabulary_row_without_a_token_is_unused(tiny_llama, tmp_path):
    source = tmp_path / "padded"
    model = small_llama()
    model.resize_token_embeddings(model.config.vocab_size + 7, mean_resizing=False)
    model.save_pretrained(source)
    small_tokenizer().save_pretrained(source)
    write_gguf(source, tmp_path / "padded.gguf")
    fields = gguf.GGUFReader(tmp_path / "padded.gguf").fields
    assert fields["tokenizer.ggml.tokens"].contents()[-1] == f"[PAD{model.config.vocab_size - 1}]"
    assert fields["tokenizer.ggml.token_type"].contents()[-1] == gguf.TokenType.UNUSED


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model_type": "gemma"}, "model type 'gemma' is not written as GGUF"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type is 'dynamic'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "packed as 'fp8'.*burnish convert unpack"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(tiny_llama, tmp_path, settings, says):
    with pytest.raises(BurnishError, match=says):
        write_gguf(changed(tiny_llama, tmp_path / "odd", **settings), tmp_path / "odd.gguf")
    assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".*"))


def test_a_way_of_cutting_that_is_not_known_is_refused_unless_it_is_named(tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "odd")
    content = json.loads((source / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": "[0-9]"}, "behavior": "Isolated", "invert": False}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, plain]}
    (source / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"text is cut into words by .*known are gpt-2, smollm"):
        write_gguf(source, tmp_path / "odd.gguf")
    assert write_gguf(source, tmp_path / "odd.gguf", pre="gpt-2").pre == "gpt-2"
    content["normalizer"] = {"type": "Lowercase"}
    (source / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"changes text first \(Lowercase\)"):
        write_gguf(source, tmp_path / "other.gguf", pre="gpt-2")
    content["model"]["type"] = "Unigram"
    (source / "tokenizer.json").write_text(json.dumps(content))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    with pytest.raises(BurnishError):
        write_gguf(source, tmp_path / "other.gguf")
    (source / "tokenizer.json").unlink()
    with pytest.raises(BurnishError):
        write_gguf(source, tmp_path / "other.gguf")


def test_places_are_respected(tiny_llama, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_text("somebody's notes")
    with pytest.raises(OutputError, match="another kind of file"):
        write_gguf(tiny_llama, path, overwrite=True)
    assert path.read_text() == "somebody's notes"
    path.unlink()
    write_gguf(tiny_llama, path)
    with pytest.raises(OutputError, match=r"exists.*--overwrite"):
        write_gguf(tiny_llama, path)
    assert write_gguf(tiny_llama, path, overwrite=True).num_bytes == path.stat().st_size
    with pytest.raises(OutputError, match="is a directory"):
        write_gguf(tiny_llama, tmp_path)


def test_damage_is_named(tiny_llama, tmp_path):
    Quantize(method="rtn", bits=4, group_size=32)(load(tiny_llama)).save(tmp_path / "packed")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith("model.norm")}, file)
    with pytest.raises(CheckpointError, match=r"has nothing for 1 tensors of the file, the first is output_norm"):
        write_gguf(tmp_path / "packed", tmp_path / "packed.gguf")
    name = next(name for name in tensors if name.endswith("weight_scale"))
    save_file(tensors | {name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(CheckpointError, match="scales are not finite"):
        write_gguf(tmp_path / "packed", tmp_path / "packed.gguf")
    save_file({**tensors, "model.layers.0.self_attn.q_proj.weight_g_idx": torch.zeros(64, dtype=torch.int32)}, file)
    with pytest.raises(SettingsError, match=r"weight_g_idx, which llama.cpp has no place for"):
        write_gguf(tmp_path / "packed", tmp_path / "packed.gguf")


def test_the_command_says_what_it_wrote(tiny_llama, tmp_path):
    said = warm.run(tmp_path / "log", "export", "gguf", tiny_llama, "-o", tmp_path / "m.gguf")
    assert "text is cut as gpt-2" in said and "llama-server -m" in said


def test_the_missing_package_is_named(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.export.gguf.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'burnish\[gguf\]'"):
        write_gguf(tiny_llama, tmp_path / "model.gguf")
