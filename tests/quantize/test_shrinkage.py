"""Shrinkage: the foretold loss is the mean loss, and the choice follows the data."""

import pytest
import torch

from burnish.quantize.maths.grid import IntegerGrid
from burnish.quantize.maths.rounding import proxy_loss, round_two_sided
from burnish.quantize.maths.shrinkage import choose_shrinkage, expected_loss, shrink, square_root


def samples(count: int, size: int, seed: int) -> torch.Tensor:
    """Second moments of `count` correlated Gaussian vectors, from one distribution for every seed."""
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    root = root @ torch.diag(torch.logspace(0, -1.5, size, dtype=torch.float64))
    vectors = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) @ root.T
    return vectors.T @ vectors / count


@pytest.mark.parametrize("order", ["natural", "diagonal"])
def test_expected_loss_is_the_mean_loss_of_rounding(order):
    """A factor used for rounding, another one to measure with, and a grid without bounds and with unequal steps."""
    size, count = 16, 400
    used = shrink(samples(30, size, 1), damping=0.1)
    measured = samples(200, size, 2)
    weight = torch.randn(count, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    steps = torch.linspace(0.2, 0.8, size, dtype=torch.float64)
    grid = IntegerGrid(
        4, True, 1, steps.expand(count, size), torch.zeros(count, size, dtype=torch.float64), bounded=False
    )
    error = weight - round_two_sided(weight, None, used, grid, order=order)
    mean = float(proxy_loss(error, None, measured)) / count
    foretold = {o: expected_loss(used, square_root(measured), steps**2, order=o) / 12 for o in ("natural", "diagonal")}
    assert mean == pytest.approx(foretold[order], rel=0.1)
    assert foretold["natural"] != pytest.approx(foretold["diagonal"], rel=0.2)


def test_few_samples_ask_for_more_damping_than_many():
    held_out = samples(4000, 32, 5)
    few = choose_shrinkage(samples(8, 32, 1), held_out)
    many = choose_shrinkage(samples(4000, 32, 2), held_out)
    assert many.damping < few.damping
    assert many.loss < few.loss < 1


def test_noise_is_answered_with_the_identity():
    """Factors of unrelated text: no shrunk version helps, so that side is not used."""
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)).Q
    choice = choose_shrinkage(samples(20, 32, 1), rotation @ samples(4000, 32, 5) @ rotation.T, dampings=(0.003, 0.01))
    assert choice.is_identity
    assert choice.apply(samples(20, 32, 1)) is None


def test_a_good_target_is_used_where_the_factor_is_noise():
    choice = choose_shrinkage(samples(4, 32, 1), samples(4000, 32, 5), target=samples(4000, 32, 2))
    assert choice.mix == 1.0


def test_a_singular_held_out_factor_has_a_root():
    singular = samples(3, 32, 1).float()
    root = square_root(singular)
    torch.testing.assert_close(root @ root.T, singular, rtol=0, atol=1e-4 * float(singular.diagonal().mean()))


def test_a_factor_of_zeros_is_answered_with_the_identity():
    zeros = torch.zeros(8, 8, dtype=torch.float64)
    assert choose_shrinkage(zeros, zeros).is_identity
