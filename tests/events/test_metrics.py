import json
from pathlib import Path

import numpy as np
import pytest

from burnish.events import metrics
from burnish.events.conformal import AdaptiveConformal
from burnish.events.hawkes import PRESETS, simulate_hawkes, true_quantiles, truth
from burnish.events.locations import density_rank, highest_density_region

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("estimator", ["nrg", "fair"])
def test_crps_equals_the_double_sum(estimator: str) -> None:
    samples, observed = RNG.exponential(size=(4, 15)), RNG.exponential(size=4)
    pairs = np.abs(samples[:, :, None] - samples[:, None]).sum((1, 2))
    divisor = 2 * 15 * (15 if estimator == "nrg" else 14)
    expected = np.abs(samples - observed[:, None]).mean(1) - pairs / divisor
    assert metrics.crps_from_samples(samples, observed, estimator=estimator) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("estimator", ["nrg", "fair"])
def test_crps_equals_scoringrules(reference: Path, estimator: str) -> None:
    given = json.loads((reference / "scoringrules_crps.json").read_text())
    found = metrics.crps_from_samples(np.array(given["samples"]), np.array(given["observed"]), estimator=estimator)
    assert found == pytest.approx(given[estimator], abs=1e-12)


def test_crps_of_exponential_quantiles_is_the_closed_form() -> None:
    # CRPS(Exp(1), y) = y + 2 exp(-y) - 3/2; a grid of 4,000 levels leaves an error of about 1e-3.
    observed = np.array([0.1, 0.7, 3.0])
    quantiles = np.broadcast_to(-np.log1p(-(np.arange(4000) + 0.5) / 4000), (3, 4000))
    expected = observed + 2 * np.exp(-observed) - 1.5
    assert metrics.crps_from_quantiles(quantiles, observed) == pytest.approx(expected, abs=1e-3)


def test_true_quantiles_are_covered_at_all_levels() -> None:
    dataset = simulate_hawkes(PRESETS["hawkes3"], 60, num_events=60, seed=21)
    pit = np.concatenate([truth(PRESETS["hawkes3"], s).pit for s in dataset.sequences])
    levels = np.array(metrics.LEVELS_19)
    error = np.sqrt(levels * (1 - levels) / len(pit))
    assert (np.abs(metrics.coverage(pit) - levels) < 4 * error).all()


@pytest.mark.slow
@pytest.mark.slow
def test_ideal_scores_equal_the_reference(reference: Path) -> None:
    known = json.loads((reference / "hawkes3_ideal_scores.json").read_text())
    preset = PRESETS["hawkes3"]
    test = simulate_hawkes(preset, 1500, num_events=60, seed=0).sequences[1200:]
    facts = [truth(preset, s) for s in test]
    pit = np.concatenate([f.pit[1:] for f in facts])
    gaps = np.concatenate([s.gaps[1:] for s in test])
    quantiles = np.concatenate([true_quantiles(preset, s, list((np.arange(200) + 0.5) / 200))[1:] for s in test])
    assert metrics.calibration_score(pit) == pytest.approx(known["calibration_score_19"], abs=1e-12)
    assert metrics.calibration_score(pit) < 0.006
    total = np.concatenate([f.log_intensity[1:] - f.compensator[1:] for f in facts]).mean()
    assert total == pytest.approx(known["ll"], abs=1e-10)
    assert metrics.crps_from_quantiles(quantiles, gaps).mean() == pytest.approx(known["crps"], abs=1.5e-3)


def test_calibration_score_of_a_shifted_pit_is_the_shift() -> None:
    pit = np.clip((np.arange(20_000) + 0.5) / 20_000 - 0.02, 0, 1)
    assert metrics.calibration_score(pit) == pytest.approx(0.02, abs=1e-3)


@pytest.mark.parametrize("squared", [True, False])
def test_chance_is_the_score_of_uniform_ranks(squared: bool) -> None:
    levels = metrics.LEVELS_19 if squared else (0.5, 0.6, 0.7, 0.8, 0.9)
    drawn = np.random.default_rng(1).random((400, 600))
    if squared:
        scores = np.array([metrics.calibration_score(pit) for pit in drawn])
    else:
        scores = np.array([np.mean([abs((pit <= q).mean() - q) for q in levels]) for pit in drawn])
    mean, most = metrics.chance_score(600, levels, squared=squared)
    assert mean == pytest.approx(scores.mean(), abs=4 * scores.std() / 20)
    assert (scores <= most).mean() == pytest.approx(0.95, abs=4 * np.sqrt(0.05 * 0.95 / 400))


