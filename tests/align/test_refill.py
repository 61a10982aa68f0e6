"""Dynamic sampling: which problems are asked in the places of others, and what counts as a group without variance."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.align.refill import others
from burnish.align.replay import KeptGroup


@given(
    prompts=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    asked=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_every_problem_comes_once_before_any_comes_again_and_those_asked_come_last(
    prompts: list[int], asked: int, seed: int
) -> None:
    rows = [{"prompt": number, "place": place} for place, number in enumerate(prompts)]
    first = list(dict.fromkeys(prompts))[:asked]
    distinct = len(set(prompts))
    drawn = others(rows, [str(one) for one in first], seed)
    found = [next(drawn)["prompt"] for _ in range(3 * distinct)]
    assert set(found[:distinct]) == set(prompts)
    assert set(found[distinct - len(first) : distinct]) == set(first)
    assert sorted(found[distinct : 2 * distinct]) == sorted(found[:distinct])
    again = others(rows, [str(one) for one in first], seed)
    assert found == [next(again)["prompt"] for _ in range(3 * distinct)]


def test_what_a_mean_of_equal_rewards_leaves_by_rounding_is_no_variance() -> None:
    reward = torch.full((6,), 0.3)
    left = reward - reward.mean()
    assert 0 < float(left.abs().max()) < 1e-6
    assert KeptGroup(0, [{"advantages": one} for one in left]).pull == 0.0
