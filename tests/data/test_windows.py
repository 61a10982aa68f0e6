import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from burnish.core.errors import DataError
from burnish.data import calibration, cut, windows

TEXT = "the cat sat on the mat and the dog sat on the log, " * 40


def test_windows_are_the_text_in_order(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    tokens = windows(tokenizer, [TEXT], 16)
    assert tokens.flatten().tolist() == ids[: len(ids) // 16 * 16]


def test_max_tokens_bounds_the_windows(tokenizer):
    assert windows(tokenizer, [TEXT], 16, 50).shape == (3, 16)


def test_texts_are_laid_end_to_end_with_the_end_token_between(tokenizer):
    one, two = (tokenizer(text, add_special_tokens=False).input_ids for text in ("the cat", "the dog"))
    joined = [*one, tokenizer.eos_token_id, *two]
    assert windows(tokenizer, ["the cat", "the dog"], len(joined)).tolist() == [joined]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40))
def test_bytes_of_all_but_the_first_token_are_counted_exactly(tokenizer, text: str):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if len(ids) < 2:
        return
    whole = cut(tokenizer, [text], len(ids), num_windows=1)
    first_ends = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping[0][1]
    assert whole.num_bytes.tolist() == [len(text[first_ends:].encode())]


def test_bytes_of_all_windows_add_up_to_the_text(tokenizer):
    text = "äöü — 漢字 😀 cat " * 5
    ids = tokenizer(text, add_special_tokens=False).input_ids
    pairs = cut(tokenizer, [text], 2)
    # A window counts all tokens but its first, so windows shifted by one token count the others.
    shifted = cut(tokenizer, [text], len(ids), num_windows=1)
    assert pairs.num_bytes.sum() < shifted.num_bytes.item() <= len(text.encode())


def test_max_chars_cuts_before_tokenising(tokenizer):
    short = cut(tokenizer, [TEXT], 8, max_chars=60)
    ids = tokenizer(TEXT[:60], add_special_tokens=False).input_ids
    assert short.tokens.flatten().tolist() == ids[: len(ids) // 8 * 8]


def test_short_text_says_how_many_tokens_there_are_and_are_needed(tokenizer):
    count = len(tokenizer("the cat", add_special_tokens=False).input_ids)
    with pytest.raises(DataError, match=rf"has {count} tokens, but 2 windows of 1,024 need 2,048"):
        cut(tokenizer, ["the cat"], 1024, num_windows=2)


def test_calibration_windows_are_distinct_windows_of_the_text_in_order(tokenizer):
    numbers = [" ".join(str(n) for n in range(1000))]
    every = windows(tokenizer, numbers, 8)
    chosen = calibration(tokenizer, numbers, length=8, max_tokens=160, generator=torch.Generator().manual_seed(1))
    places = [int((every == row).all(dim=1).nonzero()[0]) for row in chosen]
    assert len(places) == 20 and places == sorted(set(places))


def test_calibration_depends_on_the_seed_only(tokenizer):
    draw = [
        calibration(tokenizer, [TEXT], length=8, max_tokens=64, generator=torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    ]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


def test_calibration_of_a_short_text_takes_all_of_it(tokenizer):
    assert torch.equal(calibration(tokenizer, [TEXT], length=8), windows(tokenizer, [TEXT], 8))


def test_fewer_calibration_tokens_than_one_window_are_refused(tokenizer):
    with pytest.raises(DataError, match="4 tokens do not fill one window of 8"):
        calibration(tokenizer, [TEXT], length=8, max_tokens=4)
