"""A teacher's logits on disk: what is kept, an interrupted capture, other data."""

import numpy as np
import pytest
import torch

from burnish.core.checkpoint import load
from burnish.core.errors import CheckpointError, SettingsError
from burnish.core.progress import Progress
from burnish.data.packing import documents, pack
from burnish.distill.offline import IDS, LOG_PROBABILITIES, capture_top_k

QUIET = Progress(enabled=False)
PROSE = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "


@pytest.fixture
def teacher(tiny_llama):
    return load(tiny_llama)


@pytest.fixture
def rows(teacher):
    return pack(documents(teacher.tokenizer, [PROSE, PROSE * 3, "Call me Ishmael."]), 24)


def test_a_batch_carries_the_likeliest_tokens_of_its_positions(teacher, rows, tmp_path):
    taught = capture_top_k(teacher.module, rows, tmp_path, identity="a", k=5, temperature=2.0, progress=QUIET)
    batch = taught.take([2, 0])
    inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
    with torch.no_grad():
        log_p = (teacher.module(**inputs, use_cache=False).logits / 2.0).log_softmax(-1)
    used = batch["targets"] != -100
    torch.testing.assert_close(batch[LOG_PROBABILITIES][used], log_p.gather(-1, batch[IDS])[used], rtol=1e-4, atol=1e-5)
    assert torch.equal(batch[LOG_PROBABILITIES], batch[LOG_PROBABILITIES].sort(-1, descending=True).values)


def same(one, other):
    return all(np.array_equal(x, y) for x, y in zip(one, other, strict=True))


def test_an_interrupted_capture_goes_on_and_ends_the_same(teacher, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("burnish.distill.offline.PART", 2)
    settings = {"identity": "a", "k": 3, "batch_size": 2, "progress": QUIET}
    whole = capture_top_k(teacher.module, rows, tmp_path / "whole", **settings)
    calls, looks = [], 2  # the first two calls find out what the head does

    def stop_at_the_third_part(*_):
        calls.append(1)
        if len(calls) == looks + 3:
            raise KeyboardInterrupt

    hook = teacher.module.register_forward_pre_hook(stop_at_the_third_part)
    with pytest.raises(KeyboardInterrupt):
        capture_top_k(teacher.module, rows, tmp_path / "cut", **settings)
    hook.remove()
    calls.clear()
    teacher.module.register_forward_pre_hook(lambda *_: calls.append(1))
    resumed = capture_top_k(teacher.module, rows, tmp_path / "cut", **settings)
    assert len(calls) == looks + -(-len(rows) // 2) - 2
    assert same(resumed.log_probabilities, whole.log_probabilities)
    assert same(resumed.ids, whole.ids)


def test_parts_give_the_batches_of_the_whole(teacher, rows, tmp_path, monkeypatch):
    settings = {"identity": "a", "k": 3, "batch_size": 1, "progress": QUIET}
    whole = capture_top_k(teacher.module, rows, tmp_path / "whole", **settings)
    order = [3, 0, 2, 1]
    expected = whole.take(order)
    monkeypatch.setattr("burnish.distill.offline.PART", 3)
    parts = capture_top_k(teacher.module, rows, tmp_path / "parts", **settings)
    assert all(torch.equal(tensor, parts.take(order)[name]) for name, tensor in expected.items())
    assert parts.num_bytes == whole.num_bytes == len(rows) * rows.length * 3 * 6


def test_another_teacher_other_data_and_other_settings_are_refused(teacher, rows, tmp_path):
    capture_top_k(teacher.module, rows, tmp_path, identity="a" * 64, k=3, progress=QUIET)
    with pytest.raises(CheckpointError, match="teacher: not the same"):
        capture_top_k(teacher.module, rows, tmp_path, identity="b" * 64, k=3, progress=QUIET)
    with pytest.raises(CheckpointError, match="top_k was 3, now 4"):
        capture_top_k(teacher.module, rows, tmp_path, identity="a" * 64, k=4, progress=QUIET)
    with pytest.raises(CheckpointError, match="rows: not the same"):
        capture_top_k(teacher.module, rows.split(1)[0], tmp_path, identity="a" * 64, k=3, progress=QUIET)


def test_more_logits_than_the_vocabulary_has_are_refused(teacher, rows, tmp_path):
    with pytest.raises(SettingsError, match="top_k is 385, but the vocabulary has 384"):
        capture_top_k(teacher.module, rows, tmp_path, identity="a", k=385, progress=QUIET)
