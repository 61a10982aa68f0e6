"""Values that change between events: the rate follows them at once, cuts lose nothing, forecasts take the last ones."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest_events import double, small
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.core.errors import BurnishError, DataError, SettingsError
from burnish.events import THP, EventDataset, EventForecaster, EventSequence, Exogenous, LogNormalMixture, SmurfTHP
from burnish.events.evaluation import evaluate
from burnish.events.model import EventModel, TrainingStatistics

KNOWN = TrainingStatistics(exogenous_mean=(1.0,), exogenous_scale=(2.0,))


def switched(count: int, seed: int, num_events: int = 40) -> EventDataset:
    """A Poisson process of rate 5 or 0.5, by a state that changes after exponential times of mean 1."""
    rng = np.random.default_rng(seed)
    sequences = []
    for name in range(count):
        changes = np.append(0.0, np.cumsum(rng.exponential(1.0, 400)))
        state = rng.integers(0, 2, len(changes)).astype(float)
        passed = np.append(0.0, np.cumsum(np.diff(changes) * np.where(state[:-1] == 1, 5.0, 0.5)))
        at = np.cumsum(rng.exponential(1.0, num_events))
        times = np.interp(at, passed, changes)
        known = Exogenous(changes, state[:, None])
        sequences.append(EventSequence(times, np.zeros(num_events, int), exogenous=known, start=0.0, name=str(name)))
    return EventDataset(tuple(sequences), ("event",))


def true_nats(data: EventDataset) -> float:
    """Mean log-likelihood of events 2..N under the process above."""
    total, count = 0.0, 0
    for s in data.sequences:
        assert s.exogenous is not None
        rate = np.where(s.exogenous.values[:, 0] == 1, 5.0, 0.5)
        passed = np.append(0.0, np.cumsum(np.diff(s.exogenous.times) * rate[:-1]))
        own = np.interp(s.times, s.exogenous.times, passed)
        index = np.searchsorted(s.exogenous.times, s.times, side="left") - 1
        total += float((np.log(rate[index][1:]) - np.diff(own)).sum())
        count += len(s) - 1
    return total / count


def drawn(seed: int, *, end: bool = True) -> EventSequence:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(size=12))
    changes = np.append(-0.5, np.cumsum(rng.exponential(0.6, 30)))
    known = Exogenous(changes, rng.normal(size=(len(changes), 1)))
    return EventSequence(times, rng.integers(0, 3, 12), exogenous=known, start=0.0,
                         end=float(times[-1]) + 1.3 if end else None, name="s")  # fmt: skip


def net(kind=SmurfTHP) -> EventModel:
    model = double(small(kind, num_exogenous=1))
    model.statistics = KNOWN
    model.window, model.context = 8, 3
    return model


def nats(model: EventModel, *sequences: EventSequence) -> float:
    packed, total = model.pack(EventDataset(sequences, ("0", "1", "2"))), 0.0
    with torch.no_grad():
        for index in range(len(packed)):
            histories = model.histories(packed.batch([index]))
            terms = EventModel.negative_log_likelihood(model, histories)
            total -= float(sum(terms.values())) * max(len(histories.gap), 1)
    return total


@pytest.mark.parametrize("kind", [SmurfTHP, THP, LogNormalMixture])
def test_the_rate_follows_the_values_inside_a_gap(kind) -> None:
    """log lam at the event minus the integral of lam along the path of the values, on a fine grid."""
    model, whole = net(kind), drawn(0, end=False)
    history, gap = whole.head(5), float(whole.gaps[5])
    assert whole.exogenous is not None
    inside = whole.exogenous.times[
        (whole.exogenous.times > history.times[-1]) & (whole.exogenous.times < whole.times[5])
    ]
    assert len(inside) > 0
    edges = np.concatenate([[0.0], inside - history.times[-1], [gap]])
    integral, last = 0.0, torch.zeros(1)
    forecaster = EventForecaster(model)
    forecaster.mark_names = ("0", "1", "2")
    for begin, stop in pairwise(edges):
        known = whole.exogenous.until(float(history.times[-1]) + begin)
        condition = forecaster.next_event(replace(history, exogenous=known)).many.condition
        at = torch.linspace(begin, stop, 20001, dtype=torch.float64)
        if begin == 0:  # where a log-normal hazard may have a pole
            at = stop * torch.logspace(-30, 0, 20001, dtype=torch.float64)
        hazard = model.log_hazard(condition, at[None]).exp().detach()
        integral += float(torch.trapezoid(hazard[0], at))
        last = model.log_hazard(condition, at[None, -1:]).detach()[0]
    one = EventDataset((replace(whole, context=5).head(6),), ("0", "1", "2"))
    found = evaluate(model, one, bootstrap=0).events
    assert found["loglik_time"][0] == pytest.approx(float(last) - integral, abs=1e-3)
    assert found["pit"][0] == pytest.approx(-np.expm1(-integral), abs=1e-3)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.floats(0.0, 1.0))
def test_a_cut_at_any_time_loses_nothing(seed: int, share: float) -> None:
    model, whole = net(), drawn(seed)
    assert whole.end is not None
    first, last = float(whole.times[0]), whole.end
    head, tail = whole.cut(min(first + share * (last - first), last))
    assert nats(model, head, tail) == pytest.approx(nats(model, whole), abs=1e-9)
    stop = 1 + seed % 12
    assert nats(model, whole.head(stop), replace(whole, context=stop)) == pytest.approx(nats(model, whole), abs=1e-9)


def test_changes_of_nothing_change_nothing() -> None:
    model, whole = net(), drawn(1)
    assert whole.exogenous is not None
    still = Exogenous(whole.exogenous.times, np.full((len(whole.exogenous.times), 1), 0.7))
    once = Exogenous(still.times[:1], still.values[:1])
    values = [nats(model, replace(whole, exogenous=known)) for known in (still, once)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)  # the quadrature of several pieces is the finer one


def test_a_stream_that_is_told_the_values_says_what_a_file_does() -> None:
    model = net()
    forecaster = EventForecaster(model)
    forecaster.mark_names = ("0", "1", "2")
    whole = drawn(2, end=False)
    assert whole.exogenous is not None
    stream = forecaster.stream(start=0.0)
    with pytest.raises(DataError, match="1 exogenous values"):
        stream.know([1.0, 2.0])
    for stop in range(1, 12):
        history = whole.head(stop)
        assert history.exogenous is not None
        stream.observe(float(history.times[-1]), int(history.marks[-1]))
        if stop == 1:
            with pytest.raises(DataError, match="call know first"):
                stream.quantile(0.5)
        stream.know(history.exogenous.values[-1])
        assert stream.quantile(0.9, 0.3) == pytest.approx(forecaster.next_event(history).quantile(0.9, 0.3), rel=1e-6)


@pytest.mark.slow
def test_a_rate_that_follows_a_value_is_learned() -> None:
    train, validation, test = switched(60, 0), switched(20, 1), switched(60, 2)
    found = []
    for known in (True, False):
        forecaster = EventForecaster(small(SmurfTHP, num_marks=1, num_exogenous=int(known)))
        parts = [
            p if known else p.with_sequences(replace(s, exogenous=None) for s in p) for p in (train, validation, test)
        ]
        forecaster.fit(parts[0], parts[1], epochs=20, batch_size=6, lr=1e-2)
        found.append(forecaster.score(parts[2], bootstrap=0).scores)
    with_values, without = found
    assert with_values["loglik"] > true_nats(test) - 0.02
    assert without["loglik"] < true_nats(test) - 0.2
    assert with_values["calibration_score_19"] < 2.5 * with_values["calibration_score_19_by_chance"]


def test_wrong_values_are_refused() -> None:
    data = switched(3, 0, 8)
    with pytest.raises(SettingsError, match="num_exogenous=1"):
        EventForecaster(small(SmurfTHP, num_marks=1)).fit(data, data, epochs=1)
    with pytest.raises(SettingsError, match="score objectives know nothing"):
        EventForecaster(small(SmurfTHP, num_marks=1, num_exogenous=1), objective="score").fit(data, data, epochs=1)
    with pytest.raises(DataError, match="begin at 5, after 0"):
        replace(data.sequences[0], exogenous=Exogenous(np.array([5.0]), np.zeros((1, 1))))
    for times, values in (([0.0, 1.0], [[1e308], [1.0]]), ([-1e200, 1.0], [[1.0], [1.0]])):
        with pytest.raises(DataError, match=r"not finite, or beyond 1e\+100"):
            Exogenous(np.array(times), np.array(values))
    with pytest.raises(DataError, match="do not increase"):
        Exogenous(np.array([1.0, 1.0]), np.zeros((2, 1)))
    with pytest.raises(DataError, match="--exogenous"):
        EventForecaster(net()).next_event(replace(data.sequences[0], exogenous=None))


# -- tables ----------------------------------------------------------------------------------------------------------

EVENTS = pa.table({"sequence_id": ["a", "a", "b"], "time": [1.0, 2.0, 5.0]})


def test_values_of_each_sequence_or_of_all() -> None:
    data = EventDataset.from_table(EVENTS)
    own = pa.table({"sequence_id": ["b", "a", "a"], "time": [5.0, 3.0, 0.0], "load": [7, 8, 9]})
    first, second = data.with_exogenous(own).sequences
    assert first.exogenous is not None and second.exogenous is not None
    assert first.exogenous.times.tolist() == [0.0, 3.0] and first.exogenous.values.tolist() == [[9.0], [8.0]]
    assert second.exogenous.values.tolist() == [[7.0]]
    shared = data.with_exogenous(pa.table({"time": [0.5], "load": [1.0], "heat": [2.0]}))
    assert all(s.exogenous is not None and s.exogenous.values.tolist() == [[1.0, 2.0]] for s in shared)


def test_dates_are_on_the_clock_of_each_sequence() -> None:
    events = pa.table({"time": ["2024-05-01T00:00:10", "2024-05-01T00:00:20"]})
    known = pa.table({"time": ["2024-05-01T00:00:15", "2024-05-01T00:00:00"], "load": [1.0, 0.0]})
    [one] = EventDataset.from_table(events).with_exogenous(known).sequences
    assert one.exogenous is not None
    assert one.exogenous.times.tolist() == [-10.0, 5.0]


WRONG = {
    "no values": ({"time": [0.0]}, "no exogenous values"),
    "words": ({"time": [0.0], "load": ["high"]}, "'load' holds string, not numbers"),
    "missing": ({"time": [0.0, 1.0], "load": [1.0, None]}, "'load' is empty in row 2"),
    "dates": ({"time": ["2024-05-01"], "load": [1.0]}, "'time' holds dates, unlike the times of the events"),
    "late": ({"time": [1.5], "load": [1.0]}, "begins at 1.5, but sequence 'a' at 1"),
    "twice": ({"time": [0.0, 0.0], "load": [1.0, 2.0]}, "two rows of one time, 0"),
    "another sequence": ({"sequence_id": ["a"], "time": [0.0], "load": [1.0]}, "no row for sequence 'b'"),
    "no times": ({"when": [0.0], "load": [1.0]}, "no column 'time'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_refused_in_a_sentence(name: str) -> None:
    columns, message = WRONG[name]
    with pytest.raises(BurnishError, match=message) as caught:
        EventDataset.from_table(EVENTS).with_exogenous(pa.table(columns))
    assert "\n" not in str(caught.value)


def test_values_in_a_file_beside_the_events(tmp_path: Path) -> None:
    from test_command import SMALL, call

    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1.0, 150))
    (tmp_path / "t.csv").write_text("time\n" + "".join(f"{t}\n" for t in times))
    last = float(times[-1])
    rows = [f"{t},{rng.integers(0, 2)},{rng.random()}" for t in np.arange(0.0, last + 9, 1.5)]
    (tmp_path / "load.csv").write_text("time,load,heat\n" + "\n".join(rows) + "\n")
    table = ["--exogenous", tmp_path / "load.csv"]
    call("fit", tmp_path / "t.csv", "-o", tmp_path / "m", *table, *SMALL)
    call("evaluate", tmp_path / "m", tmp_path / "t.csv", *table, "--bootstrap", "0")
    call("anomalies", tmp_path / "m", tmp_path / "t.csv", *table, "-o", tmp_path / "odd.csv")
    call("forecast", tmp_path / "m", tmp_path / "t.csv", *table, "-o", tmp_path / "next.csv")
    cut = [row for row in rows if float(row.split(",")[0]) <= last]
    (tmp_path / "cut.csv").write_text("time,load,heat\n" + "\n".join(cut) + "\n")
    call(
        "forecast", tmp_path / "m", tmp_path / "t.csv", "--exogenous", tmp_path / "cut.csv", "-o", tmp_path / "cut.out"
    )
    assert (tmp_path / "next.csv").read_text() == (tmp_path / "cut.out").read_text()  # the future is not known yet
    with pytest.raises(BurnishError, match="give their table with --exogenous"):
        call("forecast", tmp_path / "m", tmp_path / "t.csv")
    (tmp_path / "less.csv").write_text("time,load\n0,1\n")
    with pytest.raises(BurnishError, match="no column 'heat', which the fit had"):
        call("forecast", tmp_path / "m", tmp_path / "t.csv", "--exogenous", tmp_path / "less.csv")
