"""Noise models of preference labels."""

import torch

from burnish.align.maths.noise import clearest, irrational, myopic, stochastic, uniform


def test_stochastic_noise_flips_at_the_rate_of_the_logistic_model():
    gap = torch.full((20_000,), 1.5)
    flipped = stochastic(gap, 2.0, torch.Generator().manual_seed(0)).float().mean()
    assert abs(flipped - torch.sigmoid(torch.tensor(-0.75))) < 0.01  # 3 standard errors of a proportion at n = 20,000


def test_myopic_noise_with_discount_one_is_stochastic_noise_of_the_sum():
    steps = torch.randn(500, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = myopic(steps, 1.0, torch.Generator().manual_seed(2))
    second = stochastic(steps.sum(1), 1.0, torch.Generator().manual_seed(2))
    assert (first == second).all()


def test_myopic_noise_follows_the_last_step():
    steps = torch.tensor([[50.0, -3.0]]).repeat(2_000, 1)
    assert myopic(steps, 0.01, torch.Generator().manual_seed(0)).float().mean() > 0.9


def test_irrational_noise_flips_a_power_of_the_batch_size():
    gap = torch.arange(1.0, 65.0)
    flipped = irrational(gap, 2 / 3)
    assert flipped.sum() == int(64 ** (2 / 3))
    assert gap[flipped].min() > gap[~flipped].max()


def test_clearest_takes_the_largest_gaps_of_either_sign():
    assert clearest(torch.tensor([0.1, -5.0, 2.0, 0.2]), 0.5).tolist() == [False, True, True, False]


def test_uniform_noise_flips_exactly_the_share():
    assert uniform(200, 0.2, torch.Generator().manual_seed(0)).sum() == 40
