"""The stage `distill`: a student moves toward its teacher; what cannot be compared is refused."""

import json

import pytest
import torch

from burnish.core.checkpoint import load
from burnish.core.errors import SettingsError
from burnish.distill.stage import Distill

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


def test_another_vocabulary_is_refused(tiny_llama, teacher):
    teacher.module.resize_token_embeddings(400)
    with pytest.raises(SettingsError, match="vocab_size is 384 and the teacher's 400"):
        Distill(steps=1, teacher="t", **SMALL)(load(tiny_llama), data=[PROSE * 8], teacher=teacher)
