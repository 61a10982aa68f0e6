"""The stage `distill`: a student moves toward its teacher; what cannot be compared is refused."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from burnish.core.checkpoint import Model, load
from burnish.core.errors import CheckpointError, SettingsError
from burnish.distill.stage import Distill
from small_models import make

PROSE = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "
SMALL = {"context": 32, "batch": 4, "lr": 0.01, "optimizer": "adamw"}


@pytest.fixture
def teacher(tiny_llama):
    """The student's own start, disturbed."""
    model = load(tiny_llama)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("divergence", ["forward", "top_k"])
def test_the_student_moves_toward_the_teacher(tiny_llama, teacher, tmp_path, divergence):
    before = {name: tensor.clone() for name, tensor in teacher.module.state_dict().items()}
    stage = Distill(steps=30, alpha=1.0, divergence=divergence, teacher="teacher", **SMALL)
    stage(load(tiny_llama), data=[PROSE * 8], teacher=teacher, work_dir=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]  # a fifth in 30 steps, on the loss of one batch
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.module.state_dict().items())


def test_a_plan_without_a_teacher_is_refused(tiny_llama):
    with pytest.raises(SettingsError, match="no teacher is named"):
        Distill(data="text.txt").plan(load(tiny_llama).plan())


@pytest.mark.parametrize("padded", ["teacher", "student"])
@pytest.mark.parametrize("offline", [False, True])
def test_rows_beyond_the_last_token_are_no_part_of_the_divergence(tiny_llama, teacher, tmp_path, padded, offline):
    """As between the sizes of one family that pad their embeddings to other multiples."""
    stage = Distill(steps=1, alpha=1.0, divergence="top_k", offline=offline, teacher="t", **SMALL)
    stage(load(tiny_llama), data=[PROSE * 8], teacher=teacher, work_dir=tmp_path / "alike")
    student = load(tiny_llama)
    with_rows = teacher if padded == "teacher" else student
    with_rows.module.resize_token_embeddings(400)
    torch.nn.init.normal_(with_rows.module.get_output_embeddings().weight[384:], std=3.0)
    stage(student, data=[PROSE * 8], teacher=teacher, work_dir=tmp_path / "padded")
    assert losses(tmp_path / "padded") == pytest.approx(losses(tmp_path / "alike"), rel=1e-5)


def test_a_teacher_that_numbers_its_tokens_differently_is_refused(tiny_llama, teacher):
    vocabulary = teacher.tokenizer.get_vocab()
    first, second = sorted(vocabulary, key=vocabulary.get)[40:42]
    whole = json.loads(teacher.tokenizer.backend_tokenizer.to_str())
    numbers = whole["model"]["vocab"]
    numbers[first], numbers[second] = numbers[second], numbers[first]
    teacher.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(whole)))
    with pytest.raises(CheckpointError, match="the model has it at 40, the teacher has it at 41"):
        Distill(steps=1, teacher="t", **SMALL)(load(tiny_llama), data=[PROSE * 8], teacher=teacher)


def test_a_teacher_with_fewer_rows_than_tokens_is_refused(tiny_llama, teacher):
    teacher.module.resize_token_embeddings(380)
    with pytest.raises(CheckpointError, match=r"vocabulary of 384 and the teacher one of 380, .* makes 384 tokens"):
        Distill(steps=1, teacher="t", **SMALL)(load(tiny_llama), data=[PROSE * 8], teacher=teacher)


def small(hidden_size, num_layers, seed):
    shape = {"hidden_size": hidden_size, "num_hidden_layers": num_layers, "intermediate_size": 32}
    return make("llama", seed=seed, num_attention_heads=2, num_key_value_heads=1, **shape)


def losses(place):
    return [json.loads(line)["loss"] for line in (place / "metrics.jsonl").read_text().splitlines()]


def test_states_of_other_sizes_are_matched_through_projections_that_learn(tiny_llama, tmp_path):
    tokenizer = load(tiny_llama).tokenizer
    student = Model(module=small(16, 2, 0), tokenizer=tokenizer)
    teacher = Model(module=small(24, 4, 1), tokenizer=tokenizer)
    stage = Distill(steps=40, alpha=0.0, hidden=1.0, teacher="teacher", **SMALL)
    trained = stage(student, data=[PROSE * 8], teacher=teacher, work_dir=tmp_path)
    found = losses(tmp_path)
    assert found[-1] < 0.75 * found[0]
    assert set(trained.module.state_dict()) == set(student.module.state_dict())  # a stock checkpoint again


def test_logits_on_disk_train_as_the_teacher_does(tiny_llama, teacher, tmp_path):
    settings = SMALL | {"steps": 8, "divergence": "top_k", "top_k": 4, "temperature": 2.0, "teacher": "teacher"}
    online, offline = (
        Distill(offline=flag, **settings)(
            load(tiny_llama), data=[PROSE * 8], teacher=teacher, work_dir=tmp_path / str(flag)
        ).module.state_dict()
        for flag in (False, True)
    )
    for name, tensor in online.items():
        torch.testing.assert_close(offline[name], tensor, rtol=1e-3, atol=1e-4)  # products of other shapes
    (part,) = (tmp_path / "True" / "teacher-data").iterdir()
    positions = 32 * len(np.load(part / "ids.npy"))
    size = sum((part / name).stat().st_size for name in ("ids.npy", "log_probabilities.npy"))
    assert size == positions * 4 * 6 + 2 * 128  # and a header per file


@pytest.mark.parametrize("offline", [False, True])
def test_another_teacher_in_the_same_place_is_refused(tiny_llama, teacher, tmp_path, offline):
    settings = SMALL | {"steps": 4, "divergence": "top_k", "teacher": "teacher", "offline": offline, "save_every": 2}
    Distill(**settings)(load(tiny_llama), data=[PROSE * 8], teacher=teacher, work_dir=tmp_path)
    with torch.no_grad():
        teacher.module.lm_head.weight.mul_(2)
    with pytest.raises(CheckpointError, match="teacher: not the same"):
        Distill(**settings)(load(tiny_llama), data=[PROSE * 8], teacher=teacher, work_dir=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs them all"),
        ({"divergence": "top_k", "hidden": 1.0}, "hidden needs the teacher itself"),
        ({"divergence": "top_k", "weighting": "certain"}, "weighting certain needs the teacher itself"),
    ],
)
def test_what_logits_on_disk_do_not_hold_is_refused(settings, message):
    with pytest.raises(SettingsError, match=message):
        Distill.parse({"offline": True, "teacher": "t", "data": "d"} | settings, where="recipe.yaml")


def test_routers_of_a_dense_model_are_refused(tiny_llama, teacher):
    with pytest.raises(SettingsError, match="the student has 0 experts"):
        Distill(steps=1, router=1.0, teacher="t", **SMALL)(load(tiny_llama), data=[PROSE * 8], teacher=teacher)
