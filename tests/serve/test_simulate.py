"""The simulator: steps taken together are steps taken one by one, and nothing is lost or made."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from burnish.core.errors import SettingsError
from burnish.serve.compare import compare_schedules
from burnish.serve.engine import SimulatedEngine
from burnish.serve.policies.queues import FirstComeFirstServed
from burnish.serve.policies.retention import NoRetention
from burnish.serve.policies.shares import FairShares
from burnish.serve.settings import EngineSettings, OrderName, PolicySettings
from burnish.serve.simulate import Simulation, simulate
from burnish.serve.traces import hit_share
from burnish.serve.workload import Turn, Workflow, Workload
from serve_runs import SECOND, drawn

TIGHT = EngineSettings(num_blocks=40, block_size=16, max_num_batched_tokens=256, max_num_seqs=8)
POLICIES = [
    PolicySettings(),
    PolicySettings(order="vtc"),
    PolicySettings(order="shares", weights={"t0": 1, "t1": 3}, within="programs", by_program=True),
    PolicySettings(order="dlpm", quantum=200),
    PolicySettings(order="programs", hold="fixed"),
    PolicySettings(order="programs", hold="learned"),
    PolicySettings(order="least-service", hold="learned"),
    PolicySettings(order="fcfs", hold="fixed"),
    PolicySettings(name="takes", order="shares", weights={"t0": 1, "t1": 3}, take_places=True, credit=1),
    PolicySettings(name="spares", order="shares", spare=2),
]


def run(workload: Workload, policy: PolicySettings, engine: EngineSettings = TIGHT, **options) -> Simulation:
    costs = engine.costs()
    return simulate(workload, lambda: policy.objects(costs), engine.shape(), costs, **options)


def facts(found: Simulation) -> list[tuple]:
    """Of every request, all that is known of it."""
    fields = ("name", "arrival", "admitted", "first_token", "finished", "cached", "evicted", "redone", "scheduled")
    return [tuple(getattr(job, field) for field in fields) for job in found.jobs]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.called)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("blocks", [False, True], ids=["workflows", "shared"])
def test_steps_taken_together_are_steps_one_by_one_to_the_nanosecond(policy: PolicySettings, seed: int, blocks: bool):
    engine = TIGHT.model_copy(update={"cost": ["linear", "roofline"][seed], "watermark": 0.05 * seed})
    workload = drawn(seed, rate=8, blocks=blocks)
    options = {"instances": 2, "router": "workflow"}
    together = run(workload, policy, engine, **options)
    single = run(workload, policy, engine, step_by_step=True, **options)
    assert facts(together) == facts(single)
    assert together.schedule == single.schedule
    assert replace(together.counters, calls=0) == replace(single.counters, calls=0)
    assert seed or together.counters.preemptions + together.counters.reclaimed > 0  # the pool is so small
    if policy.order == "fcfs":
        assert together.counters.calls < single.counters.calls / 2


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 60))])
def test_whatever_the_limits_steps_taken_together_are_steps_one_by_one(seed: int):
    """Also where not all who decode get a token in every step, prompts are not cut, or nothing is found again."""
    draw = random.Random(seed)
    engine = EngineSettings(
        num_blocks=draw.choice([30, 40, 60, 200]),
        block_size=draw.choice([8, 16, 32]),
        max_num_batched_tokens=draw.choice([4, 64, 256, 1000]),
        max_num_seqs=draw.choice([2, 8, 30]),
        cost=draw.choice(["linear", "roofline", "dynosim"]),
        prefix_caching=draw.random() < 0.8,
        reserve_full=draw.random() < 0.5,
        watermark=draw.choice([0, 0.05]),
        chunked_prefill=draw.random() < 0.85,
        budget=draw.choice([0.2, 0.5, 0.9]),
    )
    workload, policy = (
        drawn(seed, num=30, rate=draw.choice([1, 6, 20]), blocks=draw.random() < 0.3),
        POLICIES[seed % len(POLICIES)],
    )
    together, single = (run(workload, policy, engine, step_by_step=one) for one in (False, True))
    assert facts(together) == facts(single)
    assert replace(together.counters, calls=0) == replace(single.counters, calls=0)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.called)
def test_little_and_the_tokens_hold_exactly(policy: PolicySettings):
    found = run(drawn(3, rate=6), policy, instances=2)
    assert found.area == sum(job.finished - job.arrival for job in found.jobs)
    assert found.counters.scheduled == sum(job.prompt - job.cached + job.output - 1 + job.redone for job in found.jobs)
    assert all(job.scheduled == job.prompt - job.cached + job.output - 1 + job.redone for job in found.jobs)
    assert all(job.generated == job.output for job in found.jobs)
    assert len(found.jobs) + len(found.refused) <= drawn(3, rate=6).num_requests


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.called)
def test_no_block_is_in_use_at_the_end(policy: PolicySettings, monkeypatch: pytest.MonkeyPatch):
    engines: list[SimulatedEngine] = []
    made = SimulatedEngine.__init__

    def kept(self: SimulatedEngine, *arguments, **options) -> None:
        made(self, *arguments, **options)
        engines.append(self)

    monkeypatch.setattr(SimulatedEngine, "__init__", kept)
    found = run(drawn(4, rate=6), policy)
    assert found.jobs
    assert [(engine.pool.used, engine.holds, engine.running, len(engine.order)) for engine in engines] == [
        (0, {}, [], 0)
    ]
    assert found.counters.pinned <= TIGHT.num_blocks * TIGHT.budget


def test_a_tenant_below_its_share_takes_a_place_and_one_above_it_gives_it_up():
    heavy = [Workflow(f"h{number}", "heavy", 0, (Turn(60, 200),)) for number in range(40)]
    light = [Workflow(f"l{number}", "light", SECOND * (1 + number), (Turn(30, 5),)) for number in range(5)]
    roomy = TIGHT.model_copy(update={"num_blocks": 400})
    waits, preempted = {}, {}
    for name, policy in (("stays", {}), ("takes", {"take_places": True, "credit": 1}), ("spares", {"spare": 1})):
        found = run(Workload((*heavy, *light)), PolicySettings.model_validate({"order": "shares"} | policy), roomy)
        waits[name] = [job.admitted - job.arrival for job in found.jobs if job.tenant == "light"]
        preempted[name] = [(job.tenant, job.preemptions) for job in found.jobs if job.preemptions]
    step = roomy.linear.step + 10 * roomy.linear.decode + 8 * 260 * roomy.linear.context
    assert max(waits["takes"]) < step < max(waits["stays"])
    assert max(waits["spares"]) < step
    assert preempted == {"stays": [], "takes": [("heavy", 1)] * 5, "spares": []}


def test_nobody_loses_a_place_twice_and_equal_tenants_take_none():
    rows = [Workflow(f"{name}{number}", name, 0, (Turn(40, 30),)) for number in range(30) for name in "ab"]
    policy, roomy = PolicySettings(order="shares", take_places=True), TIGHT.model_copy(update={"num_blocks": 400})
    found = run(Workload(tuple(rows)), policy, roomy)
    assert found.counters.preemptions == 0
    late = [replace(row, arrival=SECOND // 10 * (row.tenant == "b")) for row in rows]
    found = run(Workload(tuple(sorted(late, key=lambda row: row.arrival))), policy, roomy)
    assert {job.preemptions for job in found.jobs if job.tenant == "a"} == {0, 1}
    assert max(job.preemptions for job in found.jobs) == 1


def test_the_same_workload_gives_the_same_nanoseconds():
    policy = PolicySettings(order="programs", hold="learned")
    assert facts(run(drawn(5), policy)) == facts(run(drawn(5), policy))


@pytest.mark.parametrize("order", ["fcfs", "vtc", "programs", "dlpm"])
def test_a_request_that_never_fits_is_refused_and_blocks_nobody(order: OrderName):
    small = [Workflow(f"s{number}", "a", number, (Turn(50, 5),)) for number in range(5)]
    giant = Workflow("giant", "b", 2, (Turn(TIGHT.num_blocks * TIGHT.block_size, 1),))
    workload = Workload(tuple(sorted([*small, giant], key=lambda one: one.arrival)))
    found = run(workload, PolicySettings(order=order))
    assert [job.name for job in found.refused] == ["giant"]
    assert len(found.jobs) == 5


def test_an_order_that_says_it_is_stable_and_is_not_is_found():
    class Liar(FairShares):
        stable = True

    class Once:
        def __init__(self, order: type) -> None:
            self.order = order

        def __call__(self):
            return self.order(), NoRetention()

    costs = TIGHT.costs()
    one, other = (
        simulate(drawn(0, rate=8), Once(Liar), TIGHT.shape(), costs, step_by_step=step) for step in (False, True)
    )
    with pytest.raises(SettingsError, match="says that it is stable and is not"):
        compare_schedules("liar", one, other)
    honest = [simulate(drawn(0, rate=8), Once(FirstComeFirstServed), TIGHT.shape(), costs) for _ in range(2)]
    compare_schedules("fcfs", *honest)


def test_a_lone_request_takes_its_steps():
    engine = EngineSettings(num_blocks=100, block_size=16, max_num_batched_tokens=64)
    linear = engine.linear
    found = run(Workload((Workflow("a", "", 5, (Turn(100, 3),)),)), PolicySettings(), engine)
    prompt = 2 * linear.step + 100 * linear.prefill  # 64 tokens, then 36 and the first output token
    decode = 2 * (linear.step + linear.decode) + linear.context * (100 + 101)
    job = found.jobs[0]
    assert job.first_token - job.arrival == prompt
    assert job.finished - job.first_token == decode
    assert found.counters.steps == 4


def test_a_weight_can_change_while_the_simulation_runs():
    workload = Workload(
        tuple(Workflow(f"{name}{number}", name, 0, (Turn(100, 20),)) for number in range(300) for name in "ab")
    )
    policy = PolicySettings(order="shares", weights={"a": 1, "b": 1})
    moment = 20 * SECOND

    def change(now: int, engines) -> None:
        assert now == moment
        engines[0].order.set_weight("b", 4)

    found = run(workload, policy, TIGHT.model_copy(update={"max_num_seqs": 2}), at=change, times=[moment])
    both = max(job.admitted for job in found.jobs if job.tenant == "b")
    late = [job.tenant for job in found.jobs if moment + SECOND < job.admitted <= both]
    early = [job.tenant for job in found.jobs if job.admitted < moment]
    assert len(early) > 60
    assert len(late) > 60
    assert early.count("b") / early.count("a") == pytest.approx(1, rel=0.1)
    assert late.count("b") / late.count("a") == pytest.approx(4, rel=0.1)


def test_a_cache_without_end_finds_what_the_trace_says_it_could():
    """One at a time; all but the last token of a prompt, and only full blocks, can be found."""
    workload = drawn(7, num=80, blocks=True)
    engine = EngineSettings(num_blocks=100_000, block_size=64, max_num_seqs=1, max_num_batched_tokens=100_000)
    seen: set[int] = set()
    expected = 0
    for workflow in workload.workflows:
        turn = workflow.turns[0]
        findable = 0
        for block in turn.blocks[: (turn.prompt - 1) // 64]:
            if block not in seen:
                break
            findable += 64
        expected += findable
        seen.update(turn.blocks[: turn.prompt // 64])
    found = run(workload, PolicySettings(), engine)
    assert sum(job.cached for job in found.jobs) == expected > 0
    assert expected / 64 <= hit_share(workload)[0]


def test_a_workflow_finds_its_context_where_it_was_held_and_not_where_it_was_pushed_out():
    """A long pause in which others fill the pool: fixed holds keep the context, the cache alone does not."""
    agent = Workflow("agent", "a", 0, (Turn(320, 16, 20 * SECOND, "tool"), Turn(368, 8)))
    crowd = [Workflow(f"c{number}", "b", SECOND * (1 + number), (Turn(300, 4),)) for number in range(15)]
    workload = Workload((agent, *crowd))
    lru = run(workload, PolicySettings(order="programs"))
    held = run(workload, PolicySettings(order="programs", hold="fixed", hold_seconds=60))
    cached = [next(job.cached for job in found.jobs if job.name == "agent:1") for found in (lru, held)]
    assert cached == [0, 320]
    assert held.counters.useful > 0
    assert held.counters.wasted == 0


def test_a_hold_is_given_up_where_a_running_request_needs_the_room():
    agent = Workflow("agent", "a", 0, (Turn(320, 16, 30 * SECOND, "tool"), Turn(368, 8)))
    grows = Workflow("grows", "b", SECOND, (Turn(16, 400),))
    policy = PolicySettings(order="programs", hold="fixed", hold_seconds=100)
    small = TIGHT.model_copy(update={"num_blocks": 30, "budget": 0.8})
    found = run(Workload((agent, grows)), policy, small)
    assert found.counters.preemptions == 0
    assert 0 < found.counters.reclaimed < 20  # tails first: the beginning stays
    assert 0 < next(job.cached for job in found.jobs if job.name == "agent:1") < 320


def test_no_hold_is_plain_caching():
    workload = drawn(9, rate=6)
    plain = run(workload, PolicySettings(order="programs"))
    nothing = run(workload, PolicySettings(order="programs", hold="fixed", hold_seconds=1e-10))
    assert plain.schedule == nothing.schedule


def test_blocks_of_the_engine_divide_those_of_the_trace():
    with pytest.raises(SettingsError, match="neither divides the"):
        run(drawn(0, blocks=True), PolicySettings(), TIGHT.model_copy(update={"block_size": 48}))
