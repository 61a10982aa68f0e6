import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from burnish.core.checkpoint import (
    Lineage,
    Model,
    cast,
    content_hash,
    durable,
    hash_directory,
    load,
    plan_checkpoint,
    plan_config,
    shards,
)
from burnish.core.errors import CheckpointError, OutputError
from burnish.core.kinds import Kind, Weights


@pytest.fixture
def broken(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "broken"))


def test_a_saved_model_loads_in_stock_transformers_bit_for_bit(tiny_llama: Path, tmp_path: Path):
    model = load(tiny_llama)
    model.save(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, tensor in model.module.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_nothing_is_read_until_it_is_asked_for(tiny_llama: Path):
    model = load(tiny_llama)
    assert not model.is_loaded
    assert "tokenizer" not in model.__dict__


def test_the_lineage_names_every_file_by_its_hash(tiny_llama: Path, tmp_path: Path):
    load(tiny_llama).save(tmp_path / "out")
    lineage = Lineage.read(tmp_path / "out")
    assert lineage is not None
    assert lineage.files == hash_directory(tmp_path / "out")
    assert lineage.hash == content_hash(lineage.files)


def test_two_saves_of_one_model_have_one_hash(tiny_llama: Path, tmp_path: Path):
    load(tiny_llama).save(tmp_path / "a")
    load(tiny_llama).save(tmp_path / "b")
    assert load(tmp_path / "a").hash == load(tmp_path / "b").hash


def test_a_cast_leaves_rotary_frequencies_alone(tiny_llama: Path):
    module = cast(load(tiny_llama).module, torch.bfloat16)
    stock = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    assert module.dtype == torch.bfloat16
    tokens = torch.arange(12)[None]
    assert torch.equal(module(tokens).logits, stock(tokens).logits)


def test_shards_are_written_with_an_index_and_load(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 100_000)
    model = load(tiny_llama)
    model.save(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    again = load(tmp_path / "out").module
    assert torch.equal(again.lm_head.weight, model.module.lm_head.weight)


def test_a_model_card_says_base_and_loader(tiny_llama: Path, tmp_path: Path):
    load(tiny_llama).save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "tiny-llama" in card
    assert "AutoModelForCausalLM" in card


def test_a_failed_write_leaves_nothing_behind(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full_disk(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        load(tiny_llama).save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_ours_is_never_replaced(tiny_llama: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="was not made by burnish"):
        load(tiny_llama).save(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_our_own_checkpoint_is_replaced_only_when_asked(tiny_llama: Path, tmp_path: Path):
    load(tiny_llama).save(tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        load(tiny_llama).save(tmp_path / "out")
    load(tiny_llama).save(tmp_path / "out", overwrite=True)


def test_leftovers_of_dead_processes_are_removed_by_the_next_save(tiny_llama: Path, tmp_path: Path):
    dead = tmp_path / ".out.999999999.tmp"
    dead.mkdir()
    load(tiny_llama).save(tmp_path / "out")
    assert not dead.exists()


def test_sizes_come_from_headers_alone(tiny_llama: Path):
    plan = plan_checkpoint(tiny_llama)
    module = load(tiny_llama).module
    assert plan.num_parameters == sum(p.numel() for p in module.parameters())
    assert (plan.kind, plan.weights) == (Kind.CAUSAL_LM, Weights.DENSE)


def test_a_configuration_alone_plans_the_same_sizes(tiny_llama: Path):
    assert plan_config(load(tiny_llama).config).num_parameters == plan_checkpoint(tiny_llama).num_parameters


# -- bad input: one clear sentence each ------------------------------------------------------------------------------


def refusal(source: Path | str) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(source)
    return str(caught.value)


def test_a_missing_directory(tmp_path: Path):
    assert "no such checkpoint directory" in refusal(tmp_path / "nothing")


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "the hub cannot be reached" in refusal("someone/some-model-that-is-not-cached")


def test_a_file_in_place_of_a_directory(tmp_path: Path):
    (tmp_path / "model").write_text("x")
    assert "a checkpoint is a directory" in refusal(tmp_path / "model")


def test_no_config(broken: Path):
    (broken / "config.json").unlink()
    assert "has no config.json" in refusal(broken)


def test_a_config_that_is_not_json(broken: Path):
    (broken / "config.json").write_text("{")
    assert "is not valid JSON" in refusal(broken)


def test_a_config_without_weights(broken: Path):
    (broken / "model.safetensors").unlink()
    assert "has a config.json but no weights" in refusal(broken)


def test_pickled_weights_are_never_opened(broken: Path):
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert "pickled weights" in refusal(broken)


def test_weights_that_are_cut_short(broken: Path):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "the file is incomplete or corrupt" in refusal(broken)


@pytest.mark.parametrize("content", [b"", b"\x05", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!"])
def test_weights_that_are_not_safetensors(broken: Path, content: bytes):
    (broken / "model.safetensors").write_bytes(content)
    assert "safetensors" in refusal(broken)


def test_a_missing_shard_is_named(broken: Path):
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors is missing" in refusal(broken)


def test_a_config_that_asks_for_remote_code(broken: Path):
    config = json.loads((broken / "config.json").read_text())
    config |= {"model_type": "very_new", "auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}
    (broken / "config.json").write_text(json.dumps(config))
    assert "which burnish never runs" in refusal(broken)


def test_an_unknown_architecture(broken: Path):
    config = json.loads((broken / "config.json").read_text()) | {"model_type": "very_new"}
    (broken / "config.json").write_text(json.dumps(config))
    assert "is not an architecture of the installed transformers" in refusal(broken)


def test_a_setting_of_the_wrong_type_in_the_config(broken: Path):
    config = json.loads((broken / "config.json").read_text()) | {"hidden_size": "large"}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"is not a configuration of 'llama' .*hidden_size.*expected int"):
        _ = load(broken).config


def test_a_config_of_another_size(broken: Path):
    config = json.loads((broken / "config.json").read_text()) | {"intermediate_size": 256}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has the shape \(.*\), but config.json asks for \(.*256.*\)"):
        _ = load(broken).module


def test_a_missing_tokenizer_is_said_when_it_is_needed(broken: Path):
    (broken / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        _ = load(broken).tokenizer


def test_a_missing_weight_is_named(broken: Path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(broken / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        _ = load(broken).module


def test_a_lineage_of_a_newer_version(broken: Path):
    Lineage().write(broken)
    content = json.loads((broken / "burnish.json").read_text()) | {"format": 99}
    (broken / "burnish.json").write_text(json.dumps(content))
    assert "written by a newer burnish" in refusal(broken)


def test_a_damaged_lineage(broken: Path):
    (broken / "burnish.json").write_text("{}")
    assert "the lineage file is damaged" in refusal(broken)


def test_an_in_memory_model_says_what_it_lacks():
    with pytest.raises(CheckpointError, match="exists in memory only"):
        _ = Model().config


def test_only_files_of_dead_writers_are_swept(tmp_path: Path):
    dead, alive = 2**22 + 1, os.getppid()  # above the largest process id of Linux
    names = [f".run.json.{dead}.tmp", f".a.{dead}.old.tmp", f".run.json.{alive}.tmp", ".notes.tmp", f"a.{dead}.tmp"]
    for name in [*names, "a"]:
        (tmp_path / name).write_text("x")
    durable.remove_leftovers_inside(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[2:], "a"])


def test_a_writer_that_has_ended_is_dead_before_anybody_asked_for_its_status(tmp_path: Path):
    ended = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it stays in the table of processes
        leftover = tmp_path / f".run.json.{ended.pid}.tmp"
        leftover.write_text("x")
        durable.remove_leftovers_inside(tmp_path)
        assert not leftover.exists()
    finally:
        ended.wait()


def test_a_small_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[str] = []
    real_fsync, real_replace = durable.fsync, Path.replace
    monkeypatch.setattr(durable, "fsync", lambda path: (done.append("fsync"), real_fsync(path)))
    monkeypatch.setattr(Path, "replace", lambda path, to: (done.append("replace"), real_replace(path, to)))
    durable.write_atomically(tmp_path / "file", "text")
    assert done == ["fsync", "replace"]


def test_every_file_of_a_checkpoint_is_on_disk_before_the_checkpoint_has_its_name(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done: list[Path] = []
    real_fsync = durable.fsync
    monkeypatch.setattr(durable, "fsync", lambda path: (done.append(path), real_fsync(path)))
    load(tiny_llama).save(tmp_path / "out")
    staged = {path.name for path in done if path.parent.name.startswith(".out")}
    assert staged >= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize(("field", "value"), [("seed", 7), ("stage", "other"), ("measurements", {"perplexity": {}})])
def test_a_lineage_that_was_changed_by_hand_is_noticed(tiny_llama: Path, tmp_path: Path, field: str, value: object):
    load(tiny_llama).save(tmp_path / "out")
    file = tmp_path / "out" / "burnish.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match="the lineage file was changed by hand"):
        load(tmp_path / "out")


def test_a_lineage_of_the_first_format_has_no_digest_and_is_read(tiny_llama: Path, tmp_path: Path):
    load(tiny_llama).save(tmp_path / "out")
    file = tmp_path / "out" / "burnish.json"
    content = {
        name: value for name, value in json.loads(file.read_text()).items() if name not in ("digest", "continued")
    }
    file.write_text(json.dumps(content | {"format": 1, "seed": 3}))
    lineage = Lineage.read(tmp_path / "out")
    assert lineage is not None and lineage.seed == 3


def test_a_configuration_with_an_infinite_number_is_read_and_written_as_stock_transformers_does(tmp_path: Path):
    """Mamba's bounds of a time step: transformers writes infinity as an object, since JSON has no word for it."""
    shape = {"num_heads": 8, "head_dim": 16, "n_groups": 1, "state_size": 16, "chunk_size": 16}
    shape |= {"vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 1}
    config = AutoConfig.for_model("mamba2", **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "stock")
    model = load(tmp_path / "stock")
    assert tuple(model.config.time_step_limit) == tuple(config.time_step_limit) == (0.0, math.inf)
    assert model.plan().num_parameters == model.module.num_parameters()
    model.save(tmp_path / "again")
    written = (tmp_path / "again" / "config.json").read_text()
    json.loads(written, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert tuple(AutoConfig.from_pretrained(tmp_path / "again").time_step_limit) == (0.0, math.inf)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert all(torch.equal(tensor, model.module.state_dict()[name]) for name, tensor in read.state_dict().items())
