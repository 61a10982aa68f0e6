"""Strategies equal what their definitions say, on a model whose every answer follows from what it is shown."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from burnish.core.errors import SettingsError
from burnish.reason import Endpoint, Journal, JournalReader, Pool, Price, Result, Session, strategy
from burnish.reason.calls import Reply, Usage
from burnish.reason.confidence import peakedness
from burnish.reason.strategies.routed_rsa import routed
from exact_server import Chain, ExactServer, InProcess, Rule, candidates, completion, majority
from reason_runs import Ends, run

NOWHERE = "http://127.0.0.1:1/v1"
TIERS = ("cheap", "strong")


def answers(found: dict[str, Result]) -> list[str | None]:
    return [result.answer for result in found.values()]


def chain(n: int, loops: int, first: float, right: list[float]) -> list[np.ndarray]:
    """The law of the number of right members of each population: a Markov chain with binomial steps.

    Args:
        right: probability that an aggregate is right, by the number of right members of the population before.
    """

    def step(law: np.ndarray, right: list[float]) -> np.ndarray:
        pmf = [[math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)] for p in right]
        return law @ np.array(pmf)

    laws = [step(np.ones(1), [first])]
    for _ in range(loops - 1):
        laws.append(step(laws[-1], right))
    return laws


def drawn(n: int, k: int, right: Callable[[int], float]) -> list[float]:
    """Probability that an aggregate of k of n members is right, by how many of the n are.

    Args:
        right: that probability by how many of the k are.
    """
    return [
        sum(math.comb(c, seen) * math.comb(n - c, k - seen) * right(seen) for seen in range(k + 1)) / math.comb(n, k)
        for c in range(n + 1)
    ]


def any_right(rule: Chain) -> Callable[[int], float]:
    return lambda seen: rule.any_right if seen else rule.none


def test_the_chain_of_the_reference_values():
    laws = chain(16, 6, 0.3, drawn(16, 4, any_right(Chain())))
    means = [float(law @ np.arange(17)) / 16 for law in laws]
    assert means == pytest.approx([0.3, 0.6959, 0.8780, 0.8974, 0.8991, 0.8996], abs=2e-4)


def follows(directory: Path, n: int, k: int, laws: list[np.ndarray], rule: Rule, num: int = 400) -> None:
    """The mean and the share of populations with a right member lie within three standard errors of the chain's."""
    spec = f"rsa(n={n},k={k},loops={len(laws)})"
    found = run(directory, [spec], num, concurrency=512, transport=InProcess(rule))
    right = np.array([[[text.endswith(" 1") for text in loop] for loop in one.loops] for one in found.values()])
    shares = np.arange(n + 1) / n
    for loop, law in enumerate(laws):
        mean = float(law @ shares)
        error = math.sqrt((float(law @ shares**2) - mean**2) / num)
        assert abs(right[:, loop].mean() - mean) <= 3 * error
        some = float(1 - law[0])
        assert abs(right[:, loop].any(1).mean() - some) <= 3 * math.sqrt(some * (1 - some) / num) + 1e-12


@pytest.mark.slow
def test_rsa_of_an_aggregator_that_needs_one_right_candidate_follows_the_markov_chain(tmp_path: Path):
    follows(tmp_path, 6, 2, chain(6, 4, 0.3, drawn(6, 2, any_right(Chain()))), Chain())


@pytest.mark.slow
@pytest.mark.parametrize(("n", "k"), [(5, 3), (6, 4)])
def test_rsa_of_an_aggregator_that_returns_the_majority_follows_the_markov_chain(tmp_path: Path, n: int, k: int):
    def rule(model: str, messages: list[dict[str, Any]], draw: random.Random) -> str:
        seen = candidates(messages)
        share = sum(one == "1" for one in seen) / len(seen) if seen else 0.0
        right = draw.random() < (0.55 if not seen else 0.5 if share == 0.5 else float(share > 0.5))
        return f"Final answer: {1 if right else draw.randint(2, 9)}"

    laws = chain(n, 3, 0.55, drawn(n, k, lambda seen: 0.5 if 2 * seen == k else float(2 * seen > k)))
    follows(tmp_path, n, k, laws, rule)


