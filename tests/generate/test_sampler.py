"""Greedy equals transformers, log-probabilities equal a full forward pass, rows do not feel each other."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.generate import Sample, Sampling, generate
from burnish.generate.warp import drawn, warped

PROMPTS = ["The licence", "A", "You may reproduce and distribute copies of the Work", "or", "each Contributor"]


def exact(sample: Sample) -> tuple[str, list[int], str]:
    return sample.text, sample.tokens, sample.finish_reason


def test_greedy_is_what_transformers_generates(model: Any, tokenizer: Any):
    samples = generate(model, tokenizer, PROMPTS, max_new_tokens=24, temperature=0)
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        whole = model.generate(**ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        assert sample.tokens == whole[0, ids["input_ids"].shape[1] :].tolist()


def test_logprobs_are_those_of_a_full_forward_pass_under_the_same_warping(model: Any, tokenizer: Any):
    sampling = Sampling(0.8, 50, 0.9)
    samples = generate(
        model, tokenizer, PROMPTS, n=3, max_new_tokens=16, temperature=0.8, top_k=50, top_p=0.9, stop_tokens=[5, 80]
    )
    assert len(samples) == 3 * len(PROMPTS)
    for number, sample in enumerate(samples):
        ids = tokenizer(PROMPTS[number // 3])["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([ids + sample.tokens])).logits[0, len(ids) - 1 : -1]
        wanted = warped(logits, sampling).gather(-1, torch.tensor(sample.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.logprobs), wanted.float(), atol=1e-5, rtol=0)


def test_a_row_has_the_same_text_whatever_shares_its_batch(model: Any, tokenizer: Any):
    options: dict[str, Any] = {"max_new_tokens": 20, "stop_tokens": list(range(40, 60)), "n": 4}
    seeds = [11, 12, 13, 14, 15]
    together = generate(model, tokenizer, PROMPTS, seed=seeds, **options)
    small = generate(model, tokenizer, PROMPTS, seed=seeds, batch_size=3, **options)
    alone = [
        sample
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
        for sample in generate(model, tokenizer, [prompt], seed=[seed], **options)
    ]
    assert list(map(exact, together)) == list(map(exact, small)) == list(map(exact, alone))
    assert len({tuple(sample.tokens) for sample in together}) > len(together) // 2
    assert {sample.finish_reason for sample in together} == {"stop", "length"}


def test_every_prompt_can_have_a_limit_of_its_own(model: Any, tokenizer: Any):
    whole = generate(model, tokenizer, PROMPTS, max_new_tokens=12, temperature=0)
    limits = [3 + 4 * (number % 2) for number in range(len(PROMPTS))]
    found = generate(model, tokenizer, PROMPTS, max_new_tokens=limits, temperature=0)
    assert [s.tokens for s in found] == [s.tokens[:limit] for s, limit in zip(whole, limits, strict=True)]


def test_another_seed_is_another_text(model: Any, tokenizer: Any):
    one, other = (generate(model, tokenizer, ["A"], max_new_tokens=20, seed=seed)[0] for seed in (0, 1))
    assert one.tokens != other.tokens


def test_finished_rows_leave_the_batch(model: Any, tokenizer: Any):
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    samples = generate(model, tokenizer, ["A"], n=16, max_new_tokens=20, stop_tokens=list(range(60)))
    hook.remove()
    lengths = [len(sample.tokens) for sample in samples]
    assert sizes == [1, *(sum(length > step for length in lengths) for step in range(1, max(lengths)))]
    assert sizes[-1] < 16


def test_a_stop_string_ends_the_text_before_it(model: Any, tokenizer: Any):
    (whole,) = generate(model, tokenizer, ["A"], max_new_tokens=24, seed=3)
    word = whole.text[6:8]
    (cut,) = generate(model, tokenizer, ["A"], max_new_tokens=24, seed=3, stop=["never to be seen", word])
    assert cut.text == whole.text[: whole.text.index(word)]
    assert cut.finish_reason == "stop"
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    assert len(cut.tokens) == len(cut.logprobs) <= 24


def test_tokens_are_drawn_with_their_probabilities():
    sampling = Sampling(temperature=0.5)
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 0.5]])
    logprobs = warped(logits, sampling)
    torch.testing.assert_close(logprobs.exp(), (2 * logits).softmax(-1))
    grid = [(2 * i + 1) / 20_000 for i in range(10_000)]
    counts = Counter(drawn(logprobs.expand(10_000, 4), grid, sampling).tolist())
    for token, share in enumerate(logprobs.exp()[0].tolist()):
        assert abs(counts[token] / 10_000 - share) <= 1e-4
    assert drawn(torch.tensor([[0.0, -math.inf]]), [1 - 2**-53], sampling).tolist() == [0]


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    assert warped(logits, Sampling(top_k=2)).isfinite().tolist() == [[False, True, False, True]]
    assert warped(logits, Sampling(top_p=0.6)).isfinite().tolist() == [[False, True, False, True]]
    assert warped(logits, Sampling(top_p=0.75)).isfinite().tolist() == [[False, True, True, True]]
    assert warped(logits, Sampling(top_p=1e-9)).isfinite().sum() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n: is 0"),
        ({"max_new_tokens": [4, 4]}, "max_new_tokens: has 2 entries for 1 prompts"),
        ({"max_new_tokens": 500}, "prompt 1: has 1 tokens, and with 500 new ones passes the 256"),
        ({"prompts": [[]]}, "prompt 1: has no token"),
        ({"temperature": -1.0}, "temperature: is -1"),
        ({"top_p": 0.0}, "top_p: is 0"),
        ({"top_k": -1}, "top_k: is -1"),
        ({"stop": [""]}, "stop: is no list"),
        ({"seed": [1, 2]}, "seed: has 2 entries for 1 prompts"),
    ],
)
def test_impossible_settings_are_refused(model: Any, tokenizer: Any, changes: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        generate(model, tokenizer, **{"prompts": [[1]], "max_new_tokens": 4} | changes)
