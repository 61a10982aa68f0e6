"""On-policy distillation: the student writes in the batch, the losses are TRL's, resuming draws the same texts."""

from typing import Any

import pytest
import torch

from burnish.core.checkpoint import load
from burnish.core.errors import SettingsError
from burnish.distill.losses import Distillation
from burnish.distill.on_policy import SAMPLED, Gap, OnPolicy, gaps, put
from burnish.distill.stage import Distill
from burnish.train.maths.divergence import forward_kl, jensen_shannon, reverse_kl
from small_models import PROSE, make, small_tokenizer

IGNORED = -100


@pytest.mark.slow  # imports TRL
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_the_divergences_are_those_of_trl(beta):
    gkd = pytest.importorskip("trl.experimental.gkd", reason="needs the extra align")
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 7, 33, generator=generator) for _ in range(2))
    labels = torch.where(torch.rand(2, 7, generator=generator) < 0.3, IGNORED, 1)
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=beta, temperature=1.7)
    ours = {0.0: forward_kl, 1.0: reverse_kl}.get(beta, lambda s, t, tau: jensen_shannon(s, t, beta, tau))
    per_token = ours(student, teacher, 1.7)[labels != IGNORED]
    # TRL leaves out the squared temperature that keeps the gradient's size.
    torch.testing.assert_close(per_token.mean() / 1.7**2, theirs, rtol=1e-5, atol=1e-6)


def test_the_gap_is_what_follows_the_prompt_of_every_piece():
    targets = torch.tensor([[1, 2, 3, 4, 5, IGNORED, 7, 8, 9, IGNORED]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]])
    batch = {"input_ids": targets.clamp(min=0), "targets": targets, "position_ids": positions}
    assert list(gaps(batch, 3)) == [Gap(0, 0, 2, 4), Gap(0, 5, 7, 8)]
    assert list(gaps(batch, 5)) == [Gap(0, 0, 4, 4)]  # the second piece is no longer than its prompt


def test_a_chat_is_continued_from_its_last_answer():
    targets = torch.tensor([[IGNORED, IGNORED, 5, 6, IGNORED, IGNORED, IGNORED, 8, 9, IGNORED]])
    assert list(gaps({"input_ids": targets, "targets": targets}, 2)) == [Gap(0, 0, 7, 8)]


@pytest.mark.parametrize(
    ("tokens", "inputs", "targets"),
    [
        ([21, 22, 23], [1, 2, 21, 22, 5], [IGNORED, 21, 22, 23, IGNORED]),
        ([21], [1, 2, 21, 0, 5], [IGNORED, 21, IGNORED, IGNORED, IGNORED]),
        ([], [1, 2, 0, 0, 5], [IGNORED] * 5),
    ],
)
def test_a_continuation_takes_the_place_of_the_text(tokens, inputs, targets):
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4, 5]]), "targets": torch.tensor([[2, 3, 4, 5, IGNORED]])}
    batch[SAMPLED] = torch.zeros(1, 5, dtype=torch.bool)
    put(batch, Gap(0, 0, 1, 3), tokens)
    assert batch["input_ids"].tolist() == [inputs]
    assert batch["targets"].tolist() == [targets]
    assert batch[SAMPLED].tolist() == [[target != IGNORED for target in targets]]


@pytest.fixture(scope="module")
def pair():
    return tuple(make("llama", seed=seed, hidden_size=16, num_hidden_layers=1, intermediate_size=32) for seed in (0, 1))


def batch_of(rows=3, length=24):
    ids = torch.randint(3, 384, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "targets": ids.roll(-1, 1)}


def test_what_the_student_writes_is_its_own_sample(pair):
    student, teacher = pair
    loss = OnPolicy(Distillation(teacher), student.train(), small_tokenizer(), prompt_tokens=4, temperature=1e-4)
    written = loss.written(batch_of())
    assert student.training
    counted = written[SAMPLED]
    assert counted.sum() > 40  # of 63; an end token ends a row early
    likeliest = student.eval()(input_ids=written["input_ids"]).logits.argmax(-1)
    assert torch.equal(likeliest[counted], written["targets"][counted])
    assert torch.equal(written["input_ids"][:, :4], batch_of()["input_ids"][:, :4])


def test_a_row_as_long_as_the_model_is_continued(pair):
    student, teacher = pair
    loss = OnPolicy(Distillation(teacher), student.train(), small_tokenizer(), prompt_tokens=250)
    counted = loss.written(batch_of(2, 256))["targets"] != IGNORED
    assert not counted[:, :249].any()
    assert counted[:, 249].all()
    assert not counted[:, 255].any()  # its target would be token 257


def test_the_sampled_text_has_no_cross_entropy(pair):
    student, teacher = pair
    batch = batch_of() | {SAMPLED: torch.ones(3, 24, dtype=torch.bool)}
    whole, shared = (Distillation(teacher, alpha=alpha)(student, batch) for alpha in (1.0, 0.25))
    torch.testing.assert_close(shared.total, 0.25 * whole.total)


def test_none_of_the_texts_is_the_loss_itself(pair):
    student, teacher = pair
    plain = Distillation(teacher, divergence="reverse")
    sampling = OnPolicy(plain, student, small_tokenizer(), share=0.0)
    assert torch.equal(sampling(student.train(), batch_of()).total, plain(student, batch_of()).total)
    full = OnPolicy(plain, student, small_tokenizer(), share=1.0)
    assert torch.equal(full(student.eval(), batch_of()).total, plain(student, batch_of()).total)  # held-out rows


SMALL: dict[str, Any] = {
    "context": 32,
    "batch": 4,
    "lr": 0.01,
    "optimizer": "adamw",
    "teacher": "teacher",
    "prompt_tokens": 4,
}


@pytest.mark.slow
def test_a_resumed_training_draws_the_same_texts(tiny_llama, tmp_path):
    class Killed(Exception):
        pass

    def train(steps, place, **more):
        stage = Distill(steps=4, on_policy=0.5, divergence="reverse", save_every=2, **SMALL, **more)
        return stage(load(tiny_llama), data=[PROSE.read_text()[:2000]], teacher=load(tiny_llama), work_dir=place)

    whole = train(4, tmp_path / "whole").module.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        count, real = [0], OnPolicy.__call__

        def dying(self, model, batch):
            count[0] += 1
            if count[0] > 3:
                raise Killed
            return real(self, model, batch)

        patch.setattr(OnPolicy, "__call__", dying)
        with pytest.raises(Killed):
            train(4, tmp_path / "again")
    again = train(4, tmp_path / "again").module.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offline": True, "divergence": "top_k"}, "asks it of other texts"),
        ({"optimizer": "pstorm"}, "on the same ones"),
        ({"sharpness": 0.5}, "on the same ones"),
        ({"prompt_tokens": 512}, "leaves nothing of a context 512"),
        ({"on_policy": 1.5}, "less than or equal to 1"),
    ],
)
def test_what_does_not_go_with_sampling_is_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Distill.parse({"on_policy": 1.0, "teacher": "t", "data": "d"} | settings, where="recipe.yaml")
