"""Rows hold every document exactly once, and documents do not see each other."""

import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.arch.attention import use
from burnish.core.errors import DataError
from burnish.data.packing import IGNORED, MARKS, Document, PackedRows, documents, pack
from burnish.train.scratch import learn_tokenizer
from small_models import make

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. " * 5


def numbered(sizes):
    """Documents whose tokens are all different, so that a pair can be traced."""
    starts = np.cumsum([0, *sizes])
    return [
        Document(np.arange(start, start + size), np.ones(size, dtype=bool))
        for start, size in zip(starts, sizes, strict=False)
    ]


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=20), length=st.integers(1, 24))
def test_every_pair_of_token_and_next_token_is_there_exactly_once(sizes, length):
    rows = pack(numbered(sizes), length)
    there = rows.targets != IGNORED
    assert sorted(rows.input_ids[there].tolist()) == sorted(
        token for document in numbered(sizes) for token in document.tokens[:-1].tolist()
    )
    assert (rows.targets[there] == rows.input_ids[there] + 1).all()


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=20), length=st.integers(1, 24))
def test_positions_count_from_zero_in_every_piece(sizes, length):
    rows = pack(numbered(sizes), length)
    for row in range(len(rows)):
        used = rows.used[row]
        restarts = np.flatnonzero(rows.position_ids[row, :used] == 0)
        steps = np.diff(rows.input_ids[row, :used])
        assert set(np.flatnonzero(steps != 1) + 1) <= set(restarts)
        assert rows.apart[row] == (len(restarts) > 1)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(2, 40), min_size=1, max_size=20), length=st.integers(1, 24))
def test_rows_on_disk_are_those_in_memory(sizes, length):
    with tempfile.TemporaryDirectory() as place:
        expected = pack(numbered(sizes), length, padding=3)
        found = pack(numbered(sizes), length, padding=3, directory=Path(place))
        for rows in (found, PackedRows.mapped(Path(place))):
            assert rows.hash == expected.hash and rows.num_targets == expected.num_targets
            every, (first, last) = range(len(rows)), rows.split(1)
            assert len(first) == len(rows) - 1 and len(last) == 1
            for name, tensor in expected.take(every).items():
                assert torch.equal(rows.take(every)[name], tensor)
        written = {field.name for field in fields(PackedRows)} - MARKS.keys()
        assert {path.name for path in Path(place).iterdir()} == {f"{name}.npy" for name in written}


def test_texts_are_cut_and_chats_refused_where_nothing_else_is_said():
    (text,) = numbered([20])
    assert pack([text], 8, overlong="auto").num_targets == 19
    with pytest.raises(DataError, match="document 2 has 20 tokens"):
        pack([text, replace(text, is_chat=True)], 8, overlong="auto")


def test_best_fit_fills_rows():
    # 7 + 1, 5 + 3 and 6 + 2 pairs fit three rows of 8 exactly; in order of appearance they would need four.
    assert len(pack(numbered([8, 6, 7, 3, 4, 2]), 8)) == 3


@pytest.mark.parametrize("overlong, targets", [("split", 19), ("truncate", 8), ("drop", 0)])
def test_documents_longer_than_the_context(overlong, targets):
    short = 4
    assert pack(numbered([20, short + 1]), 8, overlong=overlong).num_targets == targets + short


def test_an_overlong_document_can_be_refused():
    with pytest.raises(DataError, match=r"document 2 has 20 tokens, but the context is 8; raise the context"):
        pack(numbered([5, 20]), 8, overlong="refuse")


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="holds nothing to train on"):
        pack([Document(np.array([1]), np.array([True]))], 8)


def test_texts_end_with_the_end_of_text_token():
    tokenizer = learn_tokenizer([TEXT], 280)
    first, second = documents(tokenizer, ["a fox", "a dog"])
    assert first.tokens[-1] == second.tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(first.tokens[:-1]) == "a fox"


def test_padding_at_the_end_is_cut_off_the_batch():
    rows = pack(numbered([4, 9]), 16)
    assert rows.take([0])["input_ids"].shape == (1, 11)


def test_rows_of_one_document_need_no_position_ids():
    rows = pack(numbered([17, 9, 5]), 16)
    assert "position_ids" not in rows.take([0]) and "position_ids" in rows.take([0, 1])


MODELS = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {},
    "mixtral": {},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", MODELS)
def test_packed_documents_are_computed_as_if_alone(kind, attention, all_float64):
    model = make(kind, dtype=torch.float64, vocab_size=60, **MODELS[kind])
    use(model, attention)
    found = numbered([10, 8, 7, 14])
    batch = (rows := pack(found, 16)).take(range(len(rows)))
    with torch.no_grad():
        packed = model(**{key: batch[key] for key in ("input_ids", "position_ids")}, use_cache=False).logits
        for document in found:
            alone = model(torch.tensor(document.tokens[None, :-1]), use_cache=False).logits[0]
            row, start = (batch["input_ids"] == int(document.tokens[0])).nonzero()[0].tolist()
            torch.testing.assert_close(packed[row, start : start + len(alone)], alone, rtol=0, atol=1e-10)


def test_rows_that_follow_others_are_as_they_were_and_marks_are_there_for_all():
    sizes = [6, 9, 4]
    plain = pack(numbered(sizes), 8)
    weights = np.full(plain.targets.shape, 0.5, dtype=np.float32)
    both = plain.followed_by(replace(plain, weights=weights).chosen([1, 0, 1]))
    assert len(both) == len(plain) + 3
    last = len(plain)
    for place, row in ((0, 0), (last, 1), (last + 1, 0), (last + 2, 1)):
        for name in ("input_ids", "targets", "position_ids", "used", "apart"):
            assert np.array_equal(getattr(both, name)[place], getattr(plain, name)[row]), name
    assert both.weights is not None and both.kinds is None
    assert (both.weights[:last] == 1).all() and (both.weights[last:] == 0.5).all()
