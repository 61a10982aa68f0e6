"""Surprise of events, influence of the past, and going on from fitted weights with newer events."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest_events import small
from test_command import SMALL, call

from burnish.core.errors import BurnishError, DataError, SettingsError
from burnish.events import (
    EventDataset,
    EventForecaster,
    EventSequence,
    ExponentialHawkes,
    SmurfTHP,
    influence,
    p_values,
    simulate_hawkes,
    surprises,
)
from burnish.events.hawkes import PRESETS


def test_p_values_count_the_calm_events_that_surprised_as_much() -> None:
    calm = np.array([0.0, 1.0, 1.0, 3.0])
    assert p_values(np.array([-1.0, 1.0, 2.0, 9.0]), calm) == pytest.approx([1.0, 4 / 5, 2 / 5, 1 / 5])


def test_usual_events_have_uniform_p_values_and_strange_ones_small(parts, fitted) -> None:
    forecaster = EventForecaster(fitted.model)
    forecaster.mark_names = fitted.mark_names
    forecaster.calibrate(parts[1])
    assert forecaster.calm is not None
    usual = p_values(surprises(forecaster.score(parts[2], bootstrap=0)), forecaster.calm)
    for level in (0.05, 0.2, 0.5):
        assert (usual <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / len(usual)))
    late = parts[2].with_sequences(replace(s, times=np.append(s.times[:-1], s.times[-1] + 60.0)) for s in parts[2])
    result = forecaster.score(late, bootstrap=0)
    moved = result.events["index"] == 29
    assert (p_values(surprises(result), forecaster.calm)[moved] < 0.01).all()
    assert (result.events["pit"][moved] > 0.99).all()


def test_influence_in_a_hawkes_process_is_the_share_that_an_event_excites() -> None:
    model = ExponentialHawkes(2).double()
    jumps, decay = np.array([[0.4, 0.1], [0.2, 0.5]]), 1.3
    for parameter, value in ((model.log_mu, [0.3, 0.2]), (model.log_jumps, jumps), (model.log_decay, decay)):
        parameter.data.copy_(parameter.new_tensor(np.log(value)))
    history = EventSequence(np.array([0.0, 0.5, 2.0, 2.2]), np.array([0, 1, 0, 1]), start=0.0)
    found = influence(EventForecaster(model), history, 0.4)
    excited = jumps[:, history.marks].sum(0) * np.exp(-decay * (2.6 - history.times))
    assert 1 - np.exp(-found) == pytest.approx(excited / (0.5 + excited.sum()), rel=1e-9)
    assert len(influence(EventForecaster(model), history, 0.4, num_events=2)) == 2


def test_the_influence_on_a_network_is_that_of_leaving_an_event_out(fitted, parts) -> None:
    history = parts[2].sequences[0].head(8)
    found = influence(fitted, history, 0.5)
    kept = np.arange(8) != 3
    other = replace(history, times=history.times[kept], marks=history.marks[kept])
    rates = [fitted.next_event(one).hazard(0.5) for one in (history, other)]
    assert found[3] == pytest.approx(np.log(rates[0] / rates[1]), abs=1e-4)


def test_wrong_questions_about_influence_are_refused(fitted) -> None:
    with pytest.raises(DataError, match="two or more"):
        influence(fitted, EventSequence(np.zeros(1), np.zeros(1, int)), 1.0)
    with pytest.raises(SettingsError, match="positive and finite"):
        influence(fitted, EventSequence(np.arange(3.0), np.zeros(3, int)), 0.0)


def test_an_update_follows_a_process_that_changed() -> None:
    rng = np.random.default_rng(0)

    def stream(count: int, rate: float) -> EventDataset:
        times = [np.cumsum(rng.exponential(1 / rate, 40)) for _ in range(count)]
        return EventDataset(tuple(EventSequence(t, np.zeros(40, int), start=0.0) for t in times), ("event",))

    old, new, test = stream(20, 1.0), stream(20, 3.0), stream(10, 3.0)
    forecaster = EventForecaster(small(SmurfTHP, num_marks=1))
    forecaster.fit(old, old, epochs=2, batch_size=4)
    before = forecaster.score(test, bootstrap=0).scores["loglik"]
    forecaster.calibrate(old)
    history = forecaster.update(new, new, epochs=8, lr=1e-2, batch_size=4)
    assert history.best < history.start
    assert forecaster.score(test, bootstrap=0).scores["loglik"] > before + 0.3
    assert forecaster.conformal is None and forecaster.model.statistics.mean_gap == pytest.approx(1.0, abs=0.1)


def test_the_command_lists_the_surprise_of_every_event(tmp_path: Path) -> None:
    data = simulate_hawkes(PRESETS["hawkes2"], 20, num_events=20, seed=0)
    rows = [f"{s.name},{t},{m}" for s in data for t, m in zip(s.times, s.marks, strict=True)]
    (tmp_path / "h.csv").write_text("sequence_id,time,mark\n" + "\n".join(rows) + "\n")
    call("fit", tmp_path / "h.csv", "-o", tmp_path / "m", *SMALL)
    call("anomalies", tmp_path / "m", tmp_path / "h.csv", "-o", tmp_path / "a.csv")
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0] == "sequence,event,time,type,pit,surprise,p_value"
    assert len(lines) == 1 + 20 * 19
    name, event, time, kind, *_ = lines[1].split(",")
    assert (name, event, kind) == ("0", "2", str(data.sequences[0].marks[1]))
    assert float(time) == pytest.approx(data.sequences[0].times[1])
    forecaster = EventForecaster.from_pretrained(tmp_path / "m")
    forecaster.calm = forecaster.conformal = None
    from burnish.events.anomaly import table_of_surprises

    with pytest.raises(BurnishError, match="which surprises are usual"):
        next(iter(table_of_surprises(forecaster, data)))
