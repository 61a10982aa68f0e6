"""Limits in which the simulator is a queue whose mean wait is known."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from burnish.serve.costs import Linear
from burnish.serve.engine import EngineShape
from burnish.serve.policies.queues import FirstComeFirstServed
from burnish.serve.policies.retention import NoRetention
from burnish.serve.simulate import Simulation, simulate
from burnish.serve.workload import Turn, Workflow, Workload

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
NUM = 500_000
"""Requests; each is an arrival and an end."""
LOAD = 0.6


def served(turns: list[Turn], mean: float, places: int, costs: Linear) -> Simulation:
    """Poisson arrivals at `LOAD` of a server that needs `mean` nanoseconds for a request."""
    draw, time, workflows = random.Random(1), 0.0, []
    for number, turn in enumerate(turns):
        time += draw.expovariate(LOAD / mean)
        workflows.append(Workflow(f"{number}", "", round(time), (turn,)))
    shape = EngineShape(10**9, 10**6, max_num_batched_tokens=10**9, max_num_seqs=places, prefix_caching=False)
    return simulate(Workload(tuple(workflows)), lambda: (FirstComeFirstServed(), NoRetention()), shape, costs)


def test_one_place_and_exponential_prompts_are_m_m_1():
    """W = 1 / (mu - lambda); the mean wait is lambda / (mu (mu - lambda))."""
    draw, mean = random.Random(0), 10_000
    turns = [Turn(max(1, round(draw.expovariate(1 / mean))), 1) for _ in range(NUM)]
    found = served(turns, mean, 1, Linear(prefill=1))
    wait = fmean(job.admitted - job.arrival for job in found.jobs)
    assert wait == pytest.approx(LOAD / (1 - LOAD) * mean, rel=0.02)
    assert found.area == sum(job.finished - job.arrival for job in found.jobs)


def test_one_place_and_equal_prompts_are_m_d_1():
    """The mean wait is rho / (2 mu (1 - rho))."""
    mean = 10_000
    found = served([Turn(mean, 1)] * NUM, mean, 1, Linear(prefill=1))
    wait = fmean(job.admitted - job.arrival for job in found.jobs)
    assert wait == pytest.approx(LOAD / (2 * (1 - LOAD)) * mean, rel=0.02)


def test_places_for_all_and_steps_by_their_number_share_the_processor():
    """A token of n requests takes n times as long: W = E[S] / (1 - rho), whatever the law of the answers.

    Who comes waits for the end of the step, half a token's time on average and more where many share, which the mean
    answer of 500 tokens makes small.
    """
    draw, tokens = random.Random(0), 500
    turns = [Turn(1, max(1, round(draw.expovariate(1 / tokens)))) for _ in range(NUM // 5)]
    mean = fmean(turn.output for turn in turns) * 1000
    found = served(turns, mean, 10**6, Linear(prefill=1000, decode=1000))
    assert fmean(job.finished - job.arrival for job in found.jobs) == pytest.approx(mean / (1 - LOAD), rel=0.02)
