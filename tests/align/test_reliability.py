"""What the audit says of labels as a whole: refusal on noise, next to nothing on clean labels, the rate of flips."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from burnish.align.audit import CAPPED, caps_of, fit_margins
from burnish.align.audit_page import sampling_order
from burnish.align.audit_settings import AuditSettings
from burnish.align.linear_reward import cross_fitted_margins
from burnish.align.losses import r3m
from burnish.align.maths.noise import uniform
from burnish.align.recalibration import recalibrated
from burnish.align.reliability import reliability
from burnish.core.errors import DataError


def labelled(share, seed, num_pairs=2000, width=20):
    """Cross-fitted margins of pairs whose labels are drawn from a known reward and then flipped, and the flips."""
    generator = torch.Generator().manual_seed(seed)
    truth = 3 * torch.randn(width, generator=generator, dtype=torch.float64) / width**0.5
    x = torch.randn(num_pairs, width, generator=generator, dtype=torch.float64)
    drawn = torch.rand(num_pairs, generator=generator, dtype=torch.float64)
    label = torch.where(drawn < torch.sigmoid(x @ truth), 1.0, -1.0)
    flip = uniform(num_pairs, share, generator)
    differences = (x * (label * torch.where(flip, -1.0, 1.0))[:, None]).numpy()
    margins = cross_fitted_margins(
        differences, range(num_pairs), "bt", l2=1e-3, num_folds=5, num_repeats=1, generator=generator
    )
    return margins[0], flip.numpy()


def alone(margins):
    return [str(index) for index in range(len(margins))]


@pytest.mark.parametrize("seed", range(3))
def test_clean_labels_are_left_alone(seed):
    margins, _ = labelled(0.0, seed)
    found = reliability(margins, alone(margins))
    assert found.can_judge and found.noise.low == 0 and found.evenly < 0.03
    assert (found.wrong > 0.5).mean() < 0.005


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_the_rate_of_flips_and_their_probabilities_are_found(share):
    found, flips = [], []
    for seed in range(12):
        margins, flip = labelled(share, seed)
        found.append(reliability(margins, alone(margins)))
        flips.append(flip)
    assert all(one.noise.low <= share <= one.noise.high for one in found)
    # an end of a 95 % interval: of 12 fewer than 9 hold the truth with probability 0.002; rates have an error of 2 %
    assert sum(share <= one.evenly for one in found) >= 9
    assert abs(np.mean([one.noise.value for one in found]) - share) < 0.02
    wrong, flip = np.concatenate([one.wrong for one in found]), np.concatenate(flips)
    for tenth in np.array_split(np.argsort(wrong), 10):  # 2,400 pairs each: three standard errors are 3 points at most
        assert abs(wrong[tenth].mean() - flip[tenth].mean()) < 0.05


def sample(margins, flip, count, wrong):
    """A person decides `count` pairs, in the page's order."""
    rank = np.argsort(margins, kind="stable")
    turn = np.argsort(sampling_order(wrong[rank]))
    return {int(place): bool(flip[place]) for place in rank[turn[:count]]}


def test_decided_pairs_correct_what_the_noise_model_cannot_see():
    """Labels are exchanged where answers are close, which margins alone take for close calls."""
    shipped, corrected, held, possible = [], [], 0, 0
    for seed in range(12):
        draw = np.random.default_rng(seed)
        reward = draw.normal(0, 2, 2000)
        label = np.where(draw.random(2000) < expit(reward + draw.normal(0, 1, 2000)), 1, -1)
        flip = draw.random(2000) < 0.25 * np.exp(-np.abs(reward))
        margins = reward * np.where(flip, -label, label)
        judged = reliability(margins, alone(margins))
        better = recalibrated(judged, margins, sample(margins, flip, 200, judged.wrong))
        possible += judged.noise.low <= flip.mean() <= judged.noise.high
        shipped.append(judged.noise.value - flip.mean())
        corrected.append(better.noise.value - flip.mean())
        held += better.noise.low <= flip.mean() <= better.noise.high
    assert np.mean(shipped) < -0.08
    assert abs(np.mean(corrected)) < 0.03
    assert held >= 9  # of 12 intervals of 95 %, as above
    assert possible == 12  # what margins alone say is wide, and true


