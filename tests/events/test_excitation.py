"""The Hawkes process inside the networks: its states, its likelihood, and that training begins at it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest_events import double, small

from burnish.events import EventDataset, EventForecaster, EventSequence, PlaceMixture, SmurfTHP
from burnish.events.excitation import ExcitedModel
from burnish.events.hawkes import PRESETS, HawkesParameters, simulate_hawkes, truth
from burnish.events.maths.excitation import decay_grid, excitement, maximum_likelihood
from burnish.events.maths.hawkes import excitation_path
from burnish.events.model import TrainingStatistics

# -- mathematics -----------------------------------------------------------------------------------------------------


def test_excitement_is_the_sum_over_the_events_before() -> None:
    rng = np.random.default_rng(0)
    gaps = [rng.exponential(size=n) for n in (3, 9, 1, 6)]
    marks = [rng.integers(0, 2, len(gap)) for gap in gaps]
    decays = np.array([0.5, 3.0])
    found = excitement(gaps, marks, decays, 2)
    row = 0
    for gap, mark in zip(gaps, marks, strict=True):
        times = np.cumsum(gap)
        for i in range(len(gap)):
            expected = np.zeros((2, 2))
            for j in range(i):
                expected[:, mark[j]] += np.exp(-decays * (times[i - 1] - times[j]))
            assert found[row] == pytest.approx(expected, abs=1e-14)
            row += 1


def test_excitement_equals_the_path_of_the_simulator() -> None:
    preset = PRESETS["hawkes3"]
    [sequence] = simulate_hawkes(preset, 1, num_events=20, seed=0).sequences
    x = excitement([sequence.gaps], [sequence.marks], np.array([preset.decay]), 3)[:, 0]
    path = excitation_path(sequence.times, sequence.marks, np.array(preset.jumps), preset.decay)
    assert x @ np.array(preset.jumps).T == pytest.approx(path[:-1], abs=1e-12)


def test_the_likelihood_is_at_its_maximum() -> None:
    """There its slope is zero where a number is positive, and not positive where it is zero."""
    rng = np.random.default_rng(1)
    features, length = rng.exponential(size=(400, 5)) * [1, 1, 1, 1e-3, 1], 300.0
    exposure = features.sum(0) * [0.8, 1.1, 3.0, 1.0, 0.7]
    mu, a = maximum_likelihood(features, exposure, length)
    rate = mu + features @ a
    slope = np.append((1 / rate).sum() / length - 1, (features / rate[:, None]).sum(0) / exposure - 1)
    numbers = np.append(mu * length, a * exposure) / 400
    assert (np.abs(slope[numbers > 1e-3]) < 2e-3).all() and (slope < 2e-3).all()
    assert numbers.sum() == pytest.approx(1.0)
    assert (numbers[1:] < 1e-3).any()  # some of them are zero


def test_decays_are_at_most_a_factor_of_two_apart() -> None:
    grid = decay_grid(30.0, 0.02)
    assert grid[0] == pytest.approx(0.02) and grid[-1] == pytest.approx(30.0)
    assert (grid[1:] / grid[:-1] <= 2).all()


# -- the model -------------------------------------------------------------------------------------------------------


def test_there_are_decays_enough_where_events_come_in_a_few_clumps() -> None:
    times = np.repeat([5.0, 6.0, 7.0], 60)  # the mean gap is a hundredth of the only one that is not zero
    dataset = EventDataset.from_sequences([times], [np.zeros(len(times), int)])
    model = small(SmurfTHP, num_marks=1)
    model.statistics = TrainingStatistics.of(dataset)
    model.prepare(dataset, 0)
    decays = model.excitation.decays[1:].numpy()
    assert len(decays) == model.excitation.num_decays and (np.diff(decays) > 0).all()


def test_before_training_it_is_the_hawkes_process() -> None:
    preset = PRESETS["hawkes2"]
    data = simulate_hawkes(preset, 400, num_events=40, seed=3)
    parts = data.with_sequences(data.sequences[:300]), data.with_sequences(data.sequences[300:])
    forecaster = EventForecaster(small(SmurfTHP, num_marks=2))
    history = forecaster.fit(*parts, epochs=1, batch_size=300, lr=1e-6)
    assert history.best <= history.start
    facts = [truth(preset, sequence) for sequence in parts[1]]
    ideal = np.mean(np.concatenate([f.log_intensity[1:] - f.compensator[1:] for f in facts]))
    assert forecaster.score(parts[1], bootstrap=0).scores["loglik"] > ideal - 0.006


def test_an_epoch_that_makes_it_worse_is_not_kept() -> None:
    data = simulate_hawkes(PRESETS["hawkes2"], 60, num_events=20, seed=4)
    forecaster = EventForecaster(small(SmurfTHP, num_marks=2))
    history = forecaster.fit(data, data, epochs=1, batch_size=60, lr=10.0)
    assert history.best_epoch == -1 and history.best == history.start < history.validation[0]
    assert isinstance(forecaster.model, ExcitedModel)
    assert not forecaster.model.time_head.out_proj.weight.any()


@pytest.mark.parametrize("model", [SmurfTHP, PlaceMixture])
def test_the_excitement_is_carried_over_windows(model, places: EventDataset) -> None:
    """States are those of one window, up to what the encoder sees."""
    net = double(small(model, num_marks=2))
    assert isinstance(net, ExcitedModel)
    whole = places.with_sequences(places.sequences[:2])

    def excited(window: int, context: int) -> torch.Tensor:
        net.window, net.context = window, context
        packed = net.pack(whole)
        rows = [net.histories(packed.batch([i])).condition["drive"] for i in range(len(packed))]
        return torch.cat(rows)

    assert torch.allclose(excited(8, 3), excited(100, 50), atol=1e-12)


def test_a_stream_carries_the_excitement_over_its_restarts() -> None:
    model = double(small(SmurfTHP))
    model.window, model.context = 8, 3
    forecaster = EventForecaster(model)
    [history] = simulate_hawkes(PRESETS["hawkes3"], 1, num_events=30, seed=7).sequences
    stream = forecaster.stream(start=history.start)
    for stop, (time, mark) in enumerate(zip(history.times, history.marks, strict=True), 1):
        stream.observe(float(time), int(mark))
        batched = forecaster.next_event(history.head(stop)).many.condition["drive"]
        assert torch.allclose(stream.next_event().many.condition["drive"], batched, atol=1e-10)


def test_the_compensator_integrates_the_hazard() -> None:
    model = double(small(SmurfTHP))
    [history] = simulate_hawkes(PRESETS["hawkes3"], 1, num_events=6, seed=7).sequences
    condition = model.histories(model.pack(EventDataset((history,), ("0", "1", "2"))).batch([0])).condition
    gap = torch.linspace(0, 4, 4001, dtype=torch.float64).expand(6, -1)
    with torch.no_grad():
        area = torch.trapezoid(model.hazard(condition, gap), gap)
        found = model.compensator(condition, gap[:, -1:]).squeeze(-1)
    assert found.numpy() == pytest.approx(area.numpy(), rel=1e-5)


def test_silence_up_to_a_known_end_is_counted() -> None:
    rng = np.random.default_rng(5)
    busy = [EventSequence(np.cumsum(rng.exponential(0.1, 20)), np.zeros(20, int), start=0.0) for _ in range(40)]
    model = small(SmurfTHP, num_marks=1)
    assert isinstance(model, ExcitedModel)
    rates = []
    for end in (None, 20.0):
        data = EventDataset(tuple(replace(sequence, end=end) for sequence in busy), ("event",))
        model.excitation.fit(data, replace(model.statistics, mean_gap=0.1), 0)
        rates.append(float(model.excitation.base[0]))
    assert rates[1] < 0.3 * rates[0]


@pytest.mark.slow
def test_a_process_near_its_explosion_is_found() -> None:
    """Branching ratio 0.95, two decays apart from the grid; the fit is within its sampling error of the truth."""
    preset = HawkesParameters(mu=(0.02, 0.03), jumps=((1.9, 0.5), (0.5, 1.9)), decay=2.6)
    data = simulate_hawkes(preset, 300, num_events=60, seed=9)
    parts = data.with_sequences(data.sequences[:200]), data.with_sequences(data.sequences[200:])
    forecaster = EventForecaster(small(SmurfTHP, num_marks=2))
    forecaster.fit(*parts, epochs=1, batch_size=200, lr=1e-6)
    facts = [truth(preset, sequence) for sequence in parts[1]]
    ideal = np.mean(np.concatenate([f.log_intensity[1:] - f.compensator[1:] for f in facts]))
    assert forecaster.score(parts[1], bootstrap=0).scores["loglik"] > ideal - 0.006


def test_without_decays_the_base_rates_are_those_of_a_poisson_process() -> None:
    rng = np.random.default_rng(6)
    times, marks = np.cumsum(rng.exponential(0.5, 4000)), (rng.random(4000) < 0.25).astype(int)
    model = small(SmurfTHP, num_marks=2, num_decays=0)
    assert isinstance(model, ExcitedModel)
    data = EventDataset((EventSequence(times, marks, start=0.0),), ("a", "b"))
    model.excitation.fit(data, replace(model.statistics, mean_gap=0.5), 0)
    assert model.excitation.base.numpy() == pytest.approx([0.75, 0.25], abs=0.05)
