"""Trees of tokens: their logits are those of their branches, and texts stay what they are, drawn ones as well."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from burnish.core.errors import SettingsError
from burnish.generate import generate
from burnish.generate.cache import RoomyLayer, roomy
from burnish.generate.speculation import check_trees, read_tree, sight
from burnish.serve.speculate import Draft, Lookahead
from joining import joined
from small_models import make, small_llama

PROMPTS = ["The licence", "You may reproduce and distribute copies of the Work"]


class Guess:
    """Proposes trees that hold some of the tokens which come, and others, in an order that is drawn.

    Attributes:
        drafts: how often it was asked.
        most: tokens that it was told not to pass.
    """

    def __init__(self, coming: Sequence[int] = (), vocabulary: int = 384, seed: int = 0) -> None:
        self.coming, self.vocabulary, self.draw = coming, vocabulary, random.Random(seed)
        self.drafts, self.most, self.said = 0, list[int](), list[int]()

    def begin(self, prompt: Sequence[int]) -> Guess:
        self.said = []
        return self

    def extend(self, tokens: Sequence[int]) -> None:
        self.said += tokens

    def draft(self, most: int | None = None) -> Draft:
        assert most is not None
        self.drafts += 1
        self.most.append(most)
        draft, place = Draft(), -1
        right = self.coming[len(self.said) :][: self.draw.randrange(5)]
        for token in right:
            for wrong in self.draw.sample(range(self.vocabulary), 2):
                self._add(draft, wrong, place)
            place = self._add(draft, token, place)
        return Draft(draft.tokens[:most], draft.parents[:most])

    def _add(self, draft: Draft, token: int, parent: int) -> int:
        draft.tokens.append(token)
        draft.parents.append(parent)
        return len(draft) - 1

    def end(self) -> None:
        self.said = []


def test_every_token_of_a_tree_sees_its_branch():
    assert sight([-1, 0, -1, 2, 0]).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


@torch.inference_mode()
def test_logits_of_a_tree_are_those_of_its_branches_and_the_cache_keeps_the_path(model: Any):
    draw, text = random.Random(0), [5, 9, 200, 31]
    parents = [draw.randrange(-1, place) for place in range(12)]
    draft = Draft(draw.sample(range(384), 12), parents)
    cache = roomy(model.config)
    model(input_ids=torch.tensor([text[:-1]]), past_key_values=cache, use_cache=True)
    found = read_tree(model, text[-1], draft, torch.ones(3), 3, cache)
    branches = []
    for place in range(12):
        branch, at = [], place
        while at >= 0:
            branch.insert(0, at)
            at = parents[at]
        branches.append(branch)
        whole = torch.tensor([text + [draft.tokens[one] for one in branch]])
        torch.testing.assert_close(found.logits[place + 1], model(whole).logits[0, -1], atol=1e-9, rtol=0)
    longest = max(branches, key=len)
    for place in longest:
        logits = found.follow(draft.tokens[place])
        assert logits is not None
        assert torch.equal(logits[0], found.logits[place + 1])
    assert found.follow(383 if 383 not in draft.tokens else 0) is None
    assert found.keep(cache) == len(longest)
    said = [draft.tokens[place] for place in longest]
    whole = model(torch.tensor([[*text, *said, 7]])).logits[0, -1]
    after = model(input_ids=torch.tensor([[7]]), past_key_values=cache, use_cache=True).logits[0, -1]
    torch.testing.assert_close(after, whole, atol=1e-9, rtol=0)


def test_columns_that_are_not_kept_are_gone():
    layer = RoomyLayer()
    states = torch.arange(7.0).reshape(1, 1, 7, 1)
    layer.update(states, states)
    layer.keep_columns(2, torch.tensor([0, 3, 4]))
    assert layer.keys is not None
    assert layer.keys.flatten().tolist() == [0, 1, 2, 5, 6]
    layer.keep_columns(3, torch.tensor([], dtype=torch.long))
    assert layer.get_seq_length() == 3
    assert layer.update(states[:, :, :1], states[:, :, :1])[0].flatten().tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("seed", range(3))
def test_greedy_and_drawn_texts_are_the_same_in_fewer_passes(model: Any, tokenizer: Any, seed: int):
    for options in ({"temperature": 0}, {"temperature": 0.7, "top_k": 30, "n": 2}):
        settings: dict[str, Any] = {"max_new_tokens": 24, "seed": seed, **options}
        for prompt in PROMPTS:
            plain = generate(model, tokenizer, [prompt], **settings)
            guess = Guess(plain[0].tokens, seed=seed)
            found = generate(model, tokenizer, [prompt], speculate=guess, **settings)
            assert [one.tokens for one in found] == [one.tokens for one in plain]
            assert [one.text for one in found] == [one.text for one in plain]
            for one, other in zip(found, plain, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-6)
            if len(found) == 1:
                assert guess.drafts < len(plain[0].tokens) - 1
            assert all(0 <= most < 24 for most in guess.most)


def test_a_memory_saves_passes_and_the_second_request_takes_few(model: Any, tokenizer: Any):
    memory, used = Lookahead(length=8), []
    plain = generate(model, tokenizer, PROMPTS[:1], max_new_tokens=40, temperature=0)[0]
    for _ in range(2):
        before = memory.counts.drafts
        (found,) = generate(model, tokenizer, PROMPTS[:1], max_new_tokens=40, temperature=0, speculate=memory)
        assert found.tokens == plain.tokens
        used.append(memory.counts.drafts - before)
    assert used[0] <= 39
    assert used[1] <= 5  # of nine tokens each
    assert memory.counts.tokens == 78
    assert memory.counts.saved == 78 - sum(used)


def test_a_row_that_joins_ends_a_tree_and_both_texts_stay(model: Any, tokenizer: Any):
    prompts = [list(tokenizer(one)["input_ids"]) for one in PROMPTS]
    alone = [generate(model, tokenizer, [one], max_new_tokens=20, temperature=0)[0].tokens for one in prompts]
    for before in (1, 2, 5, 9):
        guess = Guess(alone[0], seed=before)
        assert joined(model, tokenizer, guess, prompts, after=before, num=20) == alone
        assert 0 in guess.most  # while there were two


def exact_law(model: Any, prompt: list[int], num: int) -> dict[tuple[int, ...], float]:
    """Of the next tokens, where 0 ends a text."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(num):
        longer: dict[tuple[int, ...], float] = {}
        for said, share in law.items():
            if said and said[-1] == 0:
                longer[said] = share
                continue
            next_one = model(torch.tensor([[*prompt, *said]])).logits[0, -1].double().softmax(-1)
            longer |= {(*said, token): share * float(one) for token, one in enumerate(next_one)}
        law = longer
    return law


