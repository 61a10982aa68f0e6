"""Events after the next one, waits of single sequences, and conformal levels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest_events import double, small
from hypothesis import given
from hypothesis import strategies as st
from test_command import SMALL, call

from burnish.core.errors import BurnishError, SettingsError
from burnish.events import (
    THP,
    EventDataset,
    EventForecaster,
    EventSequence,
    ExponentialHawkes,
    SplitConformal,
    StructuredTHP,
    metrics,
    sample_paths,
)
from burnish.events.conformal import HeldOutCalibration
from burnish.events.hawkes import PRESETS, simulate_hawkes

# -- events after the next one ---------------------------------------------------------------------------------------


def test_futures_of_a_poisson_process_are_gamma_distributed() -> None:
    from scipy.stats import gamma, kstest

    model = ExponentialHawkes(1)
    model.log_mu.data.fill_(np.log(2.0))
    model.log_jumps.data.fill_(-30.0)
    history = EventSequence(np.array([1.0, 3.0]), np.zeros(2, int))
    paths = sample_paths(EventForecaster(model), history, 3, num_paths=2000, elapsed=0.7, seed=1)
    for step in range(3):
        assert kstest(paths.waits[:, step], gamma(step + 1, scale=0.5).cdf).pvalue > 1e-3


def test_the_first_event_of_futures_has_the_law_of_the_next(fitted, parts) -> None:
    history = parts[2].sequences[0]
    law = fitted.next_event(history)
    paths = sample_paths(fitted, history, 2, num_paths=4000, elapsed=0.3, seed=2)
    for q in (0.1, 0.5, 0.9):
        assert (paths.waits[:, 0] <= law.quantile(q, 0.3)).mean() == pytest.approx(q, abs=0.02)
    assert (np.diff(paths.waits) > 0).all()
    assert paths.ahead(1, [0.5]).mark_probs.sum() == pytest.approx(1.0)


def test_a_future_sees_what_was_drawn_before() -> None:
    """After a type-0 event of this process a type-1 event follows at once."""
    model = ExponentialHawkes(2).double()
    model.log_mu.data.copy_(model.log_mu.new_tensor([0.0, -9.0]))
    model.log_jumps.data.fill_(-30.0)
    model.log_jumps.data[1, 0] = 5.0
    model.log_decay.data.fill_(np.log(50.0))
    forecaster = EventForecaster(model)
    paths = sample_paths(forecaster, EventSequence(np.array([0.0]), np.ones(1, int)), 2, num_paths=300)
    after = paths.marks[:, 0] == 0
    assert after.mean() > 0.9
    assert (paths.marks[after, 1] == 1).mean() > 0.9


def test_a_process_that_stops_has_no_events_after_that() -> None:
    model = double(small(THP))
    model.intensity.slope.data.fill_(-3.0)
    [history] = simulate_hawkes(PRESETS["hawkes3"], 1, num_events=5, seed=0).sequences
    paths = sample_paths(EventForecaster(model), history, 4, num_paths=200)
    stopped = np.isinf(paths.waits)
    assert stopped.any() and (np.diff(stopped.astype(int)) >= 0).all()
    assert (paths.marks[stopped] == -1).all() and (paths.marks[~stopped] >= 0).all()


def test_places_are_drawn_with_the_events(places: EventDataset) -> None:
    from burnish.events import PlaceMixture

    model = double(small(PlaceMixture, num_marks=2, num_covariates=1))
    model.statistics = replace(model.statistics, covariate_mean=(0.0,), covariate_scale=(1.0,))
    history = replace(places.sequences[0], covariates=np.ones((25, 1)))
    forecaster = EventForecaster(model)
    forecaster.mark_names = places.mark_names
    paths = sample_paths(forecaster, history, 2, num_paths=20)
    assert paths.locations is not None and np.isfinite(paths.locations[np.isfinite(paths.waits)]).all()
    assert paths.ahead(1, [0.5]).region is not None


def test_events_with_vertices_are_not_drawn() -> None:
    model = small(StructuredTHP, num_vertices=2, edges=[(0, 1)])
    history = EventSequence(np.array([0.0]), np.zeros(1, int), vertices=np.zeros(1, int))
    with pytest.raises(SettingsError, match="draws no vertices"):
        sample_paths(EventForecaster(model), history, 2)


# -- conformal levels ------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_the_level_is_the_conformal_order_statistic(n: int, q: float, seed: int) -> None:
    pit = np.random.default_rng(seed).random(n)
    level = SplitConformal.of(pit).level(q)
    rank = int(np.ceil((n + 1) * q - 1e-9))
    assert level == pytest.approx(0.9999 if rank > n else min(np.sort(pit)[rank - 1], 0.9999))


def test_levels_of_a_wrong_forecast_cover() -> None:
    rng = np.random.default_rng(0)
    seen, new = rng.beta(0.5, 1.0, 5000), rng.beta(0.5, 1.0, 20000)
    conformal = SplitConformal.of(seen)
    assert len(conformal.pit) == 1001
    for q in (0.1, 0.5, 0.9):
        assert (new <= conformal.level(q)).mean() == pytest.approx(q, abs=0.02)
        for passed in (0.2, 0.7):  # and of those still to come
            rest = (new[new > passed] - passed) / (1 - passed)
            assert (rest <= conformal.level(q, passed)).mean() == pytest.approx(q, abs=0.03)


@pytest.mark.parametrize("num_sequences", [1, 7])
def test_a_validation_part_says_whether_moving_levels_helps(num_sequences: int) -> None:
    rng = np.random.default_rng(1)
    sequence, index = np.arange(4000) % num_sequences, np.arange(4000) // num_sequences
    wrong = HeldOutCalibration.of(rng.beta(0.5, 1.0, 4000), sequence, index)
    assert wrong.asked > 0.1 > 3 * wrong.by_chance > wrong.moved
    right = HeldOutCalibration.of(rng.random(4000), sequence, index)
    assert max(right.asked, right.moved) < 3 * right.by_chance
    drifting = HeldOutCalibration.of(np.where(sequence + index < 2000, 0.2, 0.7), np.zeros(4000), index)
    assert drifting.moved > drifting.asked > 0.1  # the other half says nothing of this one


def test_beyond_all_that_was_seen_the_level_stays() -> None:
    conformal = SplitConformal.of(np.linspace(0.01, 0.99, 99))
    assert conformal.level(0.5, 0.95) == 0.5 == conformal.level(0.5, 1.0)
    assert conformal.level(0.5, 0.6) == pytest.approx(0.5, abs=0.02)
    for wrong in (1.5, -0.1, float("nan"), 1.0):
        with pytest.raises(SettingsError, match="quantile level"):
            conformal.level(wrong)


def test_conformal_levels_mend_a_thp_and_are_saved(tmp_path: Path) -> None:
    data = simulate_hawkes(PRESETS["hawkes2"], 220, num_events=30, seed=1)
    train, held_out, test = (data.with_sequences(data.sequences[a:b]) for a, b in ((0, 60), (60, 140), (140, 220)))
    forecaster = EventForecaster(small(THP, num_marks=2))
    forecaster.fit(train, held_out, epochs=2, batch_size=16)
    forecaster.calibrate(held_out)
    scores = forecaster.score(test, bootstrap=0).scores
    assert scores["calibration_score_19"] > 0.09 > 0.04 > scores["calibration_score_conformal"]
    again = EventForecaster.from_pretrained(forecaster.save_pretrained(tmp_path / "m"))
    assert again.conformal is not None and forecaster.conformal is not None
    assert np.array_equal(again.conformal.pit, forecaster.conformal.pit)
    assert metrics.calibration_score(again.conformal.cdf(forecaster.score(test, bootstrap=0).events["pit"])) < 0.04


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ahead")
    rows = [f"{name},{t / 3 + 0.1 * (t % 4)},{'ab'[t % 2]}" for name in "wxyz" for t in range(1, 30)]
    (folder / "h.csv").write_text("sequence_id,time,mark\n" + "\n".join(rows) + "\n")
    call("fit", folder / "h.csv", "-o", folder / "model", "--split-by", "time", *SMALL)
    return folder


def table(folder: Path, *options: str) -> list[dict[str, str]]:
    import csv

    call("forecast", folder / "model", folder / "h.csv", "-o", folder / "next.csv", *options)
    with (folder / "next.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_next_events_have_a_row_each(folder: Path) -> None:
    rows = table(folder, "--next", "3", "--quantiles", "0.1", "0.5")
    assert [row["event"] for row in rows[:4]] == ["1", "2", "3", "1"]
    assert float(rows[0]["wait_0.5"]) < float(rows[1]["wait_0.5"]) < float(rows[2]["wait_0.5"])
    assert rows[0]["wait_0.5"] == table(folder, "--quantiles", "0.5")[0]["wait_0.5"]
    assert rows == table(folder, "--next", "3", "--quantiles", "0.1", "0.5")


def test_every_sequence_may_have_waited_its_own_time(folder: Path) -> None:
    (folder / "waits.csv").write_text("sequence_id,elapsed\nw,0\nx,0.4\ny,1\nz,0\n")
    own = table(folder, "--as-of", str(folder / "waits.csv"))
    for row, elapsed in zip(own, ("0", "0.4", "1", "0"), strict=True):
        [same] = [r for r in table(folder, "--elapsed", elapsed) if r["sequence"] == row["sequence"]]
        assert row == same
    (folder / "waits.csv").write_text("sequence_id,now\n" + "".join(f"{name},11\n" for name in "wxyz"))
    assert table(folder, "--as-of", str(folder / "waits.csv")) == table(folder, "--now", "11")


def test_conformal_levels_are_those_of_the_validation_part(folder: Path) -> None:
    conformal = EventForecaster.from_pretrained(folder / "model").conformal
    assert conformal is not None
    [moved, *_] = table(folder, "--conformal", "--quantiles", "0.5")
    [plain, *_] = table(folder, "--quantiles", repr(conformal.level(0.5)))
    assert moved["wait_0.5"] == list(plain.values())[2]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("sequence_id,elapsed\nw,0\n", [], "no row for sequence 'x'"),
        ("sequence_id,waited\nw,0\n", [], "one of now and elapsed"),
        ("sequence_id,elapsed\nw,0\nw,1\n", [], "names a sequence twice"),
        ("sequence_id,elapsed\nw,soon\nx,1\ny,1\nz,1\n", [], "not a number"),
        ("sequence_id,elapsed\nw,-1\nx,1\ny,1\nz,1\n", [], "must be finite and at least 0"),
        ("sequence_id,elapsed\nw,0\n", ["--now", "30"], "give one"),
        ("sequence_id,elapsed\nw,0\nx,0\ny,0\nz,0\n", ["--conformal", "--next", "2"], "next event alone"),
    ],
)
def test_wrong_waits_are_refused(folder: Path, content: str, options: list[str], message: str) -> None:
    (folder / "wrong.csv").write_text(content)
    with pytest.raises(BurnishError, match=message):
        table(folder, "--as-of", str(folder / "wrong.csv"), *options)
