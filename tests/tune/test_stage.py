"""The stage `tune`: codes stay, scales and norms come nearer to the original, and the files are as stock as before."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.core.checkpoint import load
from burnish.core.checkpoint.packed_integers import packed_weights
from burnish.core.errors import BurnishError, CheckpointError, RecipeError, SettingsError
from burnish.quantize.stage import Quantize
from burnish.tune.stage import Tune
from small_models import PROSE, make, small_tokenizer

SHORT = {"context": 32, "batch": 4, "steps": 12, "lr": 0.02, "eval_every": 4}


def tuned(packed: Path, original: Path, work_dir: Path | None = None, **settings):
    """Of some English, against the original."""
    stage = Tune(**SHORT | settings)
    return stage(load(packed), data=[PROSE.read_text()], teacher=str(original), work_dir=work_dir)


def test_scales_and_norms_alone_change_and_the_held_out_divergence_falls(packed, tiny_llama, tmp_path):
    model = tuned(packed, tiny_llama, tmp_path / "work")
    model.save(tmp_path / "tuned")
    before, after = (load_file(place / "model.safetensors") for place in (packed, tmp_path / "tuned"))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {name for name in before if name.endswith("weight_scale")} <= changed
    assert all("weight_scale" in name or "norm" in name for name in changed)
    assert {name: tensor.dtype for name, tensor in before.items()} == {name: t.dtype for name, t in after.items()}
    configs = [json.loads((place / "config.json").read_text()) for place in (packed, tmp_path / "tuned")]
    assert configs[0] == configs[1]
    rows = [json.loads(line) for line in (tmp_path / "work" / "metrics.jsonl").read_text().splitlines()]
    held_out = [row["validation_loss"] for row in rows if "validation_loss" in row]
    assert held_out[-1] < held_out[0]


def test_what_is_in_memory_is_what_stock_loading_reads(packed, tiny_llama, tmp_path):
    model = tuned(packed, tiny_llama)
    model.save(tmp_path / "tuned")
    stock = AutoModelForCausalLM.from_pretrained(
        tmp_path / "tuned", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model.module(ids).logits, stock(ids).logits)


def test_a_rate_of_nothing_changes_no_byte(packed, tiny_llama, tmp_path):
    tuned(packed, tiny_llama, lr=1e-12, steps=2).save(tmp_path / "tuned")
    before, after = (load_file(place / "model.safetensors") for place in (packed, tmp_path / "tuned"))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.slow
def test_few_of_the_rows_held_out_are_measured_on(packed, tiny_llama, tmp_path):
    def rows_of(validation_rows):
        place = tmp_path / str(validation_rows)
        tuned(packed, tiny_llama, place, steps=1, lr=1e-12, holdout=0.5, validation_rows=validation_rows)
        return json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])["validation_loss"]

    assert rows_of(2) != rows_of(None)
    assert rows_of(10_000) == rows_of(None)


def test_unit_scales_compute_what_the_packed_model_computes(packed, tiny_llama):
    from burnish.core.ledger import Ledger
    from burnish.core.progress import Progress
    from burnish.core.stage import Context, seeded_generator
    from burnish.tune.run import _Scales, regain

    model = load(packed)
    network = copy.deepcopy(model.module).float()
    ctx = Context({}, Path(), "cpu", seeded_generator(0), Progress(enabled=False), Ledger(None))
    _Scales(model).put_into(network, ctx)
    regain(network, model.module)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(network(ids).logits, model.module.float()(ids).logits)


@pytest.mark.parametrize("part", ["scales", "norms"])
def test_parts_are_trained_alone(packed, tiny_llama, tmp_path, part):
    tuned(packed, tiny_llama, steps=4, keep_best=False, **{"scales": False, "norms": False} | {part: True}).save(
        tmp_path / "tuned"
    )
    before, after = (load_file(place / "model.safetensors") for place in (packed, tmp_path / "tuned"))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed
    assert all(("weight_scale" in name) == (part == "scales") for name in changed)


@pytest.mark.parametrize("settings", [{"symmetric": False}, {"group_size": None}, {"bits": 8, "group_size": 32}])
def test_zero_points_rows_and_other_widths(tiny_llama, tmp_path, settings):
    place = Quantize(method="rtn", **{"group_size": 16} | settings)(load(tiny_llama)).save(tmp_path / "packed")
    dense = load(place, dtype=torch.float32).module
    for disk, weight in packed_weights(load(place)):
        product = weight.levels * weight.scale.repeat_interleave(weight.levels.shape[1] // weight.scale.shape[1], 1)
        assert torch.equal(product.float(), dense.get_parameter(disk))
    tuned(place, tiny_llama, tmp_path / "work", steps=1)


def test_experts_keep_their_scales_and_the_rest_is_tuned(tmp_path, capsys):
    from burnish.core.checkpoint import Model

    original = Model(module=make("mixtral", disturbed=True), tokenizer=small_tokenizer()).save(tmp_path / "mixture")
    place = Quantize(method="rtn", bits=2, group_size=16)(load(original)).save(tmp_path / "packed")
    tuned(place, original, steps=3, keep_best=False).save(tmp_path / "tuned")
    before, after = (load_file(one / "model.safetensors") for one in (place, tmp_path / "tuned"))
    scales = [name for name in before if name.endswith("weight_scale")]
    changed = [name for name in scales if not torch.equal(before[name], after[name])]
    assert changed
    assert {"experts" in name for name in changed} == {False}


def test_a_packed_model_in_memory_is_tuned_like_its_files(tiny_llama, tmp_path):
    model = Quantize(method="rtn", bits=2, group_size=16)(load(tiny_llama))
    texts = [PROSE.read_text()]
    stage = Tune(**SHORT | {"steps": 3})
    first = stage(model, data=texts, teacher=str(tiny_llama))
    second = stage(load(model.save(tmp_path / "packed")), data=texts, teacher=str(tiny_llama))
    assert first.quantization_config == second.quantization_config
    assert all(
        torch.equal(tensor, second.packed[disk][name])
        for disk, tensors in first.packed.items()
        for name, tensor in tensors.items()
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scales": False, "norms": False}, "nothing would be trained"),
        ({"lora_rank": 4}, "lora_rank does not go with tune"),
        ({"weight_decay": 0.1}, "weight_decay does not go with tune"),
        ({"only": "*"}, "only does not go with tune"),
        ({"optimizer": "normuon"}, "adamw"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, said):
    with pytest.raises((SettingsError, ValueError), match=said):
        Tune(**settings)


def test_keeping_the_best_without_held_out_rows_is_not_planned(packed):
    before = load(packed).plan()
    with pytest.raises(SettingsError, match=r"keep_best needs held-out rows.*keep_best: false"):
        Tune(data="text.txt", teacher="models/mine", holdout=0).plan(before)
    Tune(data="text.txt", teacher="models/mine", holdout=0, keep_best=False).plan(before)
    Tune(data="text.txt", teacher="models/mine", validation="other.txt").plan(before)


def test_dense_weights_and_other_packings_are_refused(tiny_llama, tmp_path):
    with pytest.raises(RecipeError, match="packed weights"):
        tuned(tiny_llama, tiny_llama)
    floats = Quantize(scheme="fp8-dynamic", method="rtn")(load(tiny_llama)).save(tmp_path / "floats")
    with pytest.raises(SettingsError, match="whole numbers"):
        tuned(floats, tiny_llama)
    mixed = Quantize(method="rtn", group_size=16, overrides={"re:.*down_proj.*": {"scheme": "fp8-dynamic"}})
    with pytest.raises(SettingsError, match="packed as 'float-quantized'"):
        tuned(mixed(load(tiny_llama)).save(tmp_path / "mixed"), tiny_llama, scales=False)


def test_the_original_may_say_beforehand_what_it_predicts(packed, tiny_llama, tmp_path):
    """From disk its likeliest tokens train the scales as they do from memory."""
    first, second = (
        tuned(packed, tiny_llama, tmp_path / name, divergence="top_k", offline=offline, holdout=0.0, keep_best=False)
        for name, offline in (("disk", True), ("memory", False))
    )
    assert (tmp_path / "disk" / "teacher-data").is_dir()
    name = next(iter(first.packed))
    scale = f"{name.removesuffix('weight')}weight_scale"
    start = load_file(packed / "model.safetensors")[scale].float()
    moved, same = ((one.packed[name][scale].float() - start) for one in (first, second))
    assert moved.abs().max() > 0
    assert (moved - same).norm() < 0.05 * same.norm()  # logits lie on disk in 16 bits


def test_a_teacher_that_the_model_was_not_made_of_is_known(packed, tiny_llama):
    from burnish.tune.run import is_another

    model, original = load(packed), load(tiny_llama)
    assert not is_another(str(tiny_llama), model)  # nothing is written of what it was made of
    model.lineage.stage, model.lineage.parents = "quantize", {"model": original.hash}
    assert not is_another(str(tiny_llama), model) and not is_another(original, model)
    assert is_another(str(packed), model) and not is_another(None, model)


def test_damaged_scales_are_named(packed, tiny_llama, tmp_path):
    import shutil

    from safetensors.torch import save_file

    shutil.copytree(packed, tmp_path / "damaged")
    tensors = load_file(packed / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight_scale"))
    del tensors[name]
    save_file(tensors, tmp_path / "damaged" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BurnishError):
        tuned(tmp_path / "damaged", tiny_llama)
    with pytest.raises(CheckpointError, match="weight_scale is missing"):
        list(packed_weights(load(tmp_path / "damaged")))
