"""`tune --by-layer`: every layer comes nearer to the original's, whether that is on disk or in memory."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from burnish.arch import HiddenStates
from burnish.core.checkpoint import Model, load
from burnish.core.checkpoint.adapter import Adapter
from burnish.core.errors import CheckpointError, NumericalError, SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.quantize.stage import Quantize
from burnish.tune import by_layer
from burnish.tune.stage import Tune
from small_models import PROSE, make

SHORT = {"context": 32, "batch": 4, "steps": 8, "lr": 0.02, "by_layer": True}


def context(work_dir: Path, texts: list[str], **inputs: object) -> Context:
    data = {"data": texts} | inputs
    return Context(data, work_dir, "cpu", seeded_generator(0), Progress(enabled=False), Ledger(None))


def tuned(packed: Path, teacher: Model | str, work_dir: Path, **settings) -> tuple[Model, list[dict]]:
    """Of some English, and what is told of the layers."""
    ctx = context(work_dir, [PROSE.read_text()], teacher=teacher)
    model = Tune(**SHORT | settings).run(load(packed), ctx)
    return model, next(row["rows"] for row in ctx.ledger.rows if row["name"] == by_layer.TABLE)


def tensors(model: Model, place: Path) -> dict[str, torch.Tensor]:
    return load_file(model.save(place) / "model.safetensors")


def test_every_layer_comes_nearer_and_scales_and_norms_alone_change(packed, tiny_llama, tmp_path):
    model, rows = tuned(packed, str(tiny_llama), tmp_path / "work")
    assert [row["layer"] for row in rows] == list(range(load(tiny_llama).config.num_hidden_layers))
    assert all(row["error after, held-out rows"] < row["error before, held-out rows"] for row in rows)
    before, after = load_file(packed / "model.safetensors"), tensors(model, tmp_path / "tuned")
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {name for name in before if name.endswith("weight_scale")} <= changed
    assert all("weight_scale" in name or "layernorm" in name for name in changed)


def test_it_predicts_more_like_the_original(packed, tiny_llama, tmp_path):
    from burnish.evaluate.maths.divergence import kl_divergence

    ids = torch.tensor(load(tiny_llama).tokenizer(PROSE.read_text())["input_ids"][-64:])[None]
    models = load(tiny_llama), load(packed), tuned(packed, str(tiny_llama), tmp_path, steps=20)[0]
    with torch.no_grad():
        wanted, before, after = (model.module.float()(ids).logits[0].log_softmax(-1) for model in models)
    assert kl_divergence(wanted, after).mean() < 0.9 * kl_divergence(wanted, before).mean()


def test_an_original_in_memory_gives_the_bits_of_one_on_disk(packed, tiny_llama, tmp_path):
    in_memory = load(tiny_llama)
    assert by_layer.streamed(in_memory) is not None
    _ = in_memory.module
    assert by_layer.streamed(in_memory) is None
    teachers = {"disk": str(tiny_llama), "memory": in_memory}
    first, second = (
        tensors(tuned(packed, teacher, tmp_path / name)[0], tmp_path / f"{name}-tuned")
        for name, teacher in teachers.items()
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_what_an_interrupted_run_has_finished_is_not_done_again(packed, tiny_llama, tmp_path, monkeypatch):
    whole = tensors(tuned(packed, str(tiny_llama), tmp_path / "work")[0], tmp_path / "whole")
    shutil.rmtree(tmp_path / "work" / "layers" / "layer001")
    done, descend = [], by_layer.descend
    monkeypatch.setattr(by_layer, "descend", lambda *given: done.append(given[3].number) or descend(*given))
    again = tensors(tuned(packed, str(tiny_llama), tmp_path / "work")[0], tmp_path / "again")
    assert done == [1]
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_layer_that_does_not_come_nearer_stays_as_it_was(packed, tiny_llama, tmp_path):
    model, rows = tuned(packed, str(tiny_llama), tmp_path / "work", lr=30.0, steps=2, warmup=0.0)
    assert all(row["error after, held-out rows"] == row["error before, held-out rows"] for row in rows)
    before, after = load_file(packed / "model.safetensors"), tensors(model, tmp_path / "tuned")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_layer_with_nothing_to_train_is_passed_through(tiny_llama, tmp_path):
    place = Quantize(method="rtn", bits=2, group_size=16, ignore=("re:.*layers.0.*",))(load(tiny_llama)).save(
        tmp_path / "packed"
    )
    _, rows = tuned(place, str(tiny_llama), tmp_path / "work", norms=False)
    assert [row["layer"] for row in rows] == list(range(1, load(tiny_llama).config.num_hidden_layers))


def test_padding_is_no_token_of_the_error(packed, tiny_llama, tmp_path):
    settings = {"holdout": 0.0, "keep_best": False, "batch": 1}
    stage, ctx = Tune(**SHORT | settings), context(tmp_path, [PROSE.read_text()[:50]])
    text = by_layer.text_of(stage, *by_layer.training_rows(stage, load(packed).tokenizer, ctx), 1)
    assert text.mask is not None and not text.mask.all()
    _, rows = tuned(packed, str(tiny_llama), tmp_path, **settings)
    assert rows[0]["error after, rows trained on"] < rows[0]["error before, rows trained on"]
    states = HiddenStates(torch.ones(1, 4, 2), {0: {}})
    target = torch.full((1, 4, 2), 2.0)
    mask = torch.tensor([[True, True, False, False]])
    off = torch.tensor([[[1.0], [1.0], [9.0], [9.0]]])
    assert by_layer.token_error(states, 0, lambda x: x * off, target, mask) == 0.25


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 2.0}, "temperature counts for nothing with by_layer"),
        ({"alpha": 0.5}, "alpha counts for nothing"),
        ({"offline": True, "divergence": "top_k"}, "counts for nothing"),
        ({"micro_batch": 2}, "micro_batch counts for nothing"),
    ],
)
def test_settings_of_the_other_loss_are_refused(settings, said):
    with pytest.raises((SettingsError, ValueError), match=said):
        Tune(**SHORT | settings)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama", {"num_key_value_heads": 4}, "self_attn.k_proj.weight"),
        ("llama", {"attention_bias": True}, "self_attn.q_proj.bias None and the teacher"),
        ("llama", {"num_hidden_layers": 3}, "num_hidden_layers"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_parameters"),
        ("qwen2", {}, "model_type llama and the teacher qwen2"),
    ],
)
def test_a_teacher_whose_layers_cannot_take_the_models_weights_is_refused(family, changes, said, packed, tiny_llama):
    start, original = load(packed), load(tiny_llama)
    same = {name: getattr(original.config, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    heads = {name: getattr(original.config, name) for name in ("num_attention_heads", "num_key_value_heads")}
    by_layer.check_same_layers(start, original)
    other = make(family, **same | heads | {"head_dim": original.config.head_dim} | changes)
    with pytest.raises(SettingsError, match=said):
        by_layer.check_same_layers(start, Model(module=other, tokenizer=original.tokenizer))


def test_another_network_and_a_rate_without_end_are_refused(packed, tiny_llama, tmp_path):
    other = make("llama", num_hidden_layers=3)
    teacher = Model(module=other, tokenizer=load(tiny_llama).tokenizer)
    with pytest.raises((SettingsError, CheckpointError), match=r"num_hidden_layers|vocabulary"):
        tuned(packed, teacher, tmp_path / "other")
    with pytest.raises(SettingsError, match="no teacher is named"):
        by_layer.original_of(Tune(**SHORT), load(packed), context(tmp_path, []))
    adapted = load(tiny_llama)
    adapted.adapter = Adapter({"r": 4}, {})
    with pytest.raises(SettingsError, match="the teacher has a LoRA adapter beside its weights"):
        by_layer.original_of(Tune(**SHORT), load(packed), context(tmp_path, [], teacher=adapted))
    with pytest.raises(NumericalError, match="the error is"):
        tuned(packed, str(tiny_llama), tmp_path / "fast", lr=1e30, warmup=0.0, keep_best=False)
