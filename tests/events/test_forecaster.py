"""Forecasts, their identities, online use, saving, resuming, and clear errors."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest_events import double, drawn_states, small

from burnish.core.errors import BurnishError, CheckpointError, DataError, OutputError, SettingsError
from burnish.events import (
    THP,
    EventDataset,
    EventForecaster,
    EventSequence,
    ExponentialHawkes,
    LogNormalMixture,
    NextEvents,
    Smash,
    SmurfTHP,
    StructuredTHP,
)
from burnish.events.fit_state import FitState
from burnish.events.model import Objective, TrainingStatistics
from burnish.events.training import TrainingSettings, train

LEVELS = [0.01, 0.25, 0.5, 0.9, 0.999]


def law(model, rows: int = 4, **extra) -> NextEvents:
    return NextEvents(
        model, model.condition(drawn_states(model, rows), torch.zeros(rows, dtype=torch.float64)), **extra
    )


@pytest.fixture(scope="module", params=["smurf", "lognormal", "renormalised"])
def forecast(request) -> NextEvents:
    model = double(small(LogNormalMixture if request.param == "lognormal" else SmurfTHP))
    model.statistics = replace(TrainingStatistics(), mean_gap=2.5)
    if isinstance(model, LogNormalMixture):
        with torch.no_grad():  # random weights as large as the others put mass below any number
            model.mixture_proj.weight.mul_(0.2)
    return law(model, renormalise=request.param == "renormalised")


# -- identities ------------------------------------------------------------------------------------------------------


def test_cdf_of_the_quantile_is_the_level(forecast: NextEvents) -> None:
    assert forecast.cdf(forecast.quantile(LEVELS)).numpy() == pytest.approx(np.tile(LEVELS, (4, 1)), abs=1e-8)


def test_quantiles_rise_with_the_level(forecast: NextEvents) -> None:
    assert (forecast.quantile(np.linspace(0.001, 0.999, 300)).diff() > 0).all()


def test_elapsed_identity(forecast: NextEvents) -> None:
    # F(e + Q(q | e)) = 1 - (1 - q) S(e)
    elapsed = torch.tensor(0.8, dtype=torch.float64)
    total = forecast.quantile(LEVELS, elapsed) + elapsed
    expected = 1 - (1 - torch.tensor(LEVELS, dtype=torch.float64)) * forecast.survival([0.8])
    assert torch.allclose(forecast.cdf(total), expected, atol=1e-9)


@pytest.mark.parametrize("elapsed", [float("nan"), float("inf"), -1.0])
def test_a_time_that_is_none_forecasts_nothing(forecast: NextEvents, elapsed: float) -> None:
    with pytest.raises(SettingsError, match="must be finite and at least 0"):
        forecast.quantile(LEVELS, elapsed)


def test_a_wait_so_long_that_a_gap_more_is_lost_in_rounding_is_refused(forecast: NextEvents) -> None:
    with pytest.raises(SettingsError, match="waits cannot be told apart"):
        forecast.quantile(LEVELS, 1e20)


def test_no_time_elapsed_changes_nothing(forecast: NextEvents) -> None:
    assert torch.equal(forecast.quantile(LEVELS, 0.0), forecast.quantile(LEVELS))


def test_conditional_cdf_and_quantile_are_inverse(forecast: NextEvents) -> None:
    wait = forecast.quantile([0.3, 0.7], elapsed=1.1)
    assert forecast.cdf(wait, elapsed=1.1).numpy() == pytest.approx(np.tile([0.3, 0.7], (4, 1)), abs=1e-8)


def test_mark_probabilities_sum_to_one(forecast: NextEvents) -> None:
    assert forecast.mark_probs().sum(-1).numpy() == pytest.approx(1.0, abs=1e-12)


def test_survival_at_the_edges_of_the_table_is_the_survival(forecast: NextEvents) -> None:
    gaps = forecast.table.edges * forecast.unit
    assert torch.allclose(forecast.edge_survival, forecast.survival(gaps.double()), rtol=1e-12, atol=1e-14)


def test_samples_follow_the_quantiles() -> None:
    forecast = law(double(small(SmurfTHP)), rows=1)
    gaps, _ = forecast.sample(20_000, generator=torch.Generator().manual_seed(0))
    share = (gaps < forecast.quantile([0.7])).double().mean()
    assert abs(float(share) - 0.7) < 4 * np.sqrt(0.21 / 20_000)


def poisson_model(level: float = 0.3) -> THP:
    model = double(small(THP, heads="none"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.intensity.weight.bias.fill_(level)
    return model


def test_constant_hazard_has_no_memory() -> None:
    forecast = law(poisson_model())
    assert torch.allclose(forecast.quantile(LEVELS, 3.0), forecast.quantile(LEVELS), rtol=1e-8)


def test_constant_hazard_has_exponential_quantiles_mean_and_crps() -> None:
    forecast = law(poisson_model())
    rate = 3 * float(torch.nn.functional.softplus(torch.tensor(0.3, dtype=torch.float64)))
    assert forecast.quantile(LEVELS)[0].numpy() == pytest.approx(-np.log1p(-np.array(LEVELS)) / rate, rel=1e-9)
    assert float(forecast.mean()[0]) == pytest.approx(1 / rate, rel=2e-3)
    gap = torch.tensor([0.05, 0.2, 0.6, 2.0], dtype=torch.float64)
    expected = gap + (2 * torch.exp(-rate * gap) - 1.5) / rate
    assert forecast.crps(gap).numpy() == pytest.approx(expected.numpy(), abs=2e-3 / rate)


def test_a_process_that_may_stop_has_infinite_high_quantiles_and_no_nan() -> None:
    model = double(small(THP))
    with torch.no_grad():
        model.intensity.slope.fill_(-3.0)
        model.intensity.weight.bias.fill_(-1.0)
    forecast = law(model)
    high = forecast.quantile([0.01, 0.9999])
    assert (forecast.prob_no_event > 1e-3).all()
    assert torch.isinf(high[:, 1]).all() and torch.isfinite(high[:, 0]).all()
    assert torch.isinf(forecast.mean()).all() and torch.isinf(forecast.crps(torch.ones(4).double())).all()


def test_score_only_forecasts_are_renormalised() -> None:
    forecast = law(double(small(SmurfTHP)), renormalise=True)
    horizon = 1.5 * forecast.model.statistics.longest
    assert forecast.cdf([horizon]).numpy() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("kind", ["a horizon", "a process that stops"])
def test_after_the_end_of_a_law_there_is_no_further_event(kind: str) -> None:
    model = double(small(SmurfTHP if kind == "a horizon" else THP))
    if kind != "a horizon":
        with torch.no_grad():
            model.intensity.slope.fill_(-3.0)
            model.intensity.weight.bias.fill_(-1.0)
    forecast = law(model, renormalise=kind == "a horizon")
    over = 2 * model.statistics.longest + 1e5
    draws, _ = forecast.sample(5, generator=torch.Generator().manual_seed(0), elapsed=over)
    assert torch.isinf(forecast.quantile([0.01, 0.9], over)).all() and torch.isinf(draws).all()
    assert (forecast.cdf([1.0, 1e6], over).abs() < 1e-12).all()
    assert forecast.prob_none_after(over).numpy() == pytest.approx(1.0, abs=1e-12)


def test_that_no_event_comes_is_likelier_the_longer_none_came() -> None:
    model = double(small(THP))
    with torch.no_grad():
        model.intensity.slope.fill_(-3.0)
        model.intensity.weight.bias.fill_(-1.0)
    forecast = law(model)
    assert torch.equal(forecast.prob_none_after(0.0), forecast.prob_no_event)
    expected = forecast.prob_no_event / forecast.survival([0.6]).squeeze(-1)
    assert torch.allclose(forecast.prob_none_after(0.6), expected, rtol=1e-9)


@pytest.mark.slow
def test_types_after_a_wait_are_those_of_the_gaps_beyond_it(forecast: NextEvents) -> None:
    gaps, marks = forecast.sample(40_000, generator=torch.Generator().manual_seed(0))
    found = forecast.mark_probs(elapsed=2.0)
    assert found.sum(-1).numpy() == pytest.approx(1.0, abs=1e-12)
    for row in range(len(forecast)):
        later = marks[row][gaps[row] > 2.0]
        for mark in range(3):
            error = 4 * np.sqrt(0.25 / max(len(later), 1)) + 1e-3
            assert float(found[row, mark]) == pytest.approx(float((later == mark).double().mean()), abs=error)


@pytest.mark.parametrize("elapsed", [float("nan"), float("inf"), -1.0, 1e30])
def test_a_stream_is_not_asked_after_a_time_that_is_none(fitted: EventForecaster, elapsed: float) -> None:
    stream = fitted.stream()
    stream.observe(1.0, 0)
    for ask in (stream.quantile, stream.cdf):
        with pytest.raises(SettingsError, match="elapsed time is"):
            ask(0.5, elapsed)
    with pytest.raises(SettingsError, match="below 1"):
        stream.quantile(1.0)


def test_quantile_level_outside_is_refused(forecast: NextEvents) -> None:
    with pytest.raises(SettingsError, match="below 1"):
        forecast.quantile(1.0)


# -- fitting ---------------------------------------------------------------------------------------------------------


def test_same_seed_twice_is_bit_equal(parts) -> None:
    weights = []
    for _ in range(2):
        forecaster = EventForecaster(small(SmurfTHP, dropout=0.1), objective="score+mass")
        forecaster.fit(parts[0], parts[1], epochs=1, batch_size=16, seed=3)
        weights.append(forecaster.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_fitting_leaves_the_global_generator_alone(parts) -> None:
    forecaster = EventForecaster(small(THP, dropout=0.1))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    forecaster.fit(parts[0], parts[1], epochs=1)
    assert torch.equal(torch.rand(3), expected)


def test_resumed_fit_is_bit_equal_to_an_uninterrupted_one(parts, tmp_path: Path, monkeypatch) -> None:
    statistics = TrainingStatistics.of(parts[0])
    torch.manual_seed(0)
    start = small(SmurfTHP, dropout=0.1)
    start.statistics = statistics
    initial = {name: value.clone() for name, value in start.state_dict().items()}
    settings = TrainingSettings(epochs=4, batch_size=16)
    packed = start.pack(parts[0]), start.pack(parts[1])
    train(start, *packed, Objective(), settings)
    expected = {name: value.clone() for name, value in start.state_dict().items()}

    class Killed(BaseException):
        pass

    write, written = FitState.write, []

    def write_and_die(*arguments) -> None:
        write(*arguments)
        written.append(1)
        if len(written) == 2:
            raise Killed

    start.load_state_dict(initial)
    with monkeypatch.context() as patch:
        patch.setattr(FitState, "write", write_and_die)
        with pytest.raises(Killed):
            train(start, *packed, Objective(), settings, state_dir=tmp_path)
    start.load_state_dict(initial)
    train(start, *packed, Objective(), settings, state_dir=tmp_path)
    assert all(torch.equal(expected[name], value) for name, value in start.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("epochs", "epochs was 2, now 3"),
        ("lr", "lr was 0.003, now 0.01"),
        ("seed", "seed was 0, now 1"),
        ("weights", "weights: not the same"),
        ("data", "training data: not the same"),
        ("objective", "objective: not the same"),
    ],
)
def test_a_state_of_another_fit_is_refused_and_stays(parts, tmp_path: Path, changed: str, told: str) -> None:
    model = small(SmurfTHP)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    packed, objective, settings = [model.pack(part) for part in parts[:2]], Objective(), {"epochs": 2}
    train(model, *packed, objective, TrainingSettings(**settings), state_dir=tmp_path)
    state = (tmp_path / "fit" / "state.safetensors").read_bytes()
    if changed == "objective":
        objective = Objective("score")
    elif changed == "data":
        packed[0] = model.pack(parts[2])
    else:
        settings |= {"epochs": {"epochs": 3}, "lr": {"lr": 0.01}, "seed": {"seed": 1}}.get(changed, {})
    if changed != "weights":
        model.load_state_dict(initial)
    with pytest.raises(CheckpointError, match=told):
        train(model, *packed, objective, TrainingSettings(**settings), state_dir=tmp_path)
    assert (tmp_path / "fit" / "state.safetensors").read_bytes() == state


def test_exponential_hawkes_is_fitted_near_the_truth(hawkes: EventDataset, tmp_path: Path) -> None:
    forecaster = EventForecaster(ExponentialHawkes(3))
    history = forecaster.fit(hawkes, hawkes)
    assert history.best < history.start < np.inf
    again = EventForecaster.from_pretrained(forecaster.save_pretrained(tmp_path / "m"))
    assert torch.equal(again.model.log_mu, forecaster.model.log_mu)
    rates = forecaster.model.log_mu.exp().detach().numpy() / forecaster.model.statistics.mean_gap
    assert rates.sum() == pytest.approx(0.45, abs=0.12)  # 1,800 events; three standard errors


@pytest.mark.parametrize("objective", ["score", "score+mass"])
def test_models_without_a_score_head_refuse_score_objectives(objective: str) -> None:
    with pytest.raises(SettingsError, match="cannot be trained"):
        EventForecaster(small(THP), objective=objective)


def test_raw_gap_score_matching_carries_a_warning() -> None:
    assert "biased" in EventForecaster(small(SmurfTHP), objective="score", time_coordinate="gap").notes[0]


@pytest.mark.parametrize(("objective", "note"), [("likelihood", "come at the time of"), ("score", "tied events")])
def test_ties_have_a_probability_or_are_dequantised_and_either_is_noted(objective: str, note: str) -> None:
    rng = np.random.default_rng(0)
    sequences = [
        EventSequence(np.sort(rng.integers(0, 40, 30)).astype(float), rng.integers(0, 2, 30)) for _ in range(8)
    ]
    dataset = EventDataset(tuple(sequences), ("a", "b"))
    forecaster = EventForecaster(small(SmurfTHP, num_marks=2), objective=objective)
    forecaster.fit(dataset, dataset, epochs=1)
    assert note in forecaster.notes[0]
    assert np.isfinite(forecaster.score(dataset, bootstrap=0).scores["loglik"])


def test_events_all_at_one_time_are_refused() -> None:
    dataset = EventDataset.from_sequences([[5.0] * 4] * 4, [[0] * 4] * 4)
    with pytest.raises(DataError, match="at the same time"):
        EventForecaster(small(SmurfTHP, num_marks=1)).fit(dataset, dataset, epochs=1)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": -3}, {"lr": 0.0}, {"patience": -1}])
def test_training_settings_out_of_range_are_refused(bad: dict, parts) -> None:
    with pytest.raises(SettingsError, match=next(iter(bad))):
        EventForecaster(small(SmurfTHP)).fit(parts[0], parts[1], **bad)


def test_a_model_without_width_is_refused() -> None:
    with pytest.raises(SettingsError, match="hidden_size is 0"):
        SmurfTHP(3, hidden_size=0)


def test_empty_parts_and_lonely_events_are_refused(parts) -> None:
    empty = parts[0].with_sequences(())
    lonely = EventDataset((EventSequence([1.0], [0]),), ("a", "b", "c"))
    for training in (empty, lonely):
        with pytest.raises(DataError):
            EventForecaster(small(SmurfTHP)).fit(training, parts[1], epochs=1)


def test_one_event_sequences_are_carried_along(parts) -> None:
    extra = EventSequence([2.0], [1], start=0.0, name="one")
    training = parts[0].with_sequences((*parts[0].sequences[:4], extra))
    forecaster = EventForecaster(small(SmurfTHP))
    forecaster.fit(training, parts[1], epochs=1)
    assert forecaster.next_event(extra).quantile(0.5) > 0


# -- asking ----------------------------------------------------------------------------------------------------------


def test_forecast_does_not_depend_on_the_clock_origin(fitted: EventForecaster) -> None:
    times = np.array([0.0, 0.5, 2.0, 2.25])
    near = fitted.next_event(EventSequence(times, [0, 1, 2, 0]))
    far = fitted.next_event(EventSequence(times + 2.0**30, [0, 1, 2, 0]))  # exact in float64: about the year 2004
    assert near.quantile(0.5) == far.quantile(0.5)


def test_online_forecast_equals_the_batch_forecast(fitted: EventForecaster, hawkes: EventDataset) -> None:
    history = replace(hawkes.sequences[0], start=None)
    stream = fitted.stream()
    for time, mark in zip(history.times, history.marks, strict=True):
        stream.observe(float(time), int(mark))
    expected = fitted.next_event(history).quantile(0.8, elapsed=0.3)
    assert stream.next_event().quantile(0.8, elapsed=0.3) == pytest.approx(expected, rel=2e-4)
    assert stream.quantile(0.8, elapsed=0.3) == pytest.approx(expected, rel=2e-4)  # float32, another order of sums


def test_stream_longer_than_its_window_restarts_from_recent_events(fitted: EventForecaster) -> None:
    model = fitted.model
    before = model.window, model.context
    model.window, model.context = 24, 8
    try:
        stream = fitted.stream()
        for i in range(100):
            stream.observe(0.5 * i, i % 3)
        assert stream.encoder.length <= 24
        assert np.isfinite(stream.next_event().quantile(0.9))
    finally:
        model.window, model.context = before


def test_hazard_is_the_slope_of_minus_log_survival(fitted: EventForecaster, hawkes: EventDataset) -> None:
    law = fitted.next_event(hawkes.sequences[0])
    step = 1e-4
    slope = (np.log(law.survival(0.7 - step)) - np.log(law.survival(0.7 + step))) / (2 * step)
    assert law.hazard(0.7) == pytest.approx(slope, rel=1e-5)
    with pytest.raises(SettingsError, match="positive wait"):
        law.hazard(0.0)


def test_unknown_marks_are_refused_when_forecasting(fitted: EventForecaster) -> None:
    with pytest.raises(DataError, match="knows 3 marks"):
        fitted.next_event(EventSequence([0.0], [7]))
    with pytest.raises(DataError, match="not one that the model knows"):
        fitted.stream().observe(0.0, "nonsense")


def test_time_going_back_in_a_stream_is_refused(fitted: EventForecaster) -> None:
    stream = fitted.stream()
    stream.observe(3.0, 0)
    with pytest.raises(DataError, match="before the last"):
        stream.observe(2.0, 0)


def test_scores_stand_beside_baselines_with_errors(fitted: EventForecaster, parts) -> None:
    result = fitted.score(parts[2], bootstrap=20)
    assert result.errors["loglik"] > 0
    assert set(result.baselines) == {"empirical by previous type", "Poisson and majority type"}
    assert len(result.events["pit"]) == sum(len(s) - 1 for s in parts[2].sequences)


def test_one_long_sequence_is_windowed_and_has_no_errors_and_both_are_said(fitted: EventForecaster) -> None:
    rng = np.random.default_rng(1)
    long = EventSequence(np.cumsum(rng.exponential(size=1500)), rng.integers(0, 3, 1500), start=0.0)
    result = fitted.score(EventDataset((long,), fitted.mark_names), bootstrap=20)
    assert len(result.events["gap"]) == 1499
    assert result.errors == {}
    assert "one sequence" in result.notes[0] and "windowed" in result.notes[1]


# -- places ----------------------------------------------------------------------------------------------------------


def test_smash_forecasts_time_mark_and_place(places: EventDataset) -> None:
    forecaster = EventForecaster(small(Smash, num_marks=2, location_size=16))
    forecaster.fit(places, places, epochs=2, batch_size=4)
    region = forecaster.next_event(places.sequences[0]).location_region(0.9, num_samples=60)
    assert region.density.shape == (64, 64)
    assert region.inside.any()


def test_place_outside_the_training_range_is_only_far_away(places: EventDataset) -> None:
    forecaster = EventForecaster(small(Smash, num_marks=2, location_size=16))
    forecaster.fit(places, places, epochs=1)
    sequence = places.sequences[0]
    assert sequence.locations is not None
    far = replace(sequence, locations=sequence.locations + 1000.0)
    assert np.isfinite(forecaster.next_event(far).quantile(0.5))


def test_smash_without_places_is_refused(parts) -> None:
    with pytest.raises(DataError, match="needs locations"):
        EventForecaster(small(Smash)).fit(parts[0], parts[1], epochs=1)


def test_models_without_places_refuse_regions(fitted: EventForecaster, hawkes: EventDataset) -> None:
    with pytest.raises(SettingsError, match="fit the model place-mixture or smash"):
        fitted.next_event(hawkes.sequences[0]).location_region()


# -- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [THP, SmurfTHP, LogNormalMixture, ExponentialHawkes])
def test_save_and_load_is_bit_equal(model, parts, tmp_path: Path) -> None:
    net = model(3) if model is ExponentialHawkes else small(model)
    forecaster = EventForecaster(net)
    forecaster.fit(parts[0], parts[1], epochs=1)
    again = EventForecaster.from_pretrained(forecaster.save_pretrained(tmp_path / "saved"))
    history = parts[2].sequences[0]
    assert again.next_event(history).quantile(0.5) == forecaster.next_event(history).quantile(0.5)
    assert again.model.statistics == forecaster.model.statistics


def test_structured_model_survives_saving(tmp_path: Path) -> None:
    forecaster = EventForecaster(small(StructuredTHP, num_vertices=3, edges=[(0, 1), (1, 2)]))
    again = EventForecaster.from_pretrained(forecaster.save_pretrained(tmp_path / "saved"))
    assert torch.equal(again.model.adjacency, forecaster.model.adjacency)


def test_another_format_is_refused(fitted: EventForecaster, tmp_path: Path) -> None:
    path = fitted.save_pretrained(tmp_path / "saved")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        EventForecaster.from_pretrained(path)


def test_a_truncated_model_is_refused(fitted: EventForecaster, tmp_path: Path) -> None:
    path = fitted.save_pretrained(tmp_path / "saved")
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="incomplete"):
        EventForecaster.from_pretrained(path)


def test_nothing_of_others_is_overwritten(fitted: EventForecaster, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(OutputError, match="not an event forecaster"):
        fitted.save_pretrained(tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_directory_that_is_not_a_forecaster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BurnishError, match="not a saved event forecaster"):
        EventForecaster.from_pretrained(tmp_path)


def test_the_room_imports_without_transformers() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import burnish.events as e\n"
        "[getattr(e, name) for name in e.__all__]\n"
        "import burnish.events.report\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(p for p in sys.path if p)})
