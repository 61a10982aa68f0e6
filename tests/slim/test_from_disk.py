"""A checkpoint on disk is cut from file to file: the same bytes as in memory, and a bounded peak of memory."""

import json

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import warm
from burnish.arch import matrices, vectors
from burnish.calibrate.from_disk import know_pieces, to_be_streamed
from burnish.core import memory
from burnish.core.checkpoint import DeferredModel, Model, load
from burnish.core.checkpoint.on_disk import OnDisk
from burnish.core.checkpoint.tensor_files import TensorWriter
from burnish.core.errors import SettingsError
from burnish.core.progress import Progress
from burnish.slim.collect import collect
from burnish.slim.maths.scores import SCORES
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
    settings = settings | {"stream": None}
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
        ("phimoe", {"width": 16, "refit": "alone", "score": "energy"}),
        ("deepseek_v3", {"method": "drop", "num_experts": 4}),
        ("olmoe", {"method": "drop", "num_experts": 3, "score": "magnitude"}),
        ("qwen3_moe", {"width": 16, "score": "random"}),
        ("olmoe", {"method": "split", "num_experts": 12, "pieces": 3}),
        ("deepseek_v2", {"method": "split", "num_experts": 8, "width": 16, "pieces": 2, "refit": "none"}),
    ],
)
def test_so_are_groups_refits_and_fewer_experts(saved, texts, tmp_path, name, settings):
    same_from_disk_and_in_memory(saved(name), settings | SMALL, texts, tmp_path)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mixtral", {"width": 16}),
        ("mixtral_tied", {"width": 16, "num_key_value_heads": 1, "score": "taylor", "labels": "text"}),
        ("qwen2_moe", {"width": 16, "score": "energy", "refit": "alone"}),
        ("deepseek_v3", {"width": 16, "score": "fisher", "refit": "alone"}),
        ("olmoe", {"method": "drop", "num_experts": 3}),
        ("mixtral", {"method": "split", "num_experts": 6, "pieces": 3, "refit": "none"}),
    ],
)
def test_text_that_goes_through_a_layer_at_a_time_cuts_to_the_same_bytes(saved, texts, tmp_path, name, settings):
    same_from_disk_and_in_memory(saved(name), {"stream": True} | settings | SMALL, texts, tmp_path)


def test_a_layer_at_a_time_gives_the_sums_of_the_whole_network(saved, texts, tmp_path):
    source, draw = saved("qwen3_moe"), torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 384, (40, 32), generator=draw)  # two batches
    quiet, found = Progress(enabled=False), []
    for on_disk in (None, OnDisk(load(source))):
        if on_disk:
            know_pieces(on_disk)
        module = on_disk.module if on_disk else load(source, dtype=torch.float32).module
        where = {"on_disk": on_disk, "scratch": tmp_path / "hidden", "groups": True}
        generator = torch.Generator().manual_seed(1)
        found.append(collect(module, tokens, SCORES["fisher"], generator=generator, progress=quiet, **where))
    whole, streamed = found
    for layer, scores in whole.neurons.items():
        assert torch.allclose(streamed.neurons[layer], scores, rtol=1e-4)
        assert torch.allclose(streamed.groups[layer], whole.groups[layer], rtol=1e-4)
        assert torch.equal(streamed.counts[layer], whole.counts[layer])
    assert not list((tmp_path / "hidden").iterdir())
    assert all(parameter.is_meta for parameter in on_disk.module.parameters())


def test_a_mixture_larger_than_half_of_the_free_memory_streams_by_itself(saved, monkeypatch):
    source, settings = saved("mixtral"), Slim(width=16, **SMALL)
    assert to_be_streamed(load(source), settings.stream, "cpu") is None
    monkeypatch.setattr(memory, "SHARE_OF_FREE_MEMORY", 1e-9)
    assert to_be_streamed(load(source), settings.stream, "cpu") is not None
    assert "text goes through a layer at a time, from disk" in settings.plan(load(source).plan()).notes


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "depth", "num_layers": 1}, "method depth compares whole networks"),
        ({"width": 16, "labels": "teacher", "teacher": "models/large"}, "labels: teacher compares two whole networks"),
    ],
)
def test_what_cannot_go_by_layers_is_refused(settings, reason):
    with pytest.raises(SettingsError, match=f"stream is true, but {reason}"):
        Slim.parse(settings | {"stream": True}, where="slim")


def test_a_model_in_memory_does_not_go_by_layers(model_of, texts):
    with pytest.raises(SettingsError, match="stream is true, but the model is in memory already"):
        Slim(width=16, stream=True, **SMALL)(model_of("mixtral"), calibration=texts)


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


LARGE = {"num_local_experts": 8, "hidden_size": 512, "intermediate_size": 2048}
SMALLEST = {"num_hidden_layers": 2, "num_local_experts": 8, "hidden_size": 64, "intermediate_size": 64}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A mixture of 1.05 GB, and one of the same text, tokenizer and code with next to no weights."""
    place = tmp_path_factory.mktemp("large")
    return mixture(place / "large", num_hidden_layers=10, **LARGE), mixture(place / "small", **SMALLEST)


def peak(source, target, **settings):
    given = {"tokens": 1024, "length": 256, "allow_unseen": True} | settings
    log = target.with_suffix(".log")
    return int(warm.run_script(log, CHILD, source, target, json.dumps(given), PROSE).split()[-1])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("settings", "share", "more"),
    [
        # The cut alone: a matrix, its parts, and what the allocator keeps, which differs by 100 MB from run to run.
        ({"score": "magnitude"}, 0.0, 400_000_000),
        # The network; the activations of one layer for 1,024 tokens; the sums; the logits of a small vocabulary.
        ({"score": "fisher"}, 1.0, 400_000_000),
        # The network; the narrower down projections, a sixth of the weights; one Gram matrix and its factors.
        ({"score": "energy", "refit": "alone"}, 1.0 + 1 / 6, 500_000_000),
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


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("settings", "more"),
    [
        # The activations of one layer for 1,024 tokens, and what goes into it.
        ({"score": "fisher"}, 150_000_000),
        ({"score": "energy"}, 100_000_000),
        # And the narrower down projections, a sixth of the weights, and one Gram matrix and its factors.
        ({"score": "energy", "refit": "alone"}, 150_000_000 + 1_600_000_000 // 6),
    ],
    ids=["gradients", "activations", "refit"],
)
def test_text_that_goes_by_layers_needs_no_more_than_two_of_them(tmp_path, settings, more):
    """Of a mixture of 1.5 GB in 15 layers, beside what the same work takes on next to no weights."""
    large = mixture(tmp_path / "large", num_hidden_layers=15, **LARGE)
    small = mixture(tmp_path / "small", **SMALLEST)
    size = (large / "model.safetensors").stat().st_size
    assert size > 1.5e9
    least = peak(small, tmp_path / "made-small", width=32, multiple=8, stream=True, **settings)
    found = peak(large, tmp_path / "made-large", width=1024, stream=True, **settings) - least
    assert found <= 2 * size / 15 + more, f"{found / 1e6:.0f} MB where two layers have {2 * size / 15e6:.0f}"
