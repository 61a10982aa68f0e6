"""One tree of weights over several engines: who gets what, wherever he asks."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from burnish.serve.policies.fleet import Account, Fleet
from burnish.serve.policies.shares import FairShares
from burnish.serve.settings import EngineSettings, PolicySettings
from burnish.serve.simulate import Simulation, simulate
from serve_runs import backlog, drawn, serve_together


def flat(weights: dict[str, float]) -> Fleet:
    return Fleet(lambda path: weights.get("/".join(path), 1.0))


def served(orders: list[FairShares], tenant: str) -> int:
    return sum(order.share(tuple(tenant.split("/"))).served for order in orders)


def together(
    waiting: list[dict[str, int]], weights: dict[str, float], *, exchanges: bool = True, every: int = 5, **options: int
) -> dict[str, int]:
    """What tenants are served that wait at several engines, so many requests of each."""
    orders = [FairShares(weights) for _ in waiting]
    jobs = [backlog(tenants) for tenants in waiting]
    for _ in serve_together(orders, jobs, flat(weights) if exchanges else None, every=every, **options):
        pass
    return {tenant: served(orders, tenant) for tenant in {name for tenants in waiting for name in tenants}}


def test_who_waits_at_one_engine_has_the_share_of_one_who_waits_at_both():
    waiting = [{"a": 4000, "b": 4000}, {"a": 4000}]
    apart = together(waiting, {}, exchanges=False, rounds=2000)
    assert apart["a"] / apart["b"] == pytest.approx(3, rel=0.02)  # half of one engine and all of the other
    both = together(waiting, {}, rounds=2000)
    assert both["a"] / both["b"] == pytest.approx(1, rel=0.02)
    assert sum(both.values()) == pytest.approx(sum(apart.values()), rel=0.001)  # nobody is idle for it


def test_weights_are_those_of_all_engines_together():
    waiting = [{"a": 4000, "b": 4000, "c": 4000}, {"a": 4000, "c": 4000}, {"c": 4000}]
    found = together(waiting, {"a": 2, "b": 1, "c": 4}, rounds=2000)
    assert found["a"] / found["b"] == pytest.approx(2, rel=0.05)
    assert found["c"] / found["b"] == pytest.approx(4, rel=0.05)


def test_a_subtree_has_its_share_wherever_its_tenants_are():
    weights = {"one": 1.0, "many": 1.0}
    waiting = [{f"many/t{number}": 1000 for number in range(5)}, {"many/t9": 4000, "one/alone": 4000}]
    found = together(waiting, weights, rounds=2000)
    many = sum(cost for tenant, cost in found.items() if tenant.startswith("many"))
    assert many / found["one/alone"] == pytest.approx(1, rel=0.02)


def _can_be_fair(places: dict[str, set[int]], weights: dict[str, float], num: int) -> bool:
    """Whether the engines at which any tenants wait can serve what is theirs (Hall's condition)."""
    for size in range(1, len(weights) + 1):
        for some in itertools.combinations(weights, size):
            theirs = sum(weights[one] for one in some) / sum(weights.values())
            if theirs > len(set().union(*(places[one] for one in some))) / num + 1e-9:
                return False
    return True


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 80))])
def test_tenants_stay_within_the_bound(seed: int):
    """2 (U + K exchange rate / 2) / smallest weight, where no answer outlasts an exchange."""
    draw, num_places = random.Random(seed), 4
    while True:
        num = draw.choice([2, 3, 4, 6])
        weights = {tenant: draw.choice([0.5, 1.0, 2.0, 3.0]) for tenant in "abcd"[: draw.choice([2, 3, 4])]}
        places = {tenant: {place for place in range(num) if draw.random() < 0.6} for tenant in weights}
        if all(places.values()) and _can_be_fair(places, weights, num):
            break
    prompt, output, every = draw.choice([(20, 10, 10), (60, 5, 5), (5, 30, 30), (20, 10, 40), (60, 5, 60), (5, 30, 5)])
    rounds, largest = 600, max(prompt, 2 * num_places * (prompt + output))
    orders = [FairShares(weights) for _ in range(num)]
    jobs = [
        backlog(
            {tenant: 1500 for tenant in weights if place in places[tenant]} or {"a": 0}, prompt=prompt, output=output
        )
        for place in range(num)
    ]
    gap = 0.0
    for _ in serve_together(orders, jobs, flat(weights), every=every, rounds=rounds, places=num_places):
        runtimes = [served(orders, tenant) / weight for tenant, weight in weights.items()]
        gap = max(gap, max(runtimes) - min(runtimes))
    assert all(
        order.share((tenant,)).waiting for tenant in weights for order in orders if order.share((tenant,)).served
    )
    rate = sum(served(orders, tenant) for tenant in weights) / num / rounds * every
    under_way = largest * (1 if output <= every else num)
    assert gap <= 2 * (under_way + num * rate / 2) / min(weights.values())