@torch.inference_mode()
def test_the_law_of_drawn_texts_is_that_of_the_model(tokenizer: Any):
    """Three tokens of a vocabulary of four, against their exact probabilities; another law is told from it."""
    small = small_llama(vocab_size=4, initializer_range=0.6, num_hidden_layers=1)
    prompt, num = [1, 2, 3], 500
    wanted = exact_law(small, prompt, 3)
    memory = Lookahead()
    drawn = generate(small, tokenizer, [prompt] * num, max_new_tokens=3, seed=3, speculate=memory)
    assert memory.counts.saved > 30  # third tokens that were drawn from a tree's logits
    found = Counter(tuple(one.tokens) for one in drawn)
    assert found.keys() <= wanted.keys()
    common = [outcome for outcome, share in wanted.items() if share * num >= 5]

    def likely(law: dict[tuple[int, ...], float]) -> float:
        counts, expected = [found[one] for one in common], [law[one] * num for one in common]
        return float(chisquare([*counts, num - sum(counts)], [*expected, num - sum(expected)]).pvalue)

    assert likely(wanted) > 0.001
    flat = dict.fromkeys(wanted, 0.9 / len(wanted))
    assert likely(flat) < 1e-6


def test_models_that_cannot_take_tokens_back_are_refused(tokenizer: Any):
    for name in ("qwen3_5_text", "gpt_oss"):
        model = make(name)
        with pytest.raises(SettingsError, match="cannot be taken out of"):
            generate(model, tokenizer, [[1, 2]], max_new_tokens=2, speculate=Lookahead())


def test_a_model_that_makes_its_own_positions_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = small_llama()
    check_trees(model)
    forward = model.forward

    def blind(*args: Any, position_ids: Any = None, **options: Any) -> Any:
        return forward(*args, **options)

    monkeypatch.setattr(model, "forward", blind)
    with pytest.raises(SettingsError, match="in another way than its branches"):
        check_trees(model)
