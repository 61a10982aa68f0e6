"""One contract for histories: cuts lose nothing, clocks do not matter, and every way to ask gives the same answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest_events import double, small
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import DataError
from burnish.events import (
    THP,
    EventDataset,
    EventForecaster,
    EventSequence,
    ExponentialHawkes,
    LogNormalMixture,
    SmurfTHP,
)
from burnish.events.batches import window_begin, windows
from burnish.events.evaluation import evaluate
from burnish.events.hawkes import PRESETS, simulate_hawkes
from burnish.events.model import EventModel, TrainingStatistics

NAMES = ("0", "1", "2")
LEVELS = [0.05, 0.5, 0.9]


def small_double(model) -> EventModel:
    net = double(model(3) if model is ExponentialHawkes else small(model))
    net.window, net.context = 12, 4
    return net


@pytest.fixture(scope="module")
def asked() -> EventForecaster:
    """A forecaster with drawn float32 weights and short windows."""
    model = double(small(SmurfTHP)).float()
    model.window, model.context = 12, 4
    forecaster = EventForecaster(model)
    forecaster.mark_names = NAMES
    return forecaster


def log_likelihood(model: EventModel, *sequences: EventSequence) -> float:
    packed = model.pack(EventDataset(sequences, NAMES))
    total = 0.0
    with torch.no_grad():
        for index in range(len(packed)):
            histories = model.histories(packed.batch([index]))
            terms = EventModel.negative_log_likelihood(model, histories)
            total -= float(sum(terms.values())) * max(len(histories.gap), 1)
    return total


@st.composite
def histories(draw, low: int = 3, high: int = 40) -> EventSequence:
    n = draw(st.integers(low, high))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    times = np.cumsum(rng.exponential(size=n))
    start = draw(st.sampled_from([None, 0.0]))
    end = draw(st.sampled_from([None, float(times[-1]) + 0.7]))
    return EventSequence(times, rng.integers(0, 3, n), start=start, end=end, name="s")


# -- cuts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [THP, SmurfTHP, LogNormalMixture, ExponentialHawkes])
def test_likelihood_of_the_whole_is_that_of_the_parts_for_every_cut(model) -> None:
    net = small_double(model)
    [whole] = simulate_hawkes(PRESETS["hawkes3"], 1, num_events=30, seed=2).sequences
    whole = replace(whole, end=float(whole.times[-1]) + 1.0)
    expected = log_likelihood(net, whole)
    for stop in range(1, len(whole) + 1):
        parts = whole.head(stop), replace(whole, context=stop)
        assert log_likelihood(net, *parts) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=25)
@given(whole=histories(), share=st.floats(0.0, 1.0))
def test_likelihood_is_additive_over_a_cut_at_any_time(whole: EventSequence, share: float) -> None:
    net = small_double(SmurfTHP)
    last = float(whole.times[-1]) if whole.end is None else whole.end
    time = float(whole.times[0]) + share * (last - float(whole.times[0]))
    head, tail = whole.cut(min(time, last))
    assert log_likelihood(net, head, tail) == pytest.approx(log_likelihood(net, whole), abs=1e-9)


def test_scores_after_a_cut_are_those_of_the_whole_sequence(asked: EventForecaster) -> None:
    data = simulate_hawkes(PRESETS["hawkes3"], 3, num_events=30, seed=2)
    whole = evaluate(asked.model, data, bootstrap=0).events
    past, future = (evaluate(asked.model, part, bootstrap=0).events for part in data.split_by_time((0.5, 0.5)))
    assert len(past["pit"]) + len(future["pit"]) == len(whole["pit"])
    for name in ("pit", "loglik_time", "crps"):
        parts = np.concatenate([past[name], future[name]])
        assert np.sort(parts) == pytest.approx(np.sort(whole[name]), abs=1e-5)


def test_a_target_observed_after_a_wait_is_scored_given_the_wait(asked: EventForecaster) -> None:
    [whole] = simulate_hawkes(PRESETS["hawkes3"], 1, num_events=8, seed=2).sequences
    wait = 0.25 * whole.gaps[7]
    _, tail = whole.cut(float(whole.times[6] + wait))
    events = evaluate(asked.exact, EventDataset((tail,), NAMES), bootstrap=0).events
    law = asked.next_event(whole.head(7))
    assert events["pit"].tolist() == pytest.approx([law.cdf(whole.gaps[7] - wait, elapsed=wait)], abs=1e-9)


def test_targets_observed_before_their_context_are_refused() -> None:
    with pytest.raises(DataError, match="observed since 1"):
        EventSequence([0.0, 2.0, 3.0], [0, 0, 0], context=2, since=1.0)


# -- clocks ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(history=histories(), shift=st.floats(-1e6, 1e6), elapsed=st.floats(0, 3))
def test_forecasts_do_not_depend_on_the_origin(asked, history: EventSequence, shift: float, elapsed: float) -> None:
    moved = replace(
        history,
        times=history.times + shift,
        start=None if history.start is None else history.start + shift,
        end=None,
    )
    found = asked.next_event(moved).quantile(LEVELS, elapsed)
    assert found == pytest.approx(asked.next_event(history).quantile(LEVELS, elapsed), abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(history=histories(), unit=st.floats(1e-6, 1e9))
def test_forecasts_do_not_depend_on_the_unit(asked, history: EventSequence, unit: float) -> None:
    scaled = EventForecaster(asked.model.__class__(**asked.model.settings))
    scaled.model.load_state_dict(asked.model.state_dict())
    scaled.model.window, scaled.model.context = asked.model.window, asked.model.context
    scaled.model.statistics = replace(TrainingStatistics(), mean_gap=unit)
    start = None if history.start is None else 0.0
    found = scaled.next_event(replace(history, times=history.times * unit, start=start, end=None)).quantile(LEVELS)
    assert found / unit == pytest.approx(asked.next_event(history).quantile(LEVELS), abs=1e-6)


def test_a_fit_does_not_depend_on_where_the_clock_starts(hawkes: EventDataset) -> None:
    moved = hawkes.with_sequences(
        replace(s, times=np.floor(s.times * 2**30) / 2**30 + 2.0**20, start=2.0**20) for s in hawkes.sequences
    )
    here = moved.with_sequences(replace(s, times=s.times - 2.0**20, start=0.0) for s in moved.sequences)
    weights = []
    for dataset in (here, moved):
        forecaster = EventForecaster(small(SmurfTHP))
        forecaster.fit(dataset, dataset, epochs=1)
        weights.append(forecaster.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# -- ways to ask -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(history=histories(), others=st.lists(histories(), max_size=3))
def test_what_else_is_in_a_file_changes_no_bit(asked, history: EventSequence, others: list[EventSequence]) -> None:
    alone = asked.next_events(EventDataset((history,), NAMES))
    among = asked.next_events(EventDataset((*others, history), NAMES))
    assert all(torch.equal(alone.condition[name][0], among.condition[name][-1]) for name in alone.condition)


@settings(deadline=None, max_examples=25)
@given(history=histories())
def test_stream_file_cut_and_evaluation_say_the_same(asked, history: EventSequence) -> None:
    stream = asked.stream(start=history.start)
    for time, mark in zip(history.times[:-1], history.marks[:-1], strict=True):
        stream.observe(float(time), int(mark))
    gap = float(history.gaps[-1])
    before = history.head(len(history) - 1)
    expected = stream.cdf(gap)
    assert asked.next_event(before).cdf(gap) == pytest.approx(expected, abs=1e-9)
    tail = EventDataset((history.between(len(history) - 1, len(history)),), NAMES)
    assert evaluate(asked.exact, tail, bootstrap=0).events["pit"].tolist() == pytest.approx([expected], abs=1e-9)
    assert stream.quantile(0.9, 0.5) == pytest.approx(asked.next_event(before).quantile(0.9, 0.5), abs=1e-9)


def test_a_window_begins_where_its_layout_says() -> None:
    for length in range(1, 200):
        piece = windows([length], 24, 8)[-1]
        assert piece.begin == window_begin(length - 1, 24, 8)


def test_a_known_first_wait_is_seen_and_one_at_the_start_is_none(asked: EventForecaster) -> None:
    times, marks = np.array([1.5, 2.0]), np.array([0, 1])
    waits = [asked.next_event(EventSequence(times, marks, start=s)).quantile(0.5) for s in (None, 0.0, 1.5)]
    assert waits[0] != waits[1]
    assert waits[0] == waits[2]
    model = small_double(LogNormalMixture)
    at_start = EventSequence(times, marks, start=1.5)
    assert log_likelihood(model, at_start) == log_likelihood(model, replace(at_start, start=None))
