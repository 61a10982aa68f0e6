"""A conversion that takes a layer at a time from disk: the bytes of the one in memory, with one layer there."""

import gc
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

import warm
from burnish.arch import HiddenStates, layers
from burnish.convert import mla, run
from burnish.convert.stage import LatentAttention
from burnish.core import memory
from burnish.core.checkpoint import DeferredModel, Model, load
from burnish.core.errors import SettingsError
from small_models import PROSE, make, small_tokenizer

SHAPE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "initializer_range": 0.3, "head_dim": 8}
TEXT: dict[str, Any] = {"tokens": 512, "length": 64, "rank": 9, "rope_dim": 8}
NUM_LAYERS = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Any:
    def save(**changes: Any) -> Path:
        module = make(
            "llama", dtype=torch.bfloat16, disturbed=True, **SHAPE | {"num_hidden_layers": NUM_LAYERS} | changes
        )
        return Model(module=module, tokenizer=small_tokenizer()).save(tmp_path_factory.mktemp("source") / "saved")

    return save


def converted(source: Path, **settings: Any) -> Model:
    return LatentAttention(**TEXT | settings)(load(source), calibration=[PROSE.read_text()])


def files(directory: Path) -> dict[str, bytes]:
    """But for the lineage, which has the time, and the card made of it."""
    return {
        path.name: path.read_bytes() for path in directory.iterdir() if path.name not in ("burnish.json", "README.md")
    }


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ({"tie_word_embeddings": True}, {}),
        ({"tie_word_embeddings": True}, {"engine": "transformers", "sequential": False}),
        ({}, {"engine": "transformers", "norm": "bias", "rope_dim": None, "rank": None, "cache": 0.75}),
        ({}, {"tokens": 2048, "refit": True, "heal_tokens": 2048}),
    ],
    ids=["tied, vllm", "tied, transformers", "widths chosen", "healed"],
)
def test_from_disk_it_is_the_conversion_in_memory_byte_for_byte(saved, tmp_path, source, settings):
    source = saved(**source)
    streamed, whole = (converted(source, stream=stream, **settings) for stream in (True, False))
    assert isinstance(streamed, DeferredModel) and not isinstance(whole, DeferredModel)
    ours, theirs = (files(made.save(tmp_path / name)) for made, name in ((streamed, "streamed"), (whole, "whole")))
    assert not streamed.is_loaded
    assert ours.keys() == theirs.keys()
    for name, content in theirs.items():
        assert ours[name] == content, name


@pytest.fixture
def there(monkeypatch) -> list[list[set[int]]]:
    """For every batch that goes through a layer: the layers that have weights, of the source and of the new network."""
    networks: list[Any] = []
    found: list[list[set[int]]] = []
    through = HiddenStates.through

    def watched(self: HiddenStates, number: int, layer: Any) -> Any:
        found.append([{n for n, (_, one) in enumerate(layers(network)) if has_weights(one)} for network in networks])
        return through(self, number, layer)

    def seen(make: Any, module: Any = lambda made: made) -> Any:
        def called(*arguments: Any, **more: Any) -> Any:
            made = make(*arguments, **more)
            if made is not None:
                networks.append(module(made))
            return made

        return called

    monkeypatch.setattr(HiddenStates, "through", watched)
    monkeypatch.setattr(run, "to_be_streamed", seen(run.to_be_streamed, lambda on_disk: on_disk.module))
    monkeypatch.setattr(run, "working_copy", seen(run.working_copy))
    monkeypatch.setattr(mla, "network", seen(mla.network))
    return found


def has_weights(part: torch.nn.Module) -> bool:
    return any(not parameter.is_meta for parameter in part.parameters())


def test_from_disk_one_layer_of_each_network_is_in_memory(saved, there):
    made = converted(saved(), stream=True, tokens=2048, heal_tokens=1024)
    assert all(len(some) <= 1 for networks in there for some in networks)
    for place in (0, 1):  # none was passed over
        assert {n for networks in there for some in networks[place : place + 1] for n in some} == set(range(NUM_LAYERS))
    assert isinstance(made, DeferredModel)
    assert not has_weights(made.network)


def test_in_memory_layers_of_the_source_go_as_those_of_the_new_network_come(saved, there):
    converted(saved(), stream=False)
    second = [networks for networks in there if len(networks) == 2]
    assert len(second) > 0
    assert all(len(source) + len(new) == NUM_LAYERS + 1 for source, new in second)


def test_what_would_fill_memory_goes_by_layers_by_itself(saved, monkeypatch):
    source = saved()
    assert not isinstance(converted(source), DeferredModel)
    monkeypatch.setattr(memory, "SHARE_OF_FREE_MEMORY", 1e-9)
    assert isinstance(converted(source), DeferredModel)
    plan = LatentAttention(**TEXT).plan(load(source).plan())
    assert "goes from disk to disk, a layer at a time" in plan.notes


def test_a_plan_by_layers_asks_for_less_memory(saved):
    before = load(saved(num_hidden_layers=8)).plan()
    whole, streamed = (LatentAttention(**TEXT, stream=stream).plan(before) for stream in (False, True))
    assert streamed.peak_memory_bytes < whole.peak_memory_bytes


def test_a_model_in_memory_does_not_go_by_layers(saved):
    model = load(saved())
    _ = model.module
    with pytest.raises(SettingsError, match="stream is true, but the model is in memory already"):
        LatentAttention(**TEXT, stream=True)(model, calibration=[PROSE.read_text()])


def test_what_it_is_made_of_stays_until_the_model_is_gone(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = converted(saved(), stream=True)
    assert len(list(tmp_path.glob("burnish-*"))) == 1
    made.save(tmp_path / "out")
    del made
    gc.collect()
    assert not list(tmp_path.glob("burnish-*"))


CHILD = """
import json, sys
from burnish.convert.stage import LatentAttention
from burnish.core.checkpoint import load
from burnish.core.memory import peak_resident_bytes
settings = json.loads(sys.argv[3])
LatentAttention(**settings)(load(sys.argv[1]), calibration=[open(sys.argv[4]).read()]).save(sys.argv[2])
print(peak_resident_bytes())
"""
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
"""Each layer has 15 million weights, and 16 million once it is converted."""
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_peak_from_disk_is_two_layers_and_what_text_takes(tmp_path):
    """Of a model of 0.73 GB, less what the same work takes on next to no weights; in all less than twice its size."""
    found = {}
    for name, shape in {"small": SMALL, "large": LARGE}.items():
        shape = shape | {"num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048}
        module = make("llama", dtype=torch.bfloat16, **shape)
        source = Model(module=module, tokenizer=small_tokenizer()).save(tmp_path / name)
        given = {"tokens": 1024, "length": 256, "rank": 192, "rope_dim": 64, "stream": True}
        said = warm.run_script(tmp_path / "log", CHILD, source, tmp_path / "made", json.dumps(given), PROSE)
        found[name] = int(said.split()[-1])
        shutil.rmtree(tmp_path / "made")
    size = (source / "model.safetensors").stat().st_size
    assert size > 0.7e9
    assert found["large"] < 2 * size
    assert found["large"] - found["small"] < 4 * 2 * 16_000_000 + 150_000_000, found