@pytest.mark.slow
def test_rsa_of_single_candidates_that_are_copied_is_flat(tmp_path: Path):
    laws = chain(6, 4, 0.4, drawn(6, 1, lambda seen: float(seen)))
    means = [float(law @ np.arange(7)) / 6 for law in laws]
    assert means == pytest.approx([0.4] * 4)
    assert 1 - laws[-1][0] < 1 - laws[0][0]  # though fewer populations have a right member
    follows(tmp_path, 6, 1, laws, Chain(first=0.4, any_right=1.0, none=0.0))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_rsa_of_the_reference_size_follows_the_markov_chain(tmp_path: Path):
    follows(tmp_path, 16, 4, chain(16, 6, 0.3, drawn(16, 4, any_right(Chain()))), Chain())


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
    return [Endpoint(NOWHERE, name, sampling=sampling) for name in TIERS]


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


def routed_and_plain(directory: Path, percentile: int, rule: Rule) -> tuple[Result, Result]:
    """Routed RSA and RSA of its strong model, as one node of a tree, so that they draw the same groups."""
    endpoints = [Endpoint(NOWHERE, "same", name, sampling={"logprobs": True, "top_logprobs": 3}) for name in TIERS]

    async def go(name: str, spec: str) -> Result:
        with Journal(directory / name) as journal:
            async with Pool(endpoints, journal, transport=InProcess(rule)) as pool:
                session = Session(pool, "p", "node", answers=Ends(), model="strong")
                return await strategy(spec)([{"role": "user", "content": "x"}], session)

    routed = f"routed-rsa(models=cheap+strong,percentiles={percentile},n=6,k=3,loops=4)"
    return asyncio.run(go("routed", routed)), asyncio.run(go("plain", "rsa(n=6,k=3,loops=4)"))


def test_routed_rsa_whose_groups_all_go_to_the_strong_model_is_rsa_of_it_call_by_call(tmp_path: Path):
    routed, plain = routed_and_plain(tmp_path, 100, Chain())
    assert routed == plain
    assert [one.key for loop in routed.populations for one in loop] == [
        one.key for loop in plain.populations for one in loop
    ]


def test_routed_rsa_of_two_equal_models_is_rsa_where_nothing_goes_to_the_strong_one(tmp_path: Path):
    """Seeds differ by the model's name, so that this one's aggregates follow from the prompt alone."""

    def rule(model: str, messages: list[dict[str, Any]], draw: random.Random) -> str:
        return Chain()(model, messages, random.Random(str(messages)) if candidates(messages) else draw)

    routed, plain = routed_and_plain(tmp_path, 0, rule)
    assert routed.loops == plain.loops
    assert routed.answer == plain.answer
    assert {name: used.calls for name, used in routed.used.items()} == {"strong": 6, "cheap": 18}


@pytest.mark.parametrize("percentiles", [[10], [25], [50], [90], [10, 60]])
def test_the_number_of_groups_of_a_tier_is_its_percentage_rounded(percentiles: list[float]):
    for num in (7, 16, 33):
        tiers = routed([random.Random(num).random() + i for i in range(num)], percentiles)
        for place, percentile in enumerate(percentiles):
            within = sum(tier <= place for tier in tiers)
            assert math.floor(num * percentile / 100) <= within <= math.ceil(num * percentile / 100)


def test_what_routed_rsa_costs_is_the_sum_over_its_tiers(tmp_path: Path):
    spec = "routed-rsa(models=cheap+strong,percentiles=40,n=6,k=2,loops=3)"
    (result,) = run(tmp_path, [spec], endpoints=two(logprobs=True, top_logprobs=3)).values()
    paid = JournalReader(tmp_path).paid()
    assert {name: one.usage for name, one in paid.items()} == result.used
    assert sum(one.usage.calls for one in paid.values()) == 18


class Sure(InProcess):
    """A cheap model that aggregates well where half of its group is right, a strong one that needs a single right one.

    With `knows` the probability of a token says whether the answer is right, with noise; else it is noise alone.
    """

    def __init__(self, first: float, *, knows: bool) -> None:
        super().__init__(self.write)
        self.first, self.knows = first, knows

    def write(self, model: str, messages: list[dict[str, Any]], draw: random.Random) -> str:
        seen = candidates(messages)
        share = sum(one == "1" for one in seen) / len(seen) if seen else 0.0
        right = draw.random() < self.first if not seen else share > 0 if model == "strong" else share >= 0.5
        return f"Final answer: {1 if right else draw.randint(2, 9)}"

    async def __call__(self, endpoint: object, body: Any) -> bytes:
        reply = completion(self.write, dict(body))
        text = reply["choices"][0]["message"]["content"]
        noise = random.Random(text + str(body)).gauss(0, 0.1)
        score = noise + (float(text.endswith(" 1")) if self.knows else 0.0)
        reply["choices"][0]["logprobs"] = {"content": [{"token": "x", "logprob": score - 3, "top_logprobs": []}]}
        return json.dumps(reply).encode()


