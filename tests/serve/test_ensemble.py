"""Ensembles under deadlines, and a balancer of devices."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from burnish.core.errors import DataError, SettingsError
from burnish.serve.balance import TailBalancer
from burnish.serve.ensemble import (
    Neighbours,
    Query,
    Schemble,
    Static,
    difficulty,
    jensen_shannon,
    members,
    plan,
    profile,
    run_ensemble,
)

TIMES = (1.0, 2.0, 3.0)


def drawn(seed: int, num_queries: int, num_models: int = 3) -> tuple[list[Query], list[float], list[float], np.ndarray]:
    """Queries with begun models, available times, times and rewards that grow with the sub-ensemble."""
    draw = random.Random(seed)
    available = [draw.choice([0.0, 0.0, 0.5, 2.0]) for _ in range(num_models)]
    times = [draw.choice([0.5, 1.0, 1.5, 3.0]) for _ in range(num_models)]
    values = np.array([[draw.random() for _ in range(num_models)] for _ in range(2)])
    rewards = np.array(
        [[1 - np.prod([1 - row[k] for k in members(s)]) for s in range(1 << num_models)] for row in values]
    )
    queries = []
    for number in range(num_queries):
        begun = draw.choice([0, 0, 0, 1 << draw.randrange(num_models)])
        queries.append(Query(number, draw.uniform(0.5, 7), draw.randrange(2), begun, ends=0.4 if begun else 0.0))
    return sorted(queries, key=lambda one: one.deadline), available, times, rewards


def worth(
    queries: list[Query], chosen, available: list[float], times: list[float], rewards: np.ndarray
) -> float | None:
    """The sum of a choice; None where it misses a deadline."""
    free, total = list(available), 0.0
    for query, subset in zip(queries, chosen, strict=True):
        if subset & query.begun != query.begun:
            return None
        for model in members(subset & ~query.begun):
            free[model] += times[model]
            if free[model] > query.deadline:
                return None
        total += float(rewards[query.bin, subset])
    return total


@pytest.mark.parametrize("seed", range(40))
def test_the_plan_is_as_good_as_the_best_of_all(seed: int):
    queries, available, times, rewards = drawn(seed, 1 + seed % 4)
    every = itertools.product(range(8), repeat=len(queries))
    best = max(found for chosen in every if (found := worth(queries, chosen, available, times, rewards)) is not None)
    chosen = plan(queries, available, times, rewards, eps=0, cap=None)
    assert worth(queries, chosen, available, times, rewards) == pytest.approx(best, abs=1e-12)
    rounded = plan(queries, available, times, rewards, eps=0.01)
    near = worth(queries, rounded, available, times, rewards)
    assert near is not None
    assert near >= best - 0.01 * len(queries) * rewards.max() - 1e-12


@pytest.mark.parametrize("seed", range(10))
def test_later_deadlines_are_worth_no_less(seed: int):
    queries, available, times, rewards = drawn(seed, 3)
    sums = []
    for more in (0.0, 0.5, 1.0, 4.0):
        later = [Query(q.number, q.deadline + more, q.bin, q.begun, ends=q.ends) for q in queries]
        found = worth(later, plan(later, available, times, rewards, eps=0, cap=None), available, times, rewards)
        assert found is not None
        sums.append(found)
    assert sums == sorted(sums)


def test_alone_and_without_haste_a_query_has_all_models():
    _, _, _, rewards = drawn(0, 1)
    assert plan([Query(0, 100.0, 0)], [0.0] * 3, TIMES, rewards, eps=0) == [7]
    assert plan([Query(0, 2.5, 0)], [0.0] * 3, TIMES, rewards, eps=0) == [3]
    assert plan([Query(0, 0.5, 0)], [0.0] * 3, TIMES, rewards, eps=0) == [0]


def test_divergences_are_those_by_hand():
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(np.log(2))
    assert jensen_shannon(np.array([0.3, 0.7]), np.array([0.3, 0.7])) == 0
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    by_hand = (0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25) + np.log(1 / 0.75)) / 2
    assert jensen_shannon(p, q) == pytest.approx(by_hand)


def test_models_that_agree_find_nothing_difficult():
    one = np.random.default_rng(0).dirichlet(np.ones(4), size=9)
    assert difficulty(np.stack([one, one, one])) == pytest.approx(0)


def test_a_profile_counts_and_draws_small_bins_to_all():
    outputs = np.zeros((2, 4, 2))
    outputs[0, :, 0], outputs[1, :, 1] = 0.9, 0.9
    outputs[0, :, 1], outputs[1, :, 0] = 0.1, 0.1
    found = profile(outputs, np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1]), 2, weight=0.0)
    assert found[:, 1].tolist() == [1, 0]
    assert found[:, 2].tolist() == [0, 1]
    drawn_in = profile(outputs, np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1]), 2, weight=1.0)
    assert drawn_in[1, 1] == pytest.approx(0.75 / 2)
    assert (found[:, 0] == 0).all()


def test_a_neighbour_that_is_left_out_is_not_asked():
    points, values = np.array([[0.0], [0.1], [5.0]]), np.array([1.0, 2.0, 9.0])
    rule = Neighbours(1).fit(points, values)
    assert rule.predict(points).tolist() == [1, 2, 9]
    assert rule.predict_left_out(points).tolist() == [2, 1, 2]


def stream(num: int, rate: float, seed: int = 0) -> tuple[list[float], list[float]]:
    draw, now, arrivals = random.Random(seed), 0.0, []
    for _ in range(num):
        now += draw.expovariate(rate)
        arrivals.append(now)
    return arrivals, [moment + draw.uniform(4, 12) for moment in arrivals]


def test_one_model_serves_by_deadline():
    outputs = np.ones((1, 4, 1))
    found = run_ensemble(Static([1.0]), outputs, np.zeros(4, int), [0, 0.1, 0.2, 0.3], [1, 9, 5, 3])
    assert found.finished.tolist() == [1, 4, 3, 2]


def test_what_cannot_be_in_time_is_missed_and_costs_nothing():
    outputs = np.ones((2, 3, 1))
    found = run_ensemble(Static([1.0, 2.0]), outputs, np.zeros(3, int), [0, 0, 0], [2, 2, 5])
    assert found.subsets.tolist() == [3, 0, 3]
    assert found.missed == pytest.approx(1 / 3)
    assert found.busy == [2, 4]


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_is_there_at_its_deadline_and_of_models_that_ran(seed: int):
    draw = np.random.default_rng(seed)
    outputs = draw.dirichlet(np.ones(3), size=(3, 60))
    arrivals, deadlines = stream(60, 0.6, seed)
    made = Schemble([None] * 3, TIMES)
    made.rewards = profile(outputs, outputs.mean(0).argmax(1), np.zeros(60, int), 1)
    found = run_ensemble(made, outputs, np.zeros(60, int), arrivals, deadlines)
    answered = found.subsets > 0
    assert (found.finished[answered] <= np.array(deadlines)[answered] + 1e-9).all()
    assert (found.answers[~answered] == -1).all()
    assert answered.mean() > 0.9
    span = max(deadlines)
    assert all(busy <= span for busy in found.busy)


def test_fit_and_serve_on_models_of_scikit_learn():
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import GaussianNB

    X, y = (np.asarray(one) for one in load_iris(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(y))
    train, rest = order[:50], order[50:]
    models = [GaussianNB().fit(X[train], y[train]), LogisticRegression(max_iter=500).fit(X[train], y[train])]
    made = Schemble(models, [1.0, 2.0], num_bins=4).fit(X[rest[:50]], y[rest[:50]])
    arrivals, deadlines = stream(50, 0.7)
    found = made.serve(X[rest[50:]], arrivals, deadlines)
    alone = made.serve(
        X[rest[50:]], [100.0 * place for place in range(50)], [100.0 * place + 50 for place in range(50)]
    )
    assert found.accuracy(y[rest[50:]]) > 0.8
    assert alone.missed == 0
    assert found.busy[1] <= alone.busy[1]


@pytest.mark.parametrize(
    ("models", "times", "told"),
    [([1, 2], [1.0], "1 times for 2 models"), ([1], [0.0], "seconds above 0"), ([0] * 9, [1.0] * 9, "at most 8")],
)
def test_what_is_no_ensemble_is_said(models: list[int], times: list[float], told: str):
    with pytest.raises(SettingsError, match=told):
        Schemble(models, times)


# -- the balancer ------------------------------------------------------------------------------------------------------


def test_equal_devices_are_join_the_shortest_queue():
    draw, balancer, queues, now = random.Random(0), TailBalancer(np.ones((3, 1)), np.ones((1, 1)), 0.5), [0, 0, 0], 0.0
    ends: list[tuple[float, int]] = []
    for _ in range(300):
        now += draw.expovariate(2.5)
        while ends and ends[0][0] <= now:
            moment, device = ends.pop(0)
            queues[device] -= 1
            balancer.ended(device, moment)
        device, _ = balancer.choose(now)
        assert queues[device] == min(queues)
        queues[device] += 1
        begin = max([now, *(moment for moment, one in ends if one == device)])
        ends = sorted([*ends, (begin + 1.0, device)])


def test_the_cheapest_variant_that_is_accurate_enough_is_taken():
    tails, accuracy = np.array([[1.0, 3.0], [2.0, 2.5]]), np.array([[0.95, 0.99], [0.6, 0.97]])
    assert TailBalancer(tails, accuracy, 0.9).choose(0.0, 0) == (0, 0)
    assert TailBalancer(tails, accuracy, 0.9).choose(0.0, 1) == (1, 1)
    assert TailBalancer(tails, accuracy, 0.999).choose(0.0, 1) == (1, 1)  # none is: the most accurate


def test_hysteresis_keeps_the_device_for_a_small_gain():
    def devices(hysteresis: float) -> list[int]:
        balancer = TailBalancer(np.array([[1.0], [1.2]]), np.ones((1, 1)), 0.5, hysteresis=hysteresis)
        return [balancer.choose(0.0)[0] for _ in range(3)]

    assert devices(0.0) == [0, 1, 0]
    assert devices(0.9) == [0, 0, 1]


def test_a_balancer_of_nothing_is_refused():
    with pytest.raises(SettingsError, match="give \\(devices, variants\\)"):
        TailBalancer(np.ones((2, 2)), np.ones((1, 3)), 0.5)
    with pytest.raises(SettingsError, match="latency of 0"):
        TailBalancer(np.zeros((2, 2)), np.ones((1, 2)), 0.5)


@pytest.mark.parametrize(
    ("arrivals", "deadlines", "told"),
    [
        ([0.0], [1.0, 1.0], "1 arrivals and 2 deadlines for 2 queries"),
        ([0.0] * 3, [1.0] * 3, "3 arrivals and 3 deadlines for 2 queries"),
        ([0.0, float("nan")], [1.0, 1.0], "arrivals: are not all finite"),
        ([0.0, 0.0], [1.0, float("nan")], "deadlines: are not all numbers"),
    ],
)
def test_times_that_cannot_be_are_said(arrivals: list[float], deadlines: list[float], told: str):
    with pytest.raises(DataError, match=told):
        run_ensemble(Static([1.0]), np.ones((1, 2, 2)) / 2, np.zeros(2, dtype=int), arrivals, deadlines)


class Even:
    """A model that says nothing."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.full((len(X), 2), 0.5)


@pytest.mark.parametrize("labels", [[], [0], [0, 1], [0, 1, 2], [0, -1, 1], ["a", "b", "a"], [0.0, 1.0, 1.0]])
def test_labels_that_are_no_places_of_classes_are_said(labels: list[object]):
    with pytest.raises(DataError, match="y: are"):
        Schemble([Even()], [1.0]).fit(np.zeros((min(len(labels), 1) * 3, 1)), np.array(labels))


@pytest.mark.parametrize("setting", [{"num_bins": 0}, {"most": 0}, {"cap": 0}, {"eps": float("nan")}, {"eps": -1.0}])
def test_settings_that_leave_no_plan_are_refused(setting: dict[str, Any]):
    with pytest.raises(SettingsError, match="are num_bins="):
        Schemble([Even()], [1.0], **setting)
