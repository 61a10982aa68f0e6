"""The arithmetic of the experiment on policies: its losses, its judge, and what its tables are made of."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import align_policy


def test_rdpo_is_unbiased_under_exchanges_at_its_rate():
    m = torch.linspace(-4, 4, 9, dtype=torch.float64)
    right, wrong = (align_policy.loss_of("rDPO", margin, {"label_smoothing": 0.3}) for margin in (m, -m))
    torch.testing.assert_close(0.7 * right + 0.3 * wrong, F.softplus(-m))


@pytest.mark.parametrize("name", ["DPO", "cDPO", "R3M", "APS"])
def test_every_loss_takes_its_settings_and_falls_where_margins_grow_from_below(name):
    m = torch.tensor([-2.0, -1.0], dtype=torch.float64)
    for settings in (align_policy.LOSSES[name], *align_policy.OWN[name]):
        given = {key: value for key, value in settings.items() if key != "rate"}
        low, high = align_policy.loss_of(name, m, align_policy.LOSSES[name] | given).tolist()
        assert low > high


def test_a_win_is_counted_over_all_pairs_of_samples_and_a_tie_as_half():
    ours, theirs = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [5.0, 0.0]])
    wins = [[(a > b) + 0.5 * (a == b) for a in one for b in other] for one, other in zip(ours, theirs, strict=True)]
    assert align_policy.win_rate(ours, theirs) == pytest.approx(np.mean(wins))


def test_the_learning_rate_rises_and_ends_at_nothing():
    rates = [align_policy.rate_at(step, 40) for step in range(41)]
    assert rates[3] == 1 and rates[40] == 0 and max(rates) == 1 and min(rates) >= 0


def test_the_table_is_paired_against_dpo():
    cells = {
        f"{loss}, {noise:g}": [
            {"win": 0.6 + 0.01 * seed + 0.02 * (loss == "R3M"), "divergence": 1.0, "wrong labels learned": 0.5}
            for seed in range(3)
        ]
        for loss in align_policy.LOSSES
        for noise in (*align_policy.NOISE, align_policy.COIN)
    }
    results = {"cells": cells, "tried": {}, "chosen": {loss: {"beta": 0.1} for loss in align_policy.LOSSES}}
    rows = align_policy.tables(results)["win"].splitlines()
    assert "+2.0 (+2.0 to +2.0)" in next(row for row in rows if row.startswith("| R3M"))
