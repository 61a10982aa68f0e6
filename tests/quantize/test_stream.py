"""From disk to disk, layer by layer: the same files as from memory, in a fraction of the memory."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from burnish.core.checkpoint import DeferredModel, Model, hash_directory, load, shards
from burnish.core.checkpoint.tensor_files import DTYPES, TensorReader, TensorWriter
from burnish.core.errors import CheckpointError, NumericalError, SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.quantize import learning
from burnish.quantize.stage import Quantize
from small_models import small_llama, small_tokenizer

SMALL = {"group_size": 32, "tokens": 512, "length": 32}
DOWN = "re:.*down_proj"


def tensors_of_every_dtype():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-100, 100, (3, 5), generator=generator)
    return {f"b.{name}": numbers.to(dtype) for dtype, name in DTYPES.items()} | {
        "a.ünicode": numbers.float(),
        "a.empty": torch.zeros(0, 4),
        "a.scalar": torch.tensor(2.0),
    }


def test_a_file_is_the_one_that_the_safetensors_package_writes(tmp_path):
    tensors = tensors_of_every_dtype()
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    with TensorWriter(tmp_path / "ours", {name: tensor.to("meta") for name, tensor in tensors.items()}) as writer:
        for name in reversed(list(tensors)):
            writer.write(name, tensors[name])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_reading_gives_back_what_was_written(tmp_path):
    tensors = tensors_of_every_dtype()
    save_file(tensors, tmp_path / "model.safetensors")
    reader = TensorReader(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(reader.read(name).view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8)), name


def quantize(source, texts, target, **settings):
    stage = Quantize(**SMALL | settings)
    ledger = Ledger(None)
    ctx = Context({"calibration": texts}, target / "work", "cpu", seeded_generator(0), Progress(False), ledger)
    stage.run(load(source), ctx).save(target / "out")
    tables = [row["rows"] for row in ledger.rows if row["row"] == "table"]
    rows = [[{key: value for key, value in row.items() if key != "seconds"} for row in table] for table in tables]
    return hash_directory(target / "out"), rows


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def source(request, tmp_path):
    """Untied and tied heads, three layers, each dtype on disk."""
    tied = request.param is torch.bfloat16
    small_llama(num_hidden_layers=3, tie_word_embeddings=tied).to(request.param).save_pretrained(tmp_path / "source")
    small_tokenizer().save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "rtn", "bits": 3},
        {"method": "rtn", "bits": 4, "symmetric": False, "overrides": {DOWN: {"scheme": "fp8-dynamic"}}},
        {"method": "gptq", "bits": 3, "ignore": ("re:.*layers.1.*",)},
        {"method": "gptq", "bits": 2, "propagate": True, "symmetric": False},
        {"method": "yaqa", "bits": 3, "sketch": "b", "damping": 0.1, "ignore": ("re:.*layers.0.*",)},
        {"method": "learned", "bits": 3, "sketch": "a", "damping": 0.1, "iterations": 4},
        {"method": "learned", "bits": 3, "start": "rtn", "error": "relative", "iterations": 4},
    ],
    ids=["rtn", "mixed", "gptq", "propagated", "yaqa", "learned", "learned from rtn"],
)
def test_the_files_are_those_of_the_model_in_memory(source, texts, tmp_path, settings):
    in_memory, rows = quantize(source, texts, tmp_path / "memory", stream=False, **settings)
    streamed, streamed_rows = quantize(source, texts, tmp_path / "stream", stream=True, **settings)
    assert streamed == in_memory
    assert streamed_rows == rows


def test_several_files_have_the_same_index(source, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 60_000)
    in_memory, _ = quantize(source, texts, tmp_path / "memory", stream=False, method="rtn")
    streamed, _ = quantize(source, texts, tmp_path / "stream", stream=True, method="rtn")
    assert len(streamed) > 5 and streamed == in_memory


def test_a_stock_loader_reads_it_and_the_result_opens_itself(source, ids, tmp_path):
    result = Quantize(method="rtn", stream=True)(load(source))
    with pytest.raises(CheckpointError, match="save it"):
        _ = result.module
    result.save(tmp_path / "out")
    with torch.no_grad():
        stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        torch.testing.assert_close(result.module(ids).logits, stock, rtol=0, atol=0)


def test_weights_that_are_not_finite_are_refused_and_nothing_is_left(source, tmp_path):
    state = load_file(source / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp\.up_proj"):
        Quantize(method="rtn", stream=True)(load(source)).save(tmp_path / "target" / "out")
    assert list((tmp_path / "target").iterdir()) == []


def test_what_cannot_be_streamed_is_refused_with_the_reason(source, texts):
    for method in ("yaqa", "learned"):
        with pytest.raises(SettingsError, match=f"{method} compares whole models unless damping and sketch are given"):
            Quantize(method=method, stream=True, damping=0.1, **SMALL)(load(source), calibration=texts)
    with pytest.raises(SettingsError, match="in memory already"):
        Quantize(method="rtn", stream=True)(Model(module=load(source).module))


LEARNED = {"method": "learned", "bits": 3, "sketch": "a", "damping": 0.1, "iterations": 4}


def test_layers_that_a_killed_run_has_learned_from_disk_are_not_learned_again(source, texts, tmp_path, monkeypatch):
    wanted, rows = quantize(source, texts, tmp_path / "whole", stream=True, **LEARNED)
    learned, truly = [], learning.learn

    def noted(block, *others):
        learned.append(block.number)
        if learned == [0, 1]:
            raise KeyboardInterrupt
        return truly(block, *others)

    monkeypatch.setattr(learning, "learn", noted)
    (tmp_path / "killed" / "work").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, texts, tmp_path / "killed", stream=True, **LEARNED)
    assert not (tmp_path / "killed" / "out").exists()
    again, rows_again = quantize(source, texts, tmp_path / "killed", stream=True, **LEARNED)
    assert learned == [0, 1, 1, 2] and again == wanted and rows_again == rows


def test_the_plan_of_gradients_from_disk_has_their_room_in_memory_and_on_disk(source):
    before, tokens = load(source).plan(), 512_000
    plans = [Quantize(**SMALL | LEARNED | {"tokens": tokens}, stream=stream).plan(before) for stream in (False, True)]
    notes = [next(note for note in plan.notes if "of statistics on disk" in note) for plan in plans]
    megabytes = [float(re.search(r"tokens, (.*) MB of statistics", note)[1]) for note in notes]
    hidden_states = 3 * tokens * before.config.hidden_size * 4  # into three layers
    assert megabytes[1] - megabytes[0] == pytest.approx(hidden_states / 1e6, abs=0.2)
    assert plans[1].peak_memory_bytes < plans[0].peak_memory_bytes


def test_streaming_does_not_change_the_key():
    assert Quantize(stream=True).canonical() == Quantize().canonical()


def test_a_model_larger_than_half_of_the_free_memory_streams_by_itself(source, monkeypatch):
    from burnish.core import memory

    monkeypatch.setattr(memory, "SHARE_OF_FREE_MEMORY", 1e-9)
    assert isinstance(Quantize(method="rtn")(load(source)), DeferredModel)


def test_a_plan_knows_which_models_will_stream(source, monkeypatch):
    from burnish.core import memory

    before, note = load(source).plan(), "goes from disk to disk, a layer at a time"
    assert note not in Quantize().plan(before).notes
    assert note in Quantize(stream=True).plan(before).notes
    monkeypatch.setattr(memory, "SHARE_OF_FREE_MEMORY", 1e-9)
    assert note in Quantize().plan(before).notes
    assert note not in Quantize(stream=False).plan(before).notes
    assert note not in Quantize(method="yaqa").plan(before).notes


CHILD = """
import json, sys
from burnish.core.checkpoint import load
from burnish.core.memory import peak_resident_bytes
from burnish.quantize.stage import Quantize
settings = json.loads(sys.argv[3]) | {"group_size": 64, "tokens": 3072, "length": 256, "stream": True}
Quantize(**settings)(load(sys.argv[1]), calibration=[open(sys.argv[4]).read()]).save(sys.argv[2])
print(peak_resident_bytes())
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """1.5 GB of float32 in layers of 51 MB, the shape of a model of half a billion, written a tensor at a time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("large") / "model"
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 29, "num_attention_heads": 16}
    config = LlamaConfig(vocab_size=384, **shape, tie_word_embeddings=True, dtype="float32")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(directory)
    small_tokenizer().save_pretrained(directory)
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    del state["lm_head.weight"]
    generator = torch.Generator().manual_seed(0)
    with TensorWriter(directory / "model.safetensors", state) as writer:
        for name, tensor in state.items():
            writer.write(name, torch.randn(tensor.shape, generator=generator) * 0.02 + (tensor.ndim == 1))
    return directory


@pytest.mark.slow
@pytest.mark.real_process
@pytest.mark.timeout(900)  # a minute and a half of GPTQ's arithmetic
@pytest.mark.parametrize(
    "settings",
    [{"method": "rtn"}, {"method": "gptq", "ignore": [r"re:.*layers\.(?!0\.|14\.|28\.).*"]}],
    ids=["rtn", "gptq"],
)
def test_memory_stays_well_below_the_checkpoint(large, tmp_path, settings):
    """Peak resident memory of a process of its own, as the kernel counts it, libraries included.

    GPTQ reads every layer, and to save time rounds the first, the middle and the last. The kernel also counts pages of
    the file that are mapped, so that the peak moves with the load: .52 to .63 of the checkpoint were seen.
    """
    from small_models import PROSE

    size = (large / "model.safetensors").stat().st_size
    assert size > 1.45e9
    arguments = [str(large), str(tmp_path / "out"), json.dumps(settings), str(PROSE)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert child.returncode == 0, child.stderr[-2000:]
    peak = int(child.stdout.split()[-1])
    assert peak <= 0.75 * size, f"{peak / 1e6:.0f} MB for a checkpoint of {size / 1e6:.0f} MB"
