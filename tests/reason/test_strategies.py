"""Strategies equal what their definitions say, on a model whose every answer follows from what it is shown."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.core.errors import SettingsError
from burnish.reason import Endpoint, Result, strategy
from burnish.reason.calls import Reply, Usage
from burnish.reason.confidence import peakedness
from burnish.reason.strategies.routed_rsa import routed
from exact_server import Chain, ExactServer, InProcess, candidates, majority
from reason_runs import run

NOWHERE = "http://127.0.0.1:1/v1"


def answers(found: dict[str, Result]) -> list[str | None]:
    return [result.answer for result in found.values()]


def chain_means(n: int, k: int, loops: int, rule: Chain) -> list[float]:
    """Mean accuracy of each population: the count of right members is a Markov chain with binomial steps."""

    def step(law: np.ndarray, right: list[float]) -> np.ndarray:
        pmf = [[math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)] for p in right]
        return law @ np.array(pmf)

    law = step(np.ones(1), [rule.first])
    hit = [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)]
    right = [rule.any_right * h + rule.none * (1 - h) for h in hit]
    means = [float(law @ np.arange(n + 1)) / n]
    for _ in range(loops - 1):
        law = step(law, right)
        means.append(float(law @ np.arange(n + 1)) / n)
    return means


def test_the_chain_of_the_reference_values():
    expected = [0.3, 0.6959, 0.8780, 0.8974, 0.8991, 0.8996]
    assert chain_means(16, 4, 6, Chain()) == pytest.approx(expected, abs=2e-4)


def rsa_means(directory: Path, n: int, k: int, loops: int, num: int) -> np.ndarray:
    found = run(directory, [f"rsa(n={n},k={k},loops={loops})"], num, concurrency=512)
    right = [[[text.endswith(" 1") for text in loop] for loop in one.loops] for one in found.values()]
    return np.array(right, dtype=np.float64).mean(2)


@pytest.mark.slow
def test_rsa_follows_the_markov_chain(tmp_path: Path):
    means = rsa_means(tmp_path, 6, 2, 4, 400)
    error = means.std(0, ddof=1) / math.sqrt(len(means))
    assert np.all(np.abs(means.mean(0) - chain_means(6, 2, 4, Chain())) < 3 * error)


@pytest.mark.slow
@pytest.mark.long
def test_rsa_of_the_reference_size_follows_the_markov_chain(tmp_path: Path):
    means = rsa_means(tmp_path, 16, 4, 6, 400)
    error = means.std(0, ddof=1) / math.sqrt(len(means))
    assert np.all(np.abs(means.mean(0) - chain_means(16, 4, 6, Chain())) < 3 * error)


@pytest.mark.parametrize(
    ("spec", "calls"),
    [
        ("direct", 1),
        ("self-consistency:7", 7),
        ("gsa:0", 1),
        ("gsa:4", 5),
        ("rsa(n=4,k=2,loops=3)", 12),
        ("rsa(n=3,k=1,loops=1)", 3),
        ("self-refine(loops=3)", 3),
        ("universal-self-consistency:5", 6),
        ("routed-rsa(models=exact,n=4,k=2,loops=3,fitness=diversity)", 12),
    ],
)
def test_a_strategy_makes_exactly_so_many_calls(tmp_path: Path, spec: str, calls: int):
    transport = InProcess()
    (result,) = run(tmp_path, [spec], transport=transport).values()
    assert len(transport.bodies) == result.used["exact"].calls == calls


def test_gsa_shows_every_candidate_once_after_the_task(tmp_path: Path):
    transport = InProcess(lambda model, messages, draw: f"Final answer: {draw.random()}")
    (result,) = run(tmp_path, ["gsa:4"], transport=transport).values()
    last = transport.bodies[-1]["messages"]
    shown = candidates(last)
    assert last[0]["content"].startswith("What is the answer to problem p0?")
    assert sorted(shown) == sorted(text.removeprefix("Final answer: ") for text in result.loops[0])


def test_gsa_by_a_model_that_returns_the_majority_is_self_consistency(tmp_path: Path):
    found = run(tmp_path, ["gsa(n=5)", "self-consistency:5"], 40, transport=InProcess(majority))
    counts = [list(one.loops[0]) for one in found.values()]
    pairs = list(zip(answers(found)[::2], answers(found)[1::2], counts[::2], strict=True))
    clear = [
        (a, b) for a, b, texts in pairs if sorted(map(texts.count, set(texts)))[-2:-1] != [max(map(texts.count, texts))]
    ]
    assert len(clear) > 20
    assert all(a == b for a, b in clear)  # ties are broken by the order of slots, and by the order that GSA draws


def test_a_consensus_saves_exactly_one_call(tmp_path: Path):
    transport = InProcess(Chain(first=1.0))
    run(tmp_path, ["gsa(n=3,shortcut=consensus)"], transport=transport)
    assert len(transport.bodies) == 3


def test_an_early_vote_has_the_outcome_of_all_and_asks_for_fewer(tmp_path: Path):
    rule = Chain(first=0.8)
    found = run(tmp_path, ["self-consistency(n=12)", "self-consistency(n=12,early=2)"], 30, transport=InProcess(rule))
    results = list(found.values())
    assert answers(found)[::2] == answers(found)[1::2]
    assert sum(one.used["exact"].calls for one in results[1::2]) < 30 * 12


def test_a_self_refinement_is_rsa_of_one_member(tmp_path: Path):
    found = run(tmp_path, ["rsa(n=1,k=1,loops=3)"], transport=InProcess(), seed=3)
    (result,) = found.values()
    assert [len(loop) for loop in result.loops] == [1, 1, 1]


def two(**sampling: Any) -> list[Endpoint]:
    return [Endpoint(NOWHERE, name, sampling=sampling) for name in ("cheap", "strong")]


def test_routed_rsa_that_sends_all_to_the_strong_model_asks_it_alone(tmp_path: Path):
    transport = InProcess()
    spec = "routed-rsa(models=cheap+strong,percentiles=100,n=4,k=2,loops=3,fitness=logprob)"
    run(tmp_path, [spec], 2, transport=transport, endpoints=two(logprobs=True, top_logprobs=3))
    assert {body["model"] for body in transport.bodies} == {"strong"}


def test_routed_rsa_that_sends_nothing_to_the_strong_model_begins_with_it(tmp_path: Path):
    transport = InProcess()
    spec = "routed-rsa(models=cheap+strong,percentiles=0,n=4,k=2,loops=3,fitness=confidence)"
    (result,) = run(tmp_path, [spec], transport=transport, endpoints=two(logprobs=True, top_logprobs=3)).values()
    assert {name: used.calls for name, used in result.used.items()} == {"strong": 4, "cheap": 8}


def test_routing_at_random_has_the_shares_and_knows_nothing_of_the_answers(tmp_path: Path):
    transport = InProcess(lambda model, messages, draw: f"Final answer: {draw.randrange(3)}")
    spec = "routed-rsa(models=cheap+strong,percentiles=25,n=8,k=2,loops=3,fitness=random)"
    results = run(tmp_path, [spec], 3, transport=transport, endpoints=two())
    for result in results.values():
        assert {name: used.calls for name, used in result.used.items()} == {"strong": 8 + 2 * 2, "cheap": 2 * 6}


def test_groups_are_routed_by_numpy_percentiles():
    fitness = [random.Random(7).random() + i for i in range(16)]
    tiers = routed(fitness, [10, 50])
    low, middle = np.percentile(fitness, [10, 50])
    assert tiers == [0 if one <= low else 1 if one <= middle else 2 for one in fitness]
    assert [tiers.count(tier) for tier in range(3)] == [2, 6, 8]
    assert routed([1.0] * 4, [10]) == [0] * 4


def reply(*tokens: tuple[float, ...]) -> Reply:
    return Reply("k", "m", "x", "", "stop", Usage(1), tokens)


def test_a_sharper_distribution_is_more_confident_and_one_alternative_is_refused():
    sharp = tuple(math.log(p) for p in (0.98, 0.01, 0.01))
    flat = tuple(math.log(p) for p in (0.34, 0.33, 0.33))
    assert peakedness(reply(sharp)) > peakedness(reply(flat))
    with pytest.raises(SettingsError, match="needs alternatives"):
        peakedness(reply((-0.1,)))


def test_a_group_that_disagrees_goes_to_the_strong_model(tmp_path: Path):
    """Counted without a sign, many answers would look sure and go to the cheap one."""
    transport = InProcess(lambda model, messages, draw: f"Final answer: {1 if draw.random() < 0.8 else 2}")
    spec = "routed-rsa(models=cheap+strong,percentiles=30,n=10,k=3,loops=2,fitness=diversity)"
    run(tmp_path, [spec], 5, transport=transport, endpoints=two())
    later = [body for body in transport.bodies if candidates(body["messages"])]
    spread = {
        name: [len(set(candidates(one["messages"]))) for one in later if one["model"] == name]
        for name in ("cheap", "strong")
    }
    assert np.mean(spread["strong"]) > np.mean(spread["cheap"])


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("rsa(n=2,k=4)", "k is 4"),
        ("rsa(loops=0)", "loops"),
        ("gsa(rsa:4)", "inside a strategy"),
        ("rsaa:4", "did you mean 'rsa'"),
        ("rsa(m=4)", "m"),
        ("rsa(4)", "write name=value"),
        ("routed-rsa(models=a+b+c,percentiles=10)", "3 models need 2 percentiles"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused_in_a_sentence(spec: str, sentence: str):
    with pytest.raises(SettingsError, match=sentence):
        strategy(spec)


def test_a_label_names_the_same_strategy():
    for spec in ("gsa:4", "rsa(n=8,k=4,loops=3)", "routed-rsa(models=a+b,percentiles=5)"):
        assert strategy(strategy(spec).label) == strategy(spec)


def test_an_aggregate_beyond_the_context_loses_its_longest_candidate_once_and_says_so(tmp_path: Path):
    def rule(model: str, messages: list[dict[str, Any]], draw: random.Random) -> str:
        return "word " * (100 if draw.random() < 0.08 else 10) + "Final answer: 1"

    with ExactServer(rule=rule, context=1200) as server:
        found = run(tmp_path, ["gsa:4"], 12, server=server)
    noted = [one for one in found.values() if one.notes]
    assert noted
    assert all("longest candidate was left out" in one.notes[0] for one in noted)
