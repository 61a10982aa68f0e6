"""The controller of proposals, against the best that could have been chosen in advance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from burnish.core.errors import SettingsError
from burnish.serve.speculate.controller import SpeculationController, best_length, tokens_of_a_cycle

LONGEST = 8
PROPOSING = {
    "trie": [0.0] + [0.001] * LONGEST,
    "ngram": [0.0] + [0.001] * LONGEST,
    "draft": [0.06 * length for length in range(LONGEST + 1)],
}
FREE = ("trie", "ngram")
BFLOAT16 = [1 + 0.0125 * length for length in range(LONGEST + 1)]
PACKED = [1 + 0.1375 * length for length in range(LONGEST + 1)]  # 2.1 for nine tokens
Shares = dict[str, float]
TRACES: dict[str, Shares] = {
    "copying": {"trie": 0.85, "ngram": 0.7, "draft": 0.5},
    "chat": {"trie": 0.2, "ngram": 0.15, "draft": 0.6},
    "close": {"trie": 0.62, "ngram": 0.6, "draft": 0.7},
    "nothing": {"trie": 0.01, "ngram": 0.01, "draft": 0.02},
}


def came(draw: random.Random, share: float, length: int) -> list[bool]:
    """Of so many tokens, each right with this probability: those up to the first wrong one."""
    found: list[bool] = []
    while len(found) < length and all(found):
        found.append(draw.random() < share)
    return found


def run(shares: Callable[[int], Shares], verifying: Sequence[float], cycles: int, seed: int) -> tuple[float, list[Any]]:
    """Tokens for each unit of price, and what was chosen."""
    controller, draw = SpeculationController(PROPOSING, verifying), random.Random(seed)
    tokens = price = 0.0
    choices = []
    for cycle in range(cycles):
        choice = controller.choose()
        own = shares(cycle)
        seen = {choice.proposer: came(draw, own[choice.proposer], choice.length)} if choice.proposer else {}
        num = sum(next(iter(seen.values()), []))
        # The others who cost nothing are compared with the tokens that came.
        seen |= {name: came(draw, own[name], min(1 + num, LONGEST)) for name in FREE if name != choice.proposer}
        controller.learn(seen)
        tokens += 1 + num
        price += verifying[choice.length] + (PROPOSING[choice.proposer][choice.length] if choice.proposer else 0.0)
        choices.append(choice)
    return tokens / price, choices


def best(shares: Shares, verifying: Sequence[float]) -> tuple[float, str | None]:
    """The best fixed choice, and whose."""
    rates = {name: best_length([shares[name]] * LONGEST, PROPOSING[name], verifying)[0] for name in PROPOSING}
    name = max(rates, key=lambda one: rates[one])
    return (rates[name], name) if rates[name] > 1 / verifying[0] else (1 / verifying[0], None)


def test_tokens_of_a_cycle_are_a_sum_of_products():
    assert tokens_of_a_cycle([0.5, 0.5, 1.0], 3) == pytest.approx(1 + 0.5 + 0.25 + 0.25)
    assert tokens_of_a_cycle([0.5], 0) == 1


def test_a_dearer_pass_makes_proposals_shorter():
    cheap = best_length([0.7] * LONGEST, PROPOSING["trie"], BFLOAT16)
    dear = best_length([0.7] * LONGEST, PROPOSING["trie"], PACKED)
    assert cheap[1] == LONGEST and dear[1] < 4 and dear[0] < cheap[0]


@pytest.mark.parametrize("verifying", [BFLOAT16, PACKED], ids=["bfloat16", "packed"])
@pytest.mark.parametrize("trace", TRACES)
def test_regret_is_at_most_three_percent(trace: str, verifying: list[float]):
    """Of 4,000 cycles, the first ones included, over five draws."""
    rates = [run(lambda cycle: TRACES[trace], verifying, 4000, seed)[0] for seed in range(5)]
    wanted, _ = best(TRACES[trace], verifying)
    assert sum(rates) / len(rates) >= 0.97 * wanted


@pytest.mark.parametrize("verifying", [BFLOAT16, PACKED], ids=["bfloat16", "packed"])
def test_where_nothing_is_right_it_is_never_much_slower_than_no_proposals(verifying: list[float]):
    for seed in range(5):
        rate, choices = run(lambda cycle: TRACES["nothing"], verifying, 4000, seed)
        assert rate >= 0.97 / verifying[0]
        assert sum(choice.proposer is None for choice in choices) > 0.8 * len(choices)


@pytest.mark.parametrize(("before", "after"), [("copying", "chat"), ("chat", "copying"), ("nothing", "copying")])
def test_it_switches_within_two_hundred_cycles(before: str, after: str):
    _, wanted = best(TRACES[after], BFLOAT16)
    for seed in range(10):
        _, choices = run(lambda cycle: TRACES[before if cycle < 1000 else after], BFLOAT16, 1500, seed)
        late = [choice.proposer for choice in choices[1200:1400]]
        assert late.count(wanted) > 0.8 * len(late), seed


def test_a_single_proposer_that_pays_is_always_asked():
    controller = SpeculationController({"trie": PROPOSING["trie"]}, BFLOAT16)
    for _ in range(500):
        choice = controller.choose()
        assert choice.proposer == "trie"
        controller.learn({"trie": [True] * choice.length})
    assert choice.length == LONGEST


def test_nobody_learns_from_a_cycle_without_proposals():
    controller = SpeculationController(PROPOSING, BFLOAT16)
    before = {name: controller.acceptance(name) for name in PROPOSING}
    controller.learn({})
    assert {name: controller.acceptance(name) for name in PROPOSING} == before


@pytest.mark.parametrize(
    ("proposing", "verifying", "told"),
    [
        ({}, [1, 1], "names nobody"),
        ({"a": [0.0]}, [1.0, 1.0], "has 1 prices"),
        ({"a": [0.0, 0.1, 0.2]}, [1.0, 1.0], "has 3 prices"),
        ({"a": [0.0, -1.0]}, [1.0, 1.0], "price -1"),
        ({"a": [0.0, 1.0]}, [0.0, 1.0], "price 0"),
    ],
)
def test_prices_that_cannot_be_are_refused(proposing: dict[str, Any], verifying: list[float], told: str):
    with pytest.raises(SettingsError, match=told):
        SpeculationController(proposing, verifying)
