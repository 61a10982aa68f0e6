"""Laws of pauses: what was seen, and what a trained model says of a workflow."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from burnish.core.errors import SettingsError
from burnish.events import EventDataset, EventForecaster, EventSequence, LogNormalMixture
from burnish.serve.forecasts import LEVELS, Forecasts
from burnish.serve.policies.laws import FEW
from burnish.serve.policies.pauses import POINTS, ForecastPauses, pause_events, read_pauses
from burnish.serve.policies.protocol import Hold, Job
from burnish.serve.policies.retention import SECOND, LearnedHold
from burnish.serve.settings import EngineSettings, PolicySettings, read_policy
from burnish.serve.simulate import simulate
from burnish.serve.traces import drawn_programs

MEDIANS = (0.2, 20.0)


def histories(num: int, seed: int, kind: int | None = None) -> EventDataset:
    """Workflows of one tool whose pauses are all short or all long."""
    draw, sequences = random.Random(seed), []
    for number in range(num):
        median = MEDIANS[draw.randrange(2) if kind is None else kind]
        turns = [("tool", median * draw.lognormvariate(0, 0.4)) for _ in range(7)]
        events = pause_events(turns)
        times, marks = np.array([time for time, _ in events]), np.array([int(mark == "last") for _, mark in events])
        sequences.append(EventSequence(times, marks, start=0.0, name=str(number)))
    return EventDataset(tuple(sequences), ("tool", "last"), unit="s")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    forecaster = EventForecaster(LogNormalMixture(2, num_components=4, hidden_size=16, num_layers=1))
    forecaster.fit(histories(150, 0), histories(40, 1), epochs=25, batch_size=16, lr=0.02)
    return forecaster.save_pretrained(tmp_path_factory.mktemp("pauses") / "model")


def after(model: Path, pauses: list[float]) -> ForecastPauses:
    laws = read_pauses(model)
    for seconds in pauses:
        laws.add("p", "tool", seconds)
    return laws


def test_events_of_a_workflow_are_its_pauses_one_after_the_other():
    assert pause_events([("a", 2.0), ("b", 3.0), ("", 0.0)]) == [(0.0, "a"), (2.0, "b"), (5.0, "last")]
    assert pause_events([("a", 2.0)]) == [(0.0, "last")]


def test_what_was_waited_conditions_the_law_as_the_forecaster_does(model: Path):
    laws, own = after(model, [0.3, 0.2]), EventForecaster.from_pretrained(model)
    law = laws.find("p", "tool")
    told = own.next_event(EventSequence(np.array([0.0, 0.3, 0.5]), np.zeros(3, np.int64), start=0.0))
    assert law is not None
    for elapsed in (0.0, 0.1, 0.2):
        for until in (0.3, 0.6, 2.0):
            left = told.survival(elapsed)
            assert law.chance(elapsed, until) == pytest.approx(
                told.cdf(until - elapsed, elapsed), abs=2 / POINTS / left
            )


def test_the_pauses_of_a_workflow_say_how_long_its_next_one_is(model: Path):
    short, long = (after(model, [median] * 3).find("p", "tool") for median in MEDIANS)
    assert short is not None
    assert long is not None
    assert short.quantiles([0.5])[0] < 1 < 5 < long.quantiles([0.5])[0]


def test_a_context_of_a_workflow_that_stays_away_is_not_held(model: Path):
    def held(median: float) -> float:
        rule = LearnedHold(lambda tokens: 2.0, pauses=read_pauses(model))
        for _ in range(3):
            rule.on_return(Job("x", program="p", tool="tool"), "tool", round(median * SECOND))
        return rule.on_finish(Job("x", program="p", tool="tool"), 100, room()) / SECOND

    assert 0.2 < held(MEDIANS[0]) < 2.0
    assert held(MEDIANS[1]) == 0


def room(now: float = 0.0) -> Any:
    return SimpleNamespace(now=round(now * SECOND), num_running=0)


def test_under_pressure_the_workflow_that_is_longer_away_goes_first(model: Path):
    rule = LearnedHold(lambda tokens: 2.0, pauses=read_pauses(model))
    for program, median in zip(("short", "long"), MEDIANS, strict=True):
        for _ in range(3):
            rule.on_return(Job("x", program=program), "tool", round(median * SECOND))
    holds = [Hold(Job("x", program=program, tool="tool"), 0, 9 * SECOND, 100) for program in ("short", "long")]
    assert [hold.job.program for hold in rule.on_pressure(holds, room(0.01))] == ["long", "short"]


def test_a_tool_that_the_model_does_not_know_has_the_law_of_what_was_seen(model: Path):
    laws = after(model, [0.2])
    assert laws.find("p", "other") is None
    for place in range(FEW + 1):
        laws.add("q", "other", float(place))
    law = laws.find("p", "other")
    assert law is not None
    assert law.quantiles([0.5]) == [50.0]
    laws.add("p", "other", 1.0)
    assert laws.find("p", "tool") is not None  # of all that was seen, because the history holds the other tool
    laws.forget("p")
    forgotten = laws.find("p", "tool")
    assert forgotten is not None
    assert len(forgotten.sorted) == POINTS


def test_forecasts_are_those_of_the_model(model: Path):
    made = Forecasts(after(model, [20.0] * 3))
    told = made.paused("p", "tool")
    assert told is not None
    assert len(told) == len(LEVELS)
    assert told[10] > 5
    assert made.returned("p", "tool", 20 * SECOND) is True
    made.over("p")
    again = made.paused("p", "tool")
    assert again is not None
    assert again[10] != told[10]


def test_a_policy_file_names_its_model_from_where_it_lies_and_serves(model: Path):
    file = model.parent / "agents.yaml"
    file.write_text(f"order: programs\nhold: learned\npauses: {model.name}\n")
    policy = read_policy(file)
    assert Path(policy.pauses) == model.resolve()
    assert isinstance(policy.pause_laws(), ForecastPauses)
    workload = drawn_programs(6, 1.0, lambda draw: ("tool", draw.choice(MEDIANS)), 0, mean_turns=3, first_prompt=200)
    engine = EngineSettings(num_blocks=200, block_size=100)
    costs = engine.costs()
    one, two = (
        simulate(workload, lambda: policy.objects(costs), engine.shape(), costs, step_by_step=single)
        for single in (False, True)
    )
    assert one.schedule == two.schedule
    assert len(one.jobs) == workload.num_requests


def test_what_is_no_model_of_pauses_is_said(tmp_path: Path):
    (tmp_path / "agents.yaml").write_text("order: programs\nhold: learned\npauses: nowhere\n")
    with pytest.raises(SettingsError, match=r"agents\.yaml, pauses: 'nowhere' holds no model of pauses"):
        read_policy(tmp_path / "agents.yaml")
    with pytest.raises(SettingsError, match="pauses needs hold: learned, but hold is fixed"):
        PolicySettings.parse({"order": "programs", "hold": "fixed", "pauses": "x"}, where="policy")


def test_a_model_of_other_times_than_seconds_is_refused(model: Path, tmp_path: Path):
    forecaster = EventForecaster.from_pretrained(model)
    forecaster.unit = "hours"
    with pytest.raises(SettingsError, match="fitted to times in hours"):
        read_pauses(forecaster.save_pretrained(tmp_path / "hours"))
