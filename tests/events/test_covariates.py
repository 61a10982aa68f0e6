"""What is known beside times and types: the calendar, and columns of numbers."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_events import double, small

from burnish.core.errors import BurnishError, DataError, SettingsError
from burnish.events import THP, EventDataset, EventForecaster, EventSequence, LogNormalMixture, PlaceMixture, SmurfTHP
from burnish.events.batches import calendar
from burnish.events.model import TrainingStatistics
from burnish.events.sequence import NANOSECONDS

DAY = 86400.0


def switching(count: int, seed: int) -> EventDataset:
    """Waits of 0.2 or 2, by a covariate known at the event before."""
    rng = np.random.default_rng(seed)
    sequences = []
    for name in range(count):
        state = rng.integers(0, 2, 40)
        gaps = rng.exponential(np.where(state, 2.0, 0.2))
        times = np.cumsum(np.append(0.0, gaps[:-1]))
        covariates = np.stack([100.0 + 50 * state, rng.normal(size=40)], axis=1).astype(np.float64)
        sequences.append(EventSequence(times, np.zeros(40, int), covariates=covariates, name=str(name)))
    return EventDataset(tuple(sequences), ("event",))


def test_the_calendar_is_the_angle_in_the_period() -> None:
    found = calendar(np.array([0.0, 6.0, 12.0]), 0, 24.0, dates=False)
    assert found == pytest.approx(np.array([[1, 0, 1, 0], [0, 1, -1, 0], [-1, 0, 1, 0]]), abs=1e-12)


def test_the_calendar_of_a_date_does_not_depend_on_its_epoch() -> None:
    moment = 1_700_000_000.123456789
    whole = 1_700_000_000 * NANOSECONDS + 123_456_789
    own, other = whole, whole - 86_399_999_999_123
    expected = calendar(np.zeros(1), own, DAY, dates=True)
    assert calendar(np.array([(own - other) / NANOSECONDS]), other, DAY, dates=True) == pytest.approx(
        expected, abs=1e-9
    )
    assert calendar(np.array([moment]), 0, DAY, dates=False) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("model", [SmurfTHP, THP, LogNormalMixture])
def test_a_covariate_that_matters_is_learned(model) -> None:
    parts = switching(40, 0), switching(10, 1), switching(20, 2)
    scores = []
    for extra in ({}, {"num_covariates": 2}):
        forecaster = EventForecaster(small(model, num_marks=1, **extra))
        data = parts if extra else [p.with_sequences(replace(s, covariates=None) for s in p) for p in parts]
        forecaster.fit(data[0], data[1], epochs=6, batch_size=8, lr=1e-2)
        scores.append(forecaster.score(data[2], bootstrap=0).scores["loglik"])
    assert scores[1] > scores[0] + 0.2


@pytest.mark.parametrize("model", [SmurfTHP, PlaceMixture])
def test_a_stream_sees_the_calendar_and_the_covariates_as_a_file_does(model, places: EventDataset) -> None:
    few = {"num_recent": 3} if model is PlaceMixture else {}  # no more than a stream keeps over a restart
    net = double(small(model, num_marks=2, periods=(5.0, 11.0), num_covariates=1, **few))
    net.statistics = TrainingStatistics(covariate_mean=(2.0,), covariate_scale=(3.0,))
    net.window, net.context = 12, 4
    forecaster = EventForecaster(net)
    forecaster.mark_names = places.mark_names
    sequence = places.sequences[0]
    known = np.arange(len(sequence))[:, None] * 0.1
    history = replace(sequence, covariates=known)
    assert history.locations is not None
    stream = forecaster.stream(start=history.start)
    for stop, (time, mark) in enumerate(zip(history.times, history.marks, strict=True), 1):
        x, y = history.locations[stop - 1]
        stream.observe(float(time), int(mark), location=(float(x), float(y)) if net.has_location else None,
                       covariates=[float(known[stop - 1, 0])])  # fmt: skip
        seen = history if net.has_location else replace(history, locations=None)
        batched = forecaster.next_event(seen.head(stop)).many.condition
        for name, value in stream.next_event().many.condition.items():
            assert torch.allclose(value.double(), batched[name].double(), atol=1e-9), name


def test_a_day_is_the_same_wherever_the_clock_starts() -> None:
    """A shift by whole days changes nothing, one by half a day does."""
    net = double(small(SmurfTHP, num_marks=1, periods=(24.0,)))
    forecaster = EventForecaster(net)
    [base] = switching(1, 3).sequences
    base = replace(base, covariates=None)

    def median(shift: float) -> float:
        return forecaster.next_event(replace(base, times=base.times + shift)).quantile(0.5)

    assert median(240.0) == pytest.approx(median(0.0), rel=1e-9)
    assert abs(median(12.0) / median(0.0) - 1) > 1e-4


def test_wrong_covariates_are_refused() -> None:
    data = switching(4, 0)
    with pytest.raises(SettingsError, match="num_covariates=2"):
        EventForecaster(small(SmurfTHP, num_marks=1)).fit(data, data, epochs=1)
    forecaster = EventForecaster(double(small(SmurfTHP, num_marks=1, num_covariates=2)))
    with pytest.raises(DataError, match="--covariates"):
        forecaster.next_event(replace(data.sequences[0], covariates=None))
    with pytest.raises(DataError, match="0 covariates are given"):
        forecaster.stream().observe(1.0, 0)
    with pytest.raises(DataError, match="finite covariates"):
        replace(data.sequences[0], covariates=np.full((40, 2), np.nan))
    with pytest.raises(SettingsError, match="positive and finite"):
        small(SmurfTHP, periods=(0.0,))


def test_a_log_with_a_column_and_the_calendar_is_one_command(tmp_path: Path) -> None:
    from test_command import SMALL, call

    rng = np.random.default_rng(0)
    moment, rows = datetime(2024, 5, 1), ["time,mark,load"]
    for i in range(400):
        moment += timedelta(seconds=float(rng.exponential(600)))
        rows.append(f"{moment.isoformat()},{'ab'[i % 2]},{rng.random():.3f}")
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    known = ["--covariates", "load", "--calendar", "day", "week"]
    call("fit", tmp_path / "log.csv", "-o", tmp_path / "m", *known, *SMALL)
    call("forecast", tmp_path / "m", tmp_path / "log.csv", "-o", tmp_path / "next.csv")
    assert len((tmp_path / "next.csv").read_text().splitlines()) == 2
    with pytest.raises(BurnishError, match="day, week, year or a number"):
        call("fit", tmp_path / "log.csv", "-o", tmp_path / "n", "--calendar", "fortnight", *SMALL)
