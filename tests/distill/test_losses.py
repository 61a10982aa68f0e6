"""Distillation as a loss over the loop: exact sums, and a teacher that autograd never sees."""

from dataclasses import replace

import pytest
import torch

from burnish.arch import head_of
from burnish.distill.losses import Distillation
from small_models import make


def mixture(seed):
    shape = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "initializer_range": 0.3}
    return make("mixtral", seed=seed, dtype=torch.float64, **shape)


pytestmark = pytest.mark.usefixtures("all_float64")


@pytest.fixture
def student():
    return mixture(0)


@pytest.fixture
def teacher():
    return mixture(1)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 48, (4, 10), generator=generator)
    targets = ids.roll(-1, 1)
    targets[torch.rand(4, 10, generator=generator) < 0.3] = -100
    return {"input_ids": ids, "targets": targets}


def gradient(student, loss_fn, batches):
    """Of Σ totals / Σ weights, as the loop divides."""
    student.zero_grad()
    weight = 0.0
    for batch in batches:
        loss = loss_fn(student, batch)
        loss.total.backward()
        weight += float(loss.weight)
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]) / weight


KINDS = {
    "forward": {},
    "reverse, focus": {"divergence": "reverse", "weighting": "focus"},
    "jsd, certain": {"divergence": "jsd", "weighting": "certain"},
    "top_k, uncertain": {"divergence": "top_k", "weighting": "uncertain", "temperature": 2.0},
    "turn, hidden, router": {"weighting": "turn", "hidden": 1.0, "router": 0.5},
}


@pytest.mark.parametrize("kind", KINDS)
def test_cutting_a_step_into_micro_batches_does_not_change_its_gradient(student, teacher, batch, kind):
    loss_fn = Distillation(teacher, **KINDS[kind])
    whole = gradient(student, loss_fn, [batch])
    parts = gradient(student, loss_fn, [{k: v[a:b] for k, v in batch.items()} for a, b in ((0, 1), (1, 4))])
    assert (parts - whole).norm() < 1e-10 * whole.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_of_logits_at_a_time_gives_the_same_loss_and_gradient(student, teacher, batch, kind, monkeypatch):
    whole = Distillation(teacher, **KINDS[kind])
    wanted, loss = gradient(student, whole, [batch]), whole(student, batch)
    monkeypatch.setattr("burnish.distill.losses.tokens_at_once", lambda device, vocab_size: 7)
    heads = {"head": head_of(student), "teacher_head": head_of(teacher)}
    assert None not in heads.values()
    for known in ({}, heads, {"head": heads["head"]}):
        cut = replace(whole, **known)
        found = cut(student, batch)
        torch.testing.assert_close(found.total, loss.total, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.metrics, loss.metrics, rtol=1e-12, atol=1e-12)
        assert (gradient(student, cut, [batch]) - wanted).norm() < 1e-12 * wanted.norm()


def test_no_more_tokens_than_a_stretch_ever_have_logits(student, teacher, batch, monkeypatch):
    monkeypatch.setattr("burnish.distill.losses.tokens_at_once", lambda device, vocab_size: 3)
    seen = []
    for model in (student, teacher):
        model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    loss_fn = Distillation(teacher, head=head_of(student), teacher_head=head_of(teacher))
    seen.clear()
    loss_fn(student, batch).total.backward()
    assert max(seen) == len(batch["input_ids"]), "the last tokens of the rows, which the forward pass makes logits of"


def test_a_sequence_counts_the_same_packed_or_alone(student, teacher, batch):
    loss_fn = Distillation(teacher, weighting="sequence")
    pairs = [{name: tensor[a : a + 2] for name, tensor in batch.items()} for a in (0, 2)]
    positions = torch.arange(10).repeat(1, 2)
    packed = [{n: t.reshape(1, -1) for n, t in pair.items()} | {"position_ids": positions} for pair in pairs]
    apart, together = (gradient(student, loss_fn, batches) for batches in (pairs, packed))
    assert (apart - together).norm() < 1e-10 * apart.norm()


def test_the_teacher_gets_no_gradient(student, teacher, batch):
    Distillation(teacher, hidden=1.0, router=1.0)(student, batch).total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_divergence_from_itself_is_zero_and_what_is_left_is_cross_entropy(teacher, batch):
    loss = Distillation(teacher, alpha=0.75)(teacher, batch)
    assert loss.metrics["divergence"].abs() < 1e-10
    logits = teacher(batch["input_ids"]).logits.flatten(0, 1)
    cross = torch.nn.functional.cross_entropy(logits, batch["targets"].flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, 0.25 * cross, rtol=1e-10, atol=1e-10)
    assert loss.weight == (batch["targets"] != -100).sum()


def test_the_load_balancing_loss_is_added_in_proportion_to_the_tokens(student, teacher, batch):
    plain, balanced = Distillation(teacher)(student, batch), Distillation(teacher, balance=0.1)(student, batch)
    added = 0.1 * student(batch["input_ids"], output_router_logits=True).aux_loss * plain.weight
    torch.testing.assert_close(balanced.total - plain.total, added, rtol=1e-10, atol=1e-10)
