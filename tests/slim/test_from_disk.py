"""A checkpoint on disk is cut from file to file: the same bytes as in memory, and a bounded peak of memory."""

import json

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import warm
from burnish.arch import matrices, vectors
from burnish.core.checkpoint import DeferredModel, Model, load
from burnish.core.checkpoint.tensor_files import TensorWriter
from burnish.slim.stage import Slim
from small_models import PROSE, small_tokenizer

ALL = ["mixtral", "mixtral_tied", "phimoe", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"]
SMALL = {"tokens": 512, "length": 32, "multiple": 8, "allow_unseen": True}


@pytest.fixture
def saved(module_of, tiny_llama, tmp_path):
    def save(name, dtype=torch.bfloat16):
        tokenizer = load(tiny_llama).tokenizer
        first = Model(module=module_of(name, dtype), tokenizer=tokenizer).save(tmp_path / f"{name}.first")
        # As published: DeepSeek's router correction in float32, which is how the stock loader takes it.
        return Model(module=load(first).module, tokenizer=tokenizer).save(tmp_path / name)

    return save


def files(directory):
    return {
        path.name: path.read_bytes() for path in directory.iterdir() if path.name not in ("burnish.json", "README.md")
    }


def same_from_disk_and_in_memory(source, settings, texts, tmp_path):
    from_disk = Slim(**settings)(load(source), calibration=texts)
    assert isinstance(from_disk, DeferredModel)
    in_memory = Slim(**settings)(Model(module=load(source).module, tokenizer=load(source).tokenizer), calibration=texts)
    assert not isinstance(in_memory, DeferredModel)
    ours, theirs = files(from_disk.save(tmp_path / "disk")), files(in_memory.save(tmp_path / "memory"))
    assert not from_disk.is_loaded
    assert ours.keys() == theirs.keys()
    for name, content in theirs.items():
        assert ours[name] == content, name


@pytest.mark.parametrize("name", ALL)
def test_every_class_is_cut_from_disk_to_the_bytes_of_the_cut_in_memory(saved, texts, tmp_path, name):
    same_from_disk_and_in_memory(saved(name), {"width": 16, "score": "energy", **SMALL}, texts, tmp_path)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mixtral", {"width": 16, "num_key_value_heads": 1}),
        ("phimoe", {"width": 16, "refit": True, "score": "energy"}),
        ("deepseek_v3", {"method": "drop", "num_experts": 4}),
        ("olmoe", {"method": "drop", "num_experts": 3, "score": "magnitude"}),
        ("qwen3_moe", {"width": 16, "score": "random"}),
    ],
)
def test_so_are_groups_refits_and_fewer_experts(saved, texts, tmp_path, name, settings):
    same_from_disk_and_in_memory(saved(name), settings | SMALL, texts, tmp_path)


def test_a_result_that_is_looked_at_before_it_is_saved_is_made_in_memory(saved, texts, token_ids, tmp_path):
    slim = Slim(width=16, score="magnitude", **SMALL)(load(saved("mixtral")), calibration=texts)
    with torch.no_grad():
        seen = slim.module(input_ids=token_ids).logits
        assert torch.equal(load(slim.save(tmp_path / "out")).module(input_ids=token_ids).logits, seen)


def test_a_checkpoint_in_shards_is_cut_into_shards(saved, texts, tmp_path, monkeypatch):
    from burnish.core.checkpoint import shards

    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 40_000)
    source = saved("mixtral")
    assert len(list(source.glob("*.safetensors"))) > 2
    same_from_disk_and_in_memory(source, {"width": 16, "score": "magnitude", **SMALL}, texts, tmp_path)
    assert len(list((tmp_path / "disk").glob("*.safetensors"))) > 1


CHILD = """
import json, sys
from burnish.core.checkpoint import load
from burnish.core.memory import peak_resident_bytes
from burnish.slim.stage import Slim
settings = json.loads(sys.argv[3])
Slim(**settings)(load(sys.argv[1]), calibration=[open(sys.argv[4]).read()]).save(sys.argv[2])
print(peak_resident_bytes())
"""


def mixture(directory, **shape):
    """A random float32 Mixtral, written a tensor at a time."""
    config = MixtralConfig(vocab_size=384, num_attention_heads=8, num_key_value_heads=4, dtype="float32", **shape)
    config.architectures = ["MixtralForCausalLM"]
    config.save_pretrained(directory)
    small_tokenizer().save_pretrained(directory)
    with torch.device("meta"):
        module = MixtralForCausalLM(config)
    state = {view.disk: view.tensor for view in matrices(module)}
    state |= {vector.name: vector.tensor for vector in vectors(module)}
    generator = torch.Generator().manual_seed(0)
    with TensorWriter(directory / "model.safetensors", state) as writer:
        for name, tensor in state.items():
            writer.write(name, torch.randn(tensor.shape, generator=generator) * 0.02 + (tensor.ndim == 1))
    return directory


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A mixture of 1.05 GB, and one of the same text, tokenizer and code with next to no weights."""
    place = tmp_path_factory.mktemp("large")
    layers = {"num_hidden_layers": 10, "num_local_experts": 8, "hidden_size": 512, "intermediate_size": 2048}
    small = {"num_hidden_layers": 2, "num_local_experts": 8, "hidden_size": 64, "intermediate_size": 64}
    return mixture(place / "large", **layers), mixture(place / "small", **small)


def peak(source, target, **settings):
    given = {"tokens": 1024, "length": 256, "allow_unseen": True} | settings
    log = target.with_suffix(".log")
    return int(warm.run_script(log, CHILD, source, target, json.dumps(given), PROSE).split()[-1])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("settings", "share", "more"),
    [
        # The cut alone: a matrix, its parts, and what the allocator keeps.
        ({"score": "magnitude"}, 0.0, 250_000_000),
        # The network; the activations of one layer for 1,024 tokens; the sums; the logits of a small vocabulary.
        ({"score": "fisher"}, 1.0, 400_000_000),
        # The network; the narrower down projections, a sixth of the weights; one Gram matrix and its factors.
        ({"score": "energy", "refit": True}, 1.0 + 1 / 6, 500_000_000),
    ],
    ids=["cut", "scoring", "refit"],
)
def test_the_peak_of_memory_is_bounded(pair, tmp_path, settings, share, more):
    """Of processes of their own, as the kernel counts it, less what the same work takes on next to no weights."""
    large, small = pair
    size = (large / "model.safetensors").stat().st_size
    assert size > 1.0e9
    least = peak(small, tmp_path / "small", width=32, multiple=8, **settings)
    found = peak(large, tmp_path / "large", width=1024, **settings) - least
    assert found <= share * size + more, f"{found / 1e6:.0f} MB for {size / 1e6:.0f} MB of weights"