def test_the_rank_of_a_place_is_uniform_for_the_true_law() -> None:
    """Also with few samples, whose ranks are coarse."""
    rng = np.random.default_rng(0)
    found = np.array([density_rank(rng.normal(size=(20, 2)), rng.normal(size=2), rng.random()) for _ in range(4000)])
    mean, _ = metrics.chance_score(4000, (0.1, 0.5, 0.9))
    assert metrics.calibration_score(found, (0.1, 0.5, 0.9)) < 4 * mean


def test_expected_calibration_error_of_an_honest_coin_is_zero() -> None:
    probs = np.tile([0.75, 0.25], (8, 1))
    marks = np.array([0, 0, 0, 1] * 2)
    assert metrics.expected_calibration_error(probs, marks) == pytest.approx(0.0, abs=1e-12)


def test_energy_score_in_one_dimension_is_the_crps() -> None:
    samples = RNG.normal(size=(3, 4000, 2))
    samples[..., 1] = 0.0
    observed = np.array([[0.0, 0.0], [1.0, 0.0], [-2.0, 0.0]])
    crps = metrics.crps_from_samples(samples[..., 0], observed[:, 0], estimator="fair")
    assert metrics.energy_score(samples, observed) == pytest.approx(crps, abs=0.03)  # its spread uses disjoint halves


def test_bootstrap_error_of_a_mean_of_independent_sequences() -> None:
    groups = np.repeat(np.arange(200), 5)
    values = np.repeat(RNG.normal(size=200), 5)  # five copies: the error must be that of 200 values, not of 1,000
    error = metrics.bootstrap_error(lambda rows: float(values[rows].mean()), groups, num_draws=400)
    assert error == pytest.approx(values.std() / np.sqrt(200), rel=0.2)


def test_share_errors_equal_the_bootstrap_of_each_coverage() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), rng.integers(5, 40, 40))
    pit = np.clip(rng.random(len(groups)) + 0.2 * rng.normal(size=40)[groups], 0, 1)  # sequences differ
    levels = np.array([0.2, 0.5, 0.8])
    errors = metrics.share_error(pit[:, None] < levels, groups, num_draws=4000)
    for level, error in zip(levels, errors, strict=True):
        one = metrics.bootstrap_error(lambda rows, q=level: float((pit[rows] < q).mean()), groups, num_draws=500)
        assert error == pytest.approx(one, rel=0.15)  # the second bootstrap has 500 draws


@pytest.mark.parametrize("num_sequences", [2, 3, 5, 20])
def test_reach_of_a_share_holds_the_truth_as_often_as_it_says(num_sequences: int) -> None:
    """Sequences differ in how many of their gaps lie inside; two standard errors held 70 % of two sequences."""
    rng, hits, num_draws = np.random.default_rng(num_sequences), 0, 400
    groups = np.repeat(np.arange(num_sequences), 50)
    for _ in range(num_draws):
        inside = rng.random(len(groups)) < np.clip(0.5 + 0.15 * rng.normal(size=num_sequences), 0, 1)[groups]
        reach = metrics.share_reach(inside[:, None], groups)[0]
        hits += abs(inside.mean() - 0.5) <= reach
    assert 0.91 <= hits / num_draws <= 0.99  # 400 draws of a 95 % event have a standard deviation of 1.1 %


def test_share_error_of_a_single_sequence_is_binomial() -> None:
    inside = np.array([[True], [False], [True], [True]])
    assert metrics.share_error(inside, np.zeros(4, int)) == pytest.approx([np.sqrt(0.75 * 0.25 / 4)])


def test_highest_density_region_covers_a_gaussian_at_its_level() -> None:
    ranks = []
    for _ in range(150):
        drawn = RNG.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=301)
        ranks.append(density_rank(drawn[1:], drawn[0]))
    covered = (np.array(ranks) <= 0.8).mean()
    assert abs(covered - 0.8) < 4 * np.sqrt(0.16 / 150)


def test_region_holds_the_mass_it_says() -> None:
    samples = RNG.normal(size=(2000, 2))
    region = highest_density_region(samples, 0.5)
    cell = (region.x[1] - region.x[0]) * (region.y[1] - region.y[0])
    assert float((region.density * region.inside).sum() * cell) == pytest.approx(0.5, abs=0.05)


def test_adaptive_conformal_meets_its_bound_under_drift() -> None:
    # The forecaster says exponential(1), but the gaps grow from mean 1 to mean 3: without adaptation 0.9 covers 0.68.
    gaps = RNG.exponential(np.linspace(1.0, 3.0, 3000))
    pit = -np.expm1(-gaps)
    conformal = AdaptiveConformal((0.5, 0.9), gamma=0.05)
    for value in pit:
        conformal.update(float(value))
    assert (pit < 0.9).mean() < 0.8
    for target in (0.5, 0.9):
        assert abs(conformal.coverage(target) - target) <= conformal.bound(target)
        assert conformal.bound(target) < 0.01
