"""Holds: closed forms, hand-made durations, and what is given up first."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.serve.policies.laws import FEW, KEPT, Law
from burnish.serve.policies.protocol import Hold, Job
from burnish.serve.policies.retention import SECOND, FixedHold, LearnedHold, exponential_hold


def room(now: float = 0, running: int = 0) -> Any:
    return SimpleNamespace(now=round(now * SECOND), num_running=running)


def of(durations: list[float]) -> Law:
    law = Law()
    for duration in durations:
        law.add(duration)
    return law


def taught(pauses: list[float], *, tool: str = "t", recompute: float = 5.0) -> LearnedHold:
    rule = LearnedHold(lambda tokens: recompute)
    for pause in pauses:
        rule.on_return(Job("1"), tool, round(pause * SECOND))
    return rule


def test_the_hold_of_hand_made_durations_is_the_one_by_hand():
    law = of([1, 2, 10, 20])
    # what it lasts at most; tau = 0: 0; 1: B/4 - 1; 2: B/2 - 2; 10: 3B/4 - 10; 20: B - 20
    assert law.best_longest_hold(3.9) == 0
    assert law.best_longest_hold(4.0) == 0  # a tie goes to the shorter
    assert law.best_longest_hold(4.1) == 2
    assert law.best_longest_hold(31.9) == 2
    assert law.best_longest_hold(32.1) == 10
    assert law.best_longest_hold(40.1) == 20
    # what it lasts; 1: B/4 - 1; 2: B/2 - 7/4; 10: 3B/4 - 23/4; 20: B - 33/4
    assert law.best_hold(3.5) == 0
    assert law.best_hold(3.6) == 2
    assert law.best_hold(12.9) == 2
    assert law.best_hold(13.1) == 20
    law.add(math.inf)  # one of five that does not come back: 20 costs 53/5 for 4/5 of B
    assert law.best_hold(13.1) == 2
    assert law.best_hold(1000.0) == 20


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0, 200))
def test_no_other_hold_is_worth_more(durations: list[float], worth: float):
    def gain(tau: float) -> float:
        return sum(pause <= tau for pause in durations) / len(durations) * worth - tau

    def gain_of_what_it_lasts(tau: float) -> float:
        held = sum(min(pause, tau) for pause in durations) / len(durations)
        return sum(pause <= tau for pause in durations) / len(durations) * worth - held

    best = of(durations).best_longest_hold(worth)
    assert gain(best) >= max(gain(tau) for tau in [0.0, *durations]) - 1e-9
    best = of(durations).best_hold(worth)
    assert gain_of_what_it_lasts(best) >= max(map(gain_of_what_it_lasts, [0.0, *durations])) - 1e-9


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0, 100), st.floats(0, 100))
def test_the_more_it_is_worth_the_longer_it_is_held(durations: list[float], one: float, other: float):
    law = of(durations)
    assert law.best_hold(min(one, other)) <= law.best_hold(max(one, other)) + 1e-9
    assert law.best_longest_hold(min(one, other)) <= law.best_longest_hold(max(one, other))


@pytest.mark.parametrize(("rate", "worth"), [(1.0, 5.0), (0.5, 8.0), (2.0, 0.4), (1.0, 1.0)])
def test_exponential_pauses_have_the_closed_form(rate: float, worth: float):
    closed = exponential_hold(worth, rate)
    assert closed == pytest.approx(max(0.0, math.log(rate * worth) / rate) if rate * worth > 1 else 0.0)
    grid = [step / 1000 for step in range(20_000)]
    best = max(grid, key=lambda tau: (1 - math.exp(-rate * tau)) * worth - tau)
    assert closed == pytest.approx(best, abs=1e-3)


def test_many_exponential_pauses_come_to_the_closed_form():
    draw = random.Random(0)
    law = of([draw.expovariate(0.5) for _ in range(KEPT)])
    assert law.best_longest_hold(20.0) == pytest.approx(exponential_hold(20.0, 0.5), rel=0.2)
    # (1 - exp(-rate tau)) (B - 1 / rate): where it costs what it lasts, all or nothing
    assert law.best_hold(20.0) == law.sorted[-1]
    assert law.best_hold(1.0) < 0.1


def test_the_published_rule_pays_the_longest_time():
    pauses = [1.0] * 100 + [9.0] * 100
    rules = [LearnedHold(lambda tokens: 11.0, charge=charge) for charge in ("expected", "longest")]
    for rule in rules:
        for pause in pauses:
            rule.on_return(Job("1"), "t", round(pause * SECOND))
    # at 9 s: 11 - 5, and 11 - 9; at 1 s: 11/2 - 1 for both
    assert [rule.on_finish(Job("1", tool="t"), 1, room()) for rule in rules] == [9 * SECOND, SECOND]


def test_before_pauses_were_seen_they_are_exponential_with_a_second():
    rule = LearnedHold(lambda tokens: tokens / 1000)
    hold = rule.on_finish(Job("1", tool="t"), 5000, room())
    assert hold == round(math.log(5) * SECOND)
    assert rule.on_finish(Job("1", tool="t"), 900, room()) == 0


def test_a_tool_with_few_pauses_has_those_of_all():
    rule = taught([3.0] * (FEW + 1), tool="known")
    rule.on_return(Job("1"), "rare", 9 * SECOND)
    assert rule.on_finish(Job("1", tool="known"), 1, room()) == 3 * SECOND
    assert rule.on_finish(Job("1", tool="rare"), 1, room()) == 3 * SECOND
    for _ in range(FEW):
        rule.on_return(Job("1"), "rare", SECOND)
    assert rule.on_finish(Job("1", tool="rare"), 1, room()) == SECOND


def test_pauses_of_long_ago_are_forgotten():
    law = of([5.0] * KEPT + [1.0] * KEPT)
    assert law.sorted == [1.0] * KEPT


def test_the_last_turn_is_not_held():
    assert taught([1.0] * 200).on_finish(Job("1", tool=""), 1000, room()) == 0
    assert FixedHold().on_finish(Job("1", tool=""), 1000, room()) == 0
    assert FixedHold().on_finish(Job("1", tool="t"), 1000, room()) == 2 * SECOND


def test_a_wait_without_context_makes_holds_worth_more():
    rule = taught([4.0] * 200, recompute=1.0)
    assert rule.on_finish(Job("1", tool="t"), 1, room()) == 0
    rule.on_admit(Job("2", turn=1, kept=True), 60 * SECOND)
    assert rule.on_finish(Job("1", tool="t"), 1, room()) == 0
    rule.on_admit(Job("2", turn=1, kept=False), 60 * SECOND)
    assert rule.on_finish(Job("1", tool="t"), 1, room()) == 4 * SECOND


def test_computing_again_holds_up_all_who_run():
    rule = taught([4.0] * 200, recompute=1.0)
    assert rule.worth(1, 3) == 4.0
    assert rule.on_finish(Job("1", tool="t"), 1, room(running=3)) == 0
    assert rule.on_finish(Job("1", tool="t"), 1, room(running=4)) == 4 * SECOND


def test_turns_that_say_how_many_are_to_come_weigh_the_wait():
    """All workflows have ten turns: turns had and turns to come correlate by -1. Of one turn or many: less."""
    rule = LearnedHold(lambda tokens: 0.0)
    rule.on_admit(Job("1", turn=1), 10 * SECOND)
    assert rule.worth(1, 0) == 10.0  # nothing has finished yet
    for number in range(20):
        rule.on_finish(Job(str(number), turn=9), 1, room())
    assert rule.worth(1, 0) == pytest.approx(10.0)
    for number in range(20):
        rule.on_finish(Job(str(number), turn=random.Random(number).randrange(40)), 1, room())
    pairs = [
        (k, n - k) for n in [10] * 20 + [random.Random(i).randrange(40) + 1 for i in range(20)] for k in range(1, n + 1)
    ]
    mean = [sum(pair[side] for pair in pairs) / len(pairs) for side in (0, 1)]
    spread = [sum((pair[side] - mean[side]) ** 2 for pair in pairs) for side in (0, 1)]
    together = sum((pair[0] - mean[0]) * (pair[1] - mean[1]) for pair in pairs)
    assert rule.worth(1, 0) == pytest.approx(-10 * together / math.sqrt(spread[0] * spread[1]))


def test_under_pressure_what_is_worth_least_for_its_room_goes_first():
    rule = taught([1.0] * 150 + [50.0] * 150, recompute=5.0)
    small = Hold(Job("small", tool="t"), 0, 2 * SECOND, 100)
    large = Hold(Job("large", tool="t"), 0, 2 * SECOND, 10_000)
    waits = Hold(Job("waits", tool="t"), 0, 2 * SECOND, 10_000, returned=True)
    assert rule.on_pressure([small, waits, large], room(0.5)) == [large, small, waits]
    # after 1.5 s a return within the hold is hopeless, for whatever room
    late = Hold(Job("late", tool="t"), -SECOND, SECOND, 100)
    assert rule.on_pressure([small, late, large], room(0.5))[0] is late