def asked(directory: Path, model: Sure, num: int, *, loops: int, routed: bool = True) -> tuple[float, float]:
    """Mean accuracy of the last population, and cost, by routed RSA or by RSA of the strong model alone."""
    prices = {"cheap": Price(0.1, 0.1), "strong": Price(1.0, 1.0)}
    settings = f"n=8,k=4,loops={loops},answer=uniform)"
    spec = f"routed-rsa(models=cheap+strong,percentiles=30,fitness=logprob,{settings}" if routed else f"rsa({settings}"
    endpoints = two(logprobs=True)[0 if routed else 1 :]
    found = run(directory, [spec], num, transport=model, endpoints=endpoints, concurrency=512)
    right = [text.endswith(" 1") for one in found.values() for text in one.loops[-1]]
    costs = [used.cost(prices[name]) or 0.0 for one in found.values() for name, used in one.used.items()]
    return sum(right) / len(right), sum(costs)


@pytest.mark.slow
def test_confidence_that_knows_is_as_right_as_the_strong_model_at_sixty_percent_of_its_cost(tmp_path: Path):
    model = Sure(0.7, knows=True)
    dear, all_strong = asked(tmp_path / "strong", model, 80, loops=4, routed=False)
    right, cost = asked(tmp_path / "routed", model, 80, loops=4)
    assert right >= dear - 0.01
    assert cost <= 0.6 * all_strong


@pytest.mark.slow
def test_confidence_that_is_noise_loses_what_knowing_gains(tmp_path: Path):
    """Simulated without calls, the means after one aggregation are 0.855 and 0.792; the latter is routing by chance."""
    sure, _ = asked(tmp_path / "knows", Sure(0.5, knows=True), 250, loops=2)
    noise, _ = asked(tmp_path / "noise", Sure(0.5, knows=False), 250, loops=2)
    assert sure - noise > 0.03


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


class Judged(InProcess):
    """Samples have lengths of their own; the model `judge` rewards an even digit, in the words of reward servers."""

    async def __call__(self, endpoint: object, body: Any) -> bytes:
        said = json.loads(await super().__call__(endpoint, body))
        if body["model"] == "judge":
            assert body["messages"][-1]["role"] == "assistant"
            digit = int(body["messages"][-1]["content"][-1])
            said["choices"][0]["message"]["content"] = f"reward:{-1.5 if digit % 2 else 2.25e1}, verbosity:9"
        return json.dumps(said).encode()


def test_best_of_n_by_a_reward_model_takes_the_first_of_the_highest_reward_and_pays_for_both(tmp_path: Path):
    endpoints = [Endpoint(NOWHERE, "exact"), Endpoint(NOWHERE, "judge")]
    specs = ["self-consistency:5", "best-of-n(n=5,score=reward,judge=judge)"]
    found = run(tmp_path, specs, 30, endpoints=endpoints, transport=Judged())
    for name, result in found.items():
        if "|best-of-n" in name:
            digits = [
                int(text[-1]) for text in found[name.partition("|")[0] + "|self-consistency(n=5,early=0)"].loops[0]
            ]
            assert result.answer == str(next((one for one in digits if one % 2 == 0), digits[0]))
            assert {model: used.calls for model, used in result.used.items()} == {"exact": 5, "judge": 5}


def test_a_reward_model_that_says_no_number_or_is_not_named_is_refused(tmp_path: Path):
    class Talks(InProcess):
        async def __call__(self, endpoint: object, body: Any) -> bytes:
            message = {"content": "a fine answer"}
            return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()

    endpoints = [Endpoint(NOWHERE, "exact"), Endpoint(NOWHERE, "judge")]
    with pytest.raises(SettingsError, match="said 'a fine answer', which is no reward"):
        run(tmp_path, ["best-of-n(n=2,score=reward,judge=judge)"], endpoints=endpoints, transport=Talks())
    for spec in ("best-of-n(n=2,score=reward)", "best-of-n(n=2,judge=judge)"):
        with pytest.raises(SettingsError, match="belong together"):
            strategy(spec)
