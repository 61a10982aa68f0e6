import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import kstest

from burnish.events.hawkes import PRESETS, HawkesParameters, simulate_hawkes, true_quantiles, truth
from burnish.events.maths.hawkes import gap_compensator, gap_quantile, log_likelihood


def test_log_likelihood_equals_hawkesbook(reference: Path) -> None:
    known = json.loads((reference / "hawkes3_loglik_quantiles.json").read_text())
    for sequence in known["sequences"]:
        value = log_likelihood(
            np.array(sequence["times"]),
            np.array(sequence["marks"]),
            np.array(known["mu"]),
            np.array(known["A"]),
            known["b"],
            end=known["T"],
        )
        assert value == pytest.approx(sequence["loglik_hawkesbook"], abs=1e-9)


@pytest.mark.parametrize("excitation", [0.0, 0.3, 4.0, 60.0])
@pytest.mark.parametrize("q", [1e-6, 0.1, 0.5, 0.999])
def test_lambert_w_quantile_equals_root_finding(q: float, excitation: float) -> None:
    def excess(gap: float) -> float:
        return float(gap_compensator(gap, 0.45, excitation, 1.5)) + np.log1p(-q)

    root = brentq(excess, 0.0, 100.0, xtol=1e-16, rtol=1e-15)
    assert gap_quantile(q, 0.45, excitation, 1.5) == pytest.approx(root, rel=1e-12)


def test_simulated_compensators_are_exponential() -> None:
    dataset = simulate_hawkes(PRESETS["hawkes3"], 80, num_events=50, seed=11)
    values = np.concatenate([truth(PRESETS["hawkes3"], s).compensator for s in dataset.sequences])
    assert abs(values.mean() - 1) < 3 / np.sqrt(len(values))
    assert kstest(-np.expm1(-values), "uniform").pvalue > 0.01


def test_simulation_reproduces_the_reference_sequence_start() -> None:
    # The same generator calls in the same order as the shipped generator of the reference data.
    first = simulate_hawkes(PRESETS["hawkes3"], 1, num_events=3, seed=0).sequences[0]
    longer = simulate_hawkes(PRESETS["hawkes3"], 1, num_events=8, seed=0).sequences[0]
    assert np.array_equal(first.times, longer.times[:3])


def test_true_quantiles_cover_as_often_as_they_say() -> None:
    dataset = simulate_hawkes(PRESETS["hawkes2"], 60, num_events=50, seed=2)
    below = [s.gaps[:, None] < true_quantiles(PRESETS["hawkes2"], s, [0.25, 0.9]) for s in dataset.sequences]
    share = np.concatenate(below).mean(0)
    assert np.abs(share - [0.25, 0.9]).max() < 4 * np.sqrt(0.25 / 3000)


def test_true_mark_probabilities_sum_to_one() -> None:
    sequence = simulate_hawkes(PRESETS["hawkes3"], 1, num_events=20, seed=3).sequences[0]
    assert truth(PRESETS["hawkes3"], sequence).mark_probs.sum(1) == pytest.approx(1.0, abs=1e-14)


def test_an_exploding_process_is_refused() -> None:
    with pytest.raises(Exception, match="explodes"):
        HawkesParameters(mu=(0.1,), jumps=((2.0,),), decay=1.0)