def test_decided_pairs_leave_true_probabilities_about_as_they_were():
    margins, flip = labelled(0.2, seed=1)
    judged = reliability(margins, alone(margins))
    better = recalibrated(judged, margins, sample(margins, flip, 400, judged.wrong))
    assert np.abs(better.wrong - judged.wrong).mean() < 0.05
    assert better.decided == 400 and "by 400 decided pairs" in str(better)


def test_none_wrong_of_the_decided_leaves_none_at_all_possible():
    margins, _ = labelled(0.0, seed=0, num_pairs=300)
    better = recalibrated(reliability(margins, alone(margins)), margins, dict.fromkeys(range(100), False))
    assert better.noise.low == 0 < better.noise.high < 0.06


def test_too_few_decided_pairs_are_refused():
    margins, _ = labelled(0.1, seed=0, num_pairs=200)
    with pytest.raises(DataError, match="19 pairs are kept or flipped"):
        recalibrated(reliability(margins, alone(margins)), margins, dict.fromkeys(range(19), True))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
@pytest.mark.parametrize("sure", [0.0, 0.15])
def test_what_margins_say_of_the_rate_holds_it_whatever_the_reader_is_sure_of(share, sure):
    """A reader whose margins go against a part of the right labels, however large: its errors look like exchanges."""
    held = evenly = 0
    for seed in range(8):
        draw = np.random.default_rng(seed)
        reward = draw.normal(0, 2, 1000)
        label = np.where(draw.random(1000) < expit(reward), 1, -1)
        flip = draw.random(1000) < share
        margins = reward * np.where(flip, -label, label) * np.where(draw.random(1000) < sure, -1, 1)
        judged = reliability(margins, alone(margins))
        held += judged.noise.low <= flip.mean() <= judged.noise.high
        evenly += flip.mean() <= judged.evenly
        assert "decided pairs tell them apart" in str(judged)
    assert held == 8 and evenly >= 6  # of ends of 95 % intervals fewer than 6 of 8 hold with probability 0.006


@pytest.mark.parametrize("seed", range(5))
def test_a_reader_that_knows_nothing_is_refused(seed):
    draw = np.random.default_rng(seed)
    found = reliability(draw.standard_normal(550), alone(range(550)))
    assert not found.can_judge and "cannot judge" in str(found)


def test_many_pairs_of_one_question_are_one_observation():
    draw = np.random.default_rng(0)
    one_each = draw.standard_normal(60) + 0.5
    repeated, groups = np.repeat(one_each, 20), [str(index // 20) for index in range(1200)]
    once, often = reliability(one_each, alone(one_each)), reliability(repeated, groups)
    assert often.agreement.low == pytest.approx(once.agreement.low, abs=1e-9)
    assert often.evenly == pytest.approx(once.evenly, abs=0.02)


def test_auc_is_the_share_of_pairs_of_margins_in_order():
    margins = np.array([2.0, -1.0, 0.5])
    wanted = np.mean([[1.0 * (a > -b) + 0.5 * (a == -b) for b in margins] for a in margins])
    assert reliability(margins, alone(margins)).auc == pytest.approx(wanted)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_cap_of_r3m_follows_the_scale_of_margins(scale):
    margins = scale * (np.random.default_rng(0).standard_normal(1000) + 1)
    for lam, share in zip(caps_of(margins), CAPPED, strict=True):
        if 1e-3 < lam < 1 - 1e-3:
            capped = (r3m(torch.from_numpy(margins), lam=lam)[1]["delta"] > 0).double().mean()
            assert capped == pytest.approx(share, abs=0.002)


def test_between_a_twentieth_and_a_third_of_the_pairs_are_capped_at_the_shipped_settings():
    draw = np.random.default_rng(1)
    x = draw.standard_normal((400, 300)) / 300**0.5  # |d| about 1, as features are scaled
    x[:, 0] += 0.05
    margins, lam = fit_margins(x, alone(x), AuditSettings(repeats=1))
    capped = (r3m(torch.from_numpy(margins["r3m"][0]), lam=lam)[1]["delta"] > 0).double().mean()
    assert 0.03 < capped < 0.4
