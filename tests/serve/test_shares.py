"""Fair shares: VTC as its authors' program has it, trees, weights, and what nobody may gain or lose."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.serve.policies.protocol import Job
from burnish.serve.policies.shares import UNIT, DeficitLongestPrefix, FairShares, VirtualTokenCounter
from serve_runs import ROOM, backlog, serve

REFERENCE = json.loads((Path(__file__).parent.parent / "reference/serve/vtc_decisions.json").read_text())


def served(order: FairShares, path: str) -> int:
    return order.share(tuple(path.split("/"))).served


@pytest.mark.parametrize("run", REFERENCE, ids=range(len(REFERENCE)))
@pytest.mark.parametrize("kind", [FairShares, VirtualTokenCounter])
def test_equal_weights_decide_and_count_as_the_released_program_of_vtc(run: dict, kind: type[FairShares]):
    prompt_price, output_price = run["prices"]
    order = kind(prompt_price=prompt_price, output_price=output_price, lift_when_idle=False)
    jobs: dict[int, Job] = {}
    for what, *facts in run["operations"]:
        if what == "submit":
            number, client, prompt = facts
            jobs[number] = Job(str(number), f"client{client}", prompt=prompt)
            order.on_submit(jobs[number], 0)
        elif what == "admit":
            for number in facts[0]:
                assert order.head(ROOM) is jobs[number]
                order.on_leave(jobs[number], 0)
                order.on_scheduled(jobs[number], jobs[number].prompt, 0)
        elif what == "decode":
            for number in facts[0]:
                order.on_scheduled(jobs[number], 0, 1)
        elif what == "finish":
            for number in facts[0]:
                order.on_finish(jobs[number], 0)
        else:
            counted = {f"client{client}": value * UNIT for client, value in facts[0].items()}
            assert {name: share.runtime for name, share in order.root.children.items()} == counted


def test_one_child_per_node_is_a_flat_tree():
    flat = FairShares({"a": 1, "b": 2})
    deep = FairShares({"a": 1, "b": 2, "a/x": 5, "a/x/y": 3, "b/x": 0.5})
    one = [job.name for job in serve(flat, backlog({"a": 30, "b": 60}))]
    two = [job.name for job in serve(deep, backlog({"a/x/y": 30, "b/x/y": 60}))]
    assert [name.split("/")[0].split("-")[0] for name in one] == [name.split("/")[0] for name in two]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0)])
def test_a_subtree_has_its_share_however_many_tenants_are_in_it(weights: tuple[float, float]):
    prompt, output, places = 30, 20, 6
    order = FairShares({"many": weights[0], "one": weights[1]})
    crowd = {f"many/t{number}": 40 for number in range(10)} | {"one/alone": 1200}
    bound = 2 * max(prompt, 2 * places * (prompt + output)) / min(weights)
    gaps = []
    for _ in serve(order, backlog(crowd, prompt=prompt, output=output), places=places):
        if order.share(("many",)).waiting and order.share(("one",)).waiting:
            gaps.append(abs(served(order, "many") / weights[0] - served(order, "one") / weights[1]))
    assert len(gaps) > 400
    assert max(gaps) <= bound


def test_within_a_subtree_tenants_are_within_the_bound_as_well():
    order = FairShares()
    jobs = backlog({"org/a": 200, "org/b": 200, "org/c": 200}, prompt=10, output=30)
    gap = 0
    for _ in serve(order, jobs, places=5):
        shares = list(order.share(("org",)).children.values())
        if all(share.waiting for share in shares):
            gap = max(gap, max(share.served for share in shares) - min(share.served for share in shares))
    assert 0 < gap <= 2 * max(10, 2 * 5 * 40)


def test_weights_are_realised_within_five_percent():
    order = FairShares({"a": 1, "b": 2, "c": 4})
    begun = {}
    for _ in serve(order, backlog({"a": 4000, "b": 4000, "c": 4000}), places=7):
        total = sum(served(order, name) for name in "abc")
        if total > 100_000:
            begun = {name: served(order, name) / total for name in "abc"}
            break
    assert begun == pytest.approx({"a": 1 / 7, "b": 2 / 7, "c": 4 / 7}, rel=0.05)


def test_a_late_joiner_has_its_share_from_now_on_and_nothing_for_the_past():
    order = FairShares()
    early = backlog({"early": 600})
    late = [(300, job, output) for _, job, output in backlog({"late": 600})]
    at_joining, gaps = None, []
    for _ in serve(order, early + late, places=4):
        node = order.share(("late",))
        if node.waiting and order.share(("early",)).waiting:
            at_joining = at_joining or (served(order, "early"), served(order, "late"))
            since = served(order, "early") - at_joining[0], served(order, "late") - at_joining[1]
            gaps.append(abs(since[0] - since[1]))
    assert at_joining is not None
    assert at_joining[0] > 4000  # so much was served before
    assert max(gaps) <= 2 * max(20, 2 * 4 * 30)
    assert len(gaps) > 500


def test_who_begins_to_wait_alone_is_lifted_to_who_waited_last():
    order = FairShares()
    hungry, quiet = Job("1", "hungry", prompt=500), Job("2", "quiet", prompt=10)
    order.on_submit(hungry, 0)
    order.on_leave(hungry, 0)
    order.on_scheduled(hungry, 500, 0)
    order.on_submit(quiet, 1)
    assert order.share(("quiet",)).runtime == 500 * UNIT
    published = FairShares(lift_when_idle=False)
    published.on_submit(hungry, 0)
    published.on_leave(hungry, 0)
    published.on_submit(quiet, 1)
    assert published.share(("quiet",)).runtime == 0


def test_a_weight_that_changes_holds_from_then_on():
    order = FairShares({"a": 1, "b": 1})
    before = after = None
    for _ in serve(order, backlog({"a": 3000, "b": 3000}), places=4):
        total = served(order, "a") + served(order, "b")
        if total > 40_000 and before is None:
            before = (served(order, "a"), served(order, "b"))
            order.set_weight("b", 3)
        if total > 140_000:
            after = (served(order, "a"), served(order, "b"))
            break
    assert before is not None and after is not None
    assert before[1] / before[0] == pytest.approx(1, rel=0.05)
    assert (after[1] - before[1]) / (after[0] - before[0]) == pytest.approx(3, rel=0.05)


def test_the_server_is_never_idle_while_somebody_waits():
    order = FairShares({"a": 1, "b": 100})
    running: list[int] = []
    jobs = backlog({"a": 50, "b": 1})
    rounds = sum(1 for _ in serve(order, jobs, places=4, each_round=lambda number: running.append(number)))
    assert rounds == 51
    assert len(running) == -(-51 // 4) * 10  # 4 places, 10 rounds a job, nothing in between


def test_charging_tokens_together_is_charging_them_one_by_one():
    one, many = FairShares({"a": 0.7, "a/b": 3.1}), FairShares({"a": 0.7, "a/b": 3.1})
    jobs = [Job("1", "a/b", prompt=7) for _ in range(2)]
    for order, job in zip((one, many), jobs, strict=True):
        order.on_submit(job, 0)
        order.on_leave(job, 0)
    one.on_scheduled(jobs[0], 0, 12_345)
    for _ in range(12_345):
        many.on_scheduled(jobs[1], 0, 1)
    assert one.share(("a",)).runtime == many.share(("a",)).runtime
    assert one.share(("a", "b")).runtime == many.share(("a", "b")).runtime


def test_what_was_not_computed_is_given_back_and_computing_again_costs_nobody():
    order = FairShares()
    job = Job("1", "a", prompt=100, cached=20)
    order.on_submit(job, 0)
    order.on_leave(job, 0)
    order.on_scheduled(job, 80, 0)
    order.on_preempted(job, 50)  # 20 cached and 30 of its own
    assert served(order, "a") == 30
    job.preempted = True
    order.on_submit(job, 1)
    order.on_leave(job, 1)
    order.on_scheduled(job, 100, 0)  # all of it, because the cache has lost it
    assert served(order, "a") == 80
    order.on_preempted(job, 120)  # with 20 output tokens
    order.on_submit(job, 2)
    order.on_leave(job, 2)
    order.on_scheduled(job, 100, 0)
    assert served(order, "a") == 80


def test_an_unknown_tenant_is_in_the_default_group():
    order = FairShares({"known": 3})
    order.on_submit(Job("1", "stranger/x"), 0)
    order.on_submit(Job("2", "known/y"), 0)
    order.on_submit(Job("3", ""), 0)
    assert order.strangers == {"stranger/x"}
    assert set(order.root.children) == {"default", "known"}


def test_names_of_any_script_are_names():
    order = FairShares({"институт": 2, "学校/👩‍🔬": 1})
    for name in ("институт", "学校/👩‍🔬"):
        order.on_submit(Job(name, name), 0)
    assert not order.strangers
    assert len(order) == 2


def test_a_tenant_that_is_also_a_parent_stands_among_its_children():
    order = FairShares()
    jobs = [(0, job, output) for _, job, output in backlog({"a/b": 300, "a": 300})]
    for _ in serve(order, jobs, places=2):
        own, child = order.share(("a", "itself")), order.share(("a", "b"))
        if own.waiting and child.waiting:
            assert abs(own.served - child.served) <= 2 * 2 * 2 * 30


def test_workflows_that_do_not_come_back_are_forgotten():
    """None of them says that it has ended; two run at a time."""
    order, running, most = FairShares(by_program=True), [], 0
    for number in range(3000):
        job = Job(f"r{number}", f"t{number % 2}", f"p{number}", prompt=1 + number * 7 % 50, tool="t")
        order.on_submit(job, 0)
        while len(running) > 1:
            order.on_finish(running.pop(0), 0)
        head = order.head(ROOM)
        assert head is not None
        order.on_leave(head, 0)
        order.on_scheduled(head, head.prompt, 0)
        running.append(head)
        most = max(most, sum(len(tenant.children) for tenant in order.root.children.values()))
    assert most < 150
    assert len(order._leaves) < 150


def test_a_workflow_that_pauses_ahead_of_others_does_not_come_back_as_a_new_one():
    order = FairShares(by_program=True)
    ahead, behind = Job("a", "t", "ahead", prompt=100, tool="t"), Job("b", "t", "behind", prompt=10, tool="t")
    for job in (ahead, behind):
        order.on_submit(job, 0)
    order.on_leave(ahead, 0)
    order.on_scheduled(ahead, 100, 0)
    order.on_finish(ahead, 0)
    order.on_submit(Job("a2", "t", "ahead", 1, prompt=10), 0)
    assert order.share(("t", "program ahead")).runtime == 100 * UNIT
    assert order.head(ROOM) is behind


def test_workflows_of_a_tenant_are_forgotten_with_their_last_turn():
    order = FairShares(by_program=True)
    for number in range(20):
        job = Job(f"{number}", "a", program=f"p{number}")
        order.on_submit(job, 0)
        order.on_leave(job, 0)
        order.on_scheduled(job, 1, 0)
        order.on_finish(job, 0)
    assert not order.share(("a",)).children
    assert list(order) == []


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(1, 50)), max_size=120))
def test_the_head_is_always_the_smallest_of_all_who_wait(operations: list[tuple[int, int, int]]):
    weights = {f"t{tenant}": 0.3 + tenant for tenant in range(5)}
    order, waiting, running = FairShares(weights), [], []
    for number, (what, tenant, size) in enumerate(operations):
        if what <= 1:
            job = Job(str(number), f"t{tenant}", prompt=size)
            order.on_submit(job, number)
            waiting.append(job)
        elif what == 2 and waiting:
            job = order.head(ROOM)
            assert job is not None
            runtimes = {one.tenant: order.share((one.tenant,)).runtime for one in waiting}
            assert runtimes[job.tenant] == min(runtimes.values())
            order.on_leave(job, number)
            order.on_scheduled(job, job.prompt, 0)
            waiting.remove(job)
            running.append(job)
        elif what == 3 and running:
            order.on_scheduled(running[0], 0, size)
        elif what == 4 and running:
            job = running.pop()
            order.on_preempted(job, size % job.prompt)
            job.preempted = True
            order.on_submit(job, number)
            waiting.append(job)
        elif what == 5 and waiting:
            job = waiting.pop(size % len(waiting))
            order.on_leave(job, number)  # given up
            order.on_finish(job, number)
    assert len(order) == len(waiting)
    assert set(order) == set(waiting)


def test_deficits_keep_waiting_tenants_within_two_quanta_and_two_of_the_largest_cost():
    quantum, prompt, output, places = 64, 20, 10, 3
    order = DeficitLongestPrefix(quantum)
    spent = {"a": 0, "b": 0}
    left: dict[str, int] = {"a": 300, "b": 300}
    largest = max(prompt, 2 * places * (prompt + output))
    for job in serve(order, backlog(left, prompt=prompt, output=output), places=places):
        left[job.tenant] -= 1
        spent = {name: spent[name] + (prompt + 2 * output) * (job.tenant == name) for name in spent}
        if all(left.values()):
            assert abs(spent["a"] - spent["b"]) <= 2 * (largest + quantum)


def test_deficits_prefer_the_longest_cached_beginning():
    order = DeficitLongestPrefix()
    jobs = [Job(str(number), "a", prompt=100) for number in range(3)]
    for job in jobs:
        order.on_submit(job, 0)
    room: Any = SimpleNamespace(cached=lambda job: {"0": 10, "1": 90, "2": 30}[job.name])
    assert order.head(room) is jobs[1]
