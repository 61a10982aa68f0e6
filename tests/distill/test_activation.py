"""Hidden states of chosen layers beside the divergence, and weights of tokens: the exact properties."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from burnish.arch import head_of
from burnish.core.checkpoint import Model, load
from burnish.core.errors import SettingsError
from burnish.distill.losses import Distillation, Matched, projections
from burnish.distill.maths.hidden import hidden_mse, matching_layers
from burnish.distill.stage import Distill
from burnish.train.losses import WithParameters
from small_models import make

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. "
SMALL = {"context": 32, "batch": 4, "lr": 0.01, "optimizer": "adamw"}


def llama(seed: int, layers: int = 4, hidden: int = 16, dtype: torch.dtype = torch.float64) -> Any:
    shape = {"vocab_size": 48, "hidden_size": hidden, "intermediate_size": 24, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "num_hidden_layers": layers, "initializer_range": 0.3}
    return make("llama", seed=seed, dtype=dtype, **shape)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 48, (4, 10), generator=generator)
    targets = ids.roll(-1, 1)
    targets[torch.rand(4, 10, generator=generator) < 0.3] = -100
    return {"input_ids": ids, "targets": targets}


def gradient(model: Any, total: Tensor) -> Tensor:
    model.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("chosen", [(), (1, 3)])
def test_the_teacher_itself_has_no_loss_and_no_gradient(batch, divergence, chosen):
    student, teacher = llama(0), llama(0)
    loss_fn = Distillation(teacher, divergence=divergence, alpha=1.0, hidden=2.0, matched=Matched.of(4, 4, chosen))
    loss = loss_fn(student, batch)
    assert float(loss.total) == pytest.approx(0, abs=1e-12)
    assert gradient(student, loss.total).abs().max() < 1e-12


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_a_stretch_at_a_time_with_chosen_layers_and_weights_is_the_whole(batch, divergence, monkeypatch):
    student, teacher = llama(0, 3), llama(1, 6)
    batch["weights"] = torch.rand(4, 10, generator=torch.Generator().manual_seed(5))
    whole = Distillation(teacher, divergence=divergence, hidden=0.7, matched=Matched.of(3, 6, [0, 2]))
    loss = whole(student, batch)
    wanted = gradient(student, loss.total)
    monkeypatch.setattr("burnish.distill.losses.tokens_at_once", lambda device, vocab_size: 7)
    cut = replace(whole, head=head_of(student), teacher_head=head_of(teacher))(student, batch)
    torch.testing.assert_close(cut.total, loss.total, rtol=1e-5, atol=0)
    assert (gradient(student, cut.total) - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.slow  # imports TRL
@pytest.mark.parametrize(("beta", "divergence"), [(0.0, "forward"), (1.0, "reverse"), (0.3, "jsd")])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_without_hidden_states_it_is_the_value_and_gradient_of_trls_distillation_trainer(
    batch, beta, divergence, temperature
):
    trl = pytest.importorskip("trl.trainer.distillation_trainer", reason="needs the extra align")
    student, teacher = llama(0, dtype=torch.float32), llama(1, dtype=torch.float32)
    loss_fn = Distillation(teacher, divergence=divergence, alpha=1.0, beta=beta or 0.5, temperature=temperature)
    ours = loss_fn(student, batch)
    ours_gradient = gradient(student, ours.total / ours.weight)
    with torch.no_grad():
        wanted = teacher.model(batch["input_ids"]).last_hidden_state
    states = student.model(batch["input_ids"]).last_hidden_state
    weights = (student.lm_head.weight, teacher.lm_head.weight.detach())
    mask = (batch["targets"] != -100).long()
    theirs, _, count = trl._chunked_divergence_loss(states, wanted, *weights, mask, beta, temperature=temperature)
    assert int(count) == int(ours.weight)
    # TRL leaves out the squared temperature that keeps the gradient's size.
    torch.testing.assert_close(ours.total / ours.weight, theirs * temperature**2, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours_gradient, gradient(student, theirs * temperature**2), rtol=1e-4, atol=1e-6)


def test_the_states_of_the_chosen_layers_alone_are_compared(batch):
    student, teacher = llama(0, 3), llama(1, 6)
    matches = matching_layers(3, 6)
    mask = batch["targets"] != -100
    with torch.no_grad():
        ours, theirs = (
            model(batch["input_ids"], output_hidden_states=True).hidden_states[1:] for model in (student, teacher)
        )
    errors = [hidden_mse(ours[layer][mask], theirs[matches[layer]][mask]).sum() for layer in range(3)]
    for chosen in ([0], [2], [0, 1], [0, 1, 2]):
        plain = Distillation(teacher)(student, batch).total
        with_states = Distillation(teacher, hidden=1.0, matched=Matched.of(3, 6, chosen))(student, batch).total
        mean = torch.stack([errors[layer] for layer in chosen]).mean()
        torch.testing.assert_close(with_states - plain, mean, rtol=1e-10, atol=1e-10)
    every = Distillation(teacher, hidden=1.0)(student, batch).total
    torch.testing.assert_close(every, with_states, rtol=1e-12, atol=0)


def test_no_other_states_of_the_teacher_are_kept(batch, monkeypatch):
    student, teacher = llama(0, 3), llama(1, 6)
    seen = []
    forward = teacher.forward

    def watched(**inputs: Any) -> Any:
        output = forward(**inputs)
        seen.append(output.hidden_states)
        return output

    monkeypatch.setattr(teacher, "forward", watched)
    Distillation(teacher, hidden=1.0, matched=Matched.of(3, 6, [1]))(student, batch)
    (states,) = seen
    assert [place for place, one in enumerate(states) if one is not None] == [3]


def test_a_class_that_gives_all_states_has_the_same_loss(batch, monkeypatch):
    student, teacher = llama(0, 3), llama(1, 6)
    loss_fn = Distillation(teacher, hidden=1.0, matched=Matched.of(3, 6, [0, 2]))
    wanted = loss_fn(student, batch).total
    for model in (student, teacher):
        forward = model.forward

        def all_states(*, output_hidden_states: Any, forward: Any = forward, **inputs: Any) -> Any:
            return forward(output_hidden_states=bool(output_hidden_states), **inputs)

        monkeypatch.setattr(model, "forward", all_states)
    torch.testing.assert_close(loss_fn(student, batch).total, wanted, rtol=0, atol=0)


def test_a_token_counts_as_much_as_its_weight(batch):
    student, teacher = llama(0), llama(1)
    loss_fn = Distillation(teacher, hidden=1.0, matched=Matched.of(4, 4, [2]))
    weights = torch.rand(4, 10, generator=torch.Generator().manual_seed(3)).double()
    mask = batch["targets"] != -100
    total = torch.zeros((), dtype=torch.float64)
    for row, column in mask.nonzero().tolist():
        alone = torch.full_like(batch["targets"], -100)
        alone[row, column] = batch["targets"][row, column]
        total += weights[row, column] * loss_fn(student, batch | {"targets": alone}).total.detach()
    found = loss_fn(student, batch | {"weights": weights})
    torch.testing.assert_close(found.total.detach(), total, rtol=1e-6, atol=0)  # counts are in float32
    torch.testing.assert_close(found.weight.double(), weights[mask].sum(), rtol=1e-6, atol=0)


def test_a_token_of_weight_zero_has_no_gradient(batch):
    student, teacher = llama(0), llama(1)
    loss_fn = Distillation(teacher, hidden=1.0)
    weights = torch.ones(4, 10)
    weights[2:] = 0
    silenced = loss_fn(student, batch | {"weights": weights})
    shorter = loss_fn(student, {name: part[:2] for name, part in batch.items()})
    assert float(silenced.weight) == float(shorter.weight)
    one, other = gradient(student, silenced.total), gradient(student, shorter.total)
    assert (one - other).norm() < 1e-10 * other.norm()


def test_maps_between_widths_are_learned_for_the_chosen_layers_alone(batch):
    student, teacher = llama(0, 3, hidden=16), llama(1, 6, hidden=24)
    matched = Matched.of(3, 6, [0, 2])
    maps = projections(16, 24, len(matched.pairs), torch.Generator().manual_seed(0)).double()
    assert [tuple(one.shape) for one in maps] == [(24, 16), (24, 16)]
    model = WithParameters(student, maps)
    Distillation(teacher, alpha=0.0, hidden=1.0, matched=matched)(model, batch).total.backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in maps)


def test_a_student_learns_chosen_states_of_a_wider_teacher(tiny_llama: Path, tmp_path: Path):
    tokenizer = load(tiny_llama).tokenizer
    shape = {"vocab_size": 384, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    student, teacher = (
        Model(module=make("llama", seed=seed, hidden_size=size, num_hidden_layers=layers, **shape), tokenizer=tokenizer)
        for size, layers, seed in ((16, 2, 0), (24, 4, 1))
    )
    stage = Distill(steps=40, alpha=0.0, hidden=1.0, hidden_layers=[2], teacher="teacher", **SMALL)
    trained = stage(student, data=[TEXT * 8], teacher=teacher, work_dir=tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.75 * losses[0]
    assert set(trained.module.state_dict()) == set(student.module.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_layers": [1]}, "count for nothing while hidden is 0"),
        ({"hidden": 1.0, "hidden_layers": [0]}, "names the layer 0, but the first one is 1"),
        ({"hidden": 1.0, "hidden_layers": [2, 2]}, "names a layer twice"),
    ],
)
def test_layers_that_are_none_are_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Distill.parse({"teacher": "t", **settings}, where="recipe")


def test_a_layer_that_the_student_does_not_have_is_refused(tiny_llama: Path, tmp_path: Path):
    model = load(tiny_llama)
    count = model.config.num_hidden_layers
    stage = Distill(steps=1, hidden=1.0, hidden_layers=[1, count + 1], teacher="t", **SMALL)
    with pytest.raises(SettingsError, match=f"names the layer {count + 1}, but the student has {count}"):
        stage(model, data=[TEXT], teacher=load(tiny_llama), work_dir=tmp_path)
    with pytest.raises(SettingsError, match=f"names the layer {count + 1}, but the student has {count}"):
        stage.plan(model.plan())  # before the stages in front of it have run