def test_the_weights_of_an_engine_that_says_nothing_more_go_to_the_others():
    fleet = Fleet(lambda path: 1.0, memory=1.0)
    known = {("a",): Account(0, 500)}
    for _ in range(10):
        found = fleet.exchanged({"one": known, "two": known})
    assert found["one"][("a",)].share == pytest.approx(0.5)
    assert sum(parts[("a",)].share for parts in found.values()) == pytest.approx(1)
    assert fleet.exchanged({"one": known})["one"][("a",)].share == pytest.approx(1)


def test_what_an_engine_served_before_it_was_seen_or_had_before_it_began_anew_does_not_count():
    fleet = Fleet(lambda path: 2.0)
    path = ("a",)
    assert fleet.exchanged({"old": {path: Account(1000, 1)}})["old"][path].runtime == 0
    assert fleet.exchanged({"old": {path: Account(1060, 1)}})["old"][path].runtime == 30
    assert fleet.exchanged({"old": {path: Account(10, 1)}})["old"][path].runtime == 30  # it began anew
    assert fleet.exchanged({"old": {path: Account(30, 1)}})["old"][path].runtime == 40


def test_who_begins_to_wait_anywhere_is_not_paid_for_the_time_before():
    fleet = Fleet(lambda path: 1.0)
    early, late = ("early",), ("late",)
    fleet.exchanged({"one": {early: Account(0, 9)}, "two": {late: Account(0, 0)}})
    fleet.exchanged({"one": {early: Account(700, 9)}, "two": {late: Account(0, 0)}})
    found = fleet.exchanged({"one": {early: Account(800, 9)}, "two": {late: Account(0, 5)}})
    assert found["two"][late].runtime == found["one"][early].runtime == 800


@pytest.mark.parametrize("lifted", [True, False])
def test_who_begins_to_wait_when_nobody_does_is_lifted_to_who_waited_last(lifted: bool):
    fleet = Fleet(lambda path: 1.0, lift_when_idle=lifted)
    early, late = ("early",), ("late",)
    for cost, waits in ((0, 9), (700, 9), (800, 0), (800, 0)):
        fleet.exchanged({"one": {early: Account(cost, waits), late: Account(0, 0)}})
    found = fleet.exchanged({"one": {early: Account(800, 0), late: Account(0, 5)}})
    assert found["one"][late].runtime == (800 if lifted else 0)


def test_every_engine_keeps_a_part_of_every_weight():
    fleet = Fleet(lambda path: 1.0, floor=0.01)
    busy, idle = {("a",): Account(0, 10**6)}, {("a",): Account(0, 0)}
    for _ in range(50):
        found = fleet.exchanged({"one": busy, "two": idle})
    assert found["two"][("a",)].share == pytest.approx(0.01)
    assert found["one"][("a",)].share == pytest.approx(0.99)


# -- in the simulator --------------------------------------------------------------------------------------------------

TIGHT = EngineSettings(num_blocks=40, block_size=16, max_num_batched_tokens=256, max_num_seqs=8)
FAIR = PolicySettings(order="shares", weights={"t0": 1, "t1": 3}, exchange_seconds=0.5)


def run(policy: PolicySettings, *, seed: int = 0, instances: int = 3, step_by_step: bool = False) -> Simulation:
    costs, router = TIGHT.costs(), "workflow"
    return simulate(
        drawn(seed, rate=12),
        lambda: policy.objects(costs),
        TIGHT.shape(),
        costs,
        instances=instances,
        router=router,
        fleet=policy.fleet(instances),
        step_by_step=step_by_step,
    )


@pytest.mark.parametrize("policy", [FAIR, FAIR.model_copy(update={"by_program": True, "within": "programs"})])
def test_steps_taken_together_are_steps_one_by_one_also_where_engines_exchange(policy: PolicySettings):
    one, other = run(policy), run(policy, step_by_step=True)
    assert one.schedule == other.schedule
    assert replace(one.counters, calls=0) == replace(other.counters, calls=0)
    assert one.schedule != run(policy.model_copy(update={"exchange_seconds": 0.0})).schedule


def test_one_engine_has_nobody_to_exchange_with():
    alone = run(FAIR, instances=1)
    assert alone.schedule == run(FAIR.model_copy(update={"exchange_seconds": 0.0}), instances=1).schedule
