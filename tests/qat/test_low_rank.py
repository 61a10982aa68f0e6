"""A weight as few levels and a product of low rank, fitted in turns."""

import pytest
import torch

from burnish.qat.maths.few_levels import TERNARY, TWO_BITS, codes, initial_scale, values
from burnish.qat.maths.low_rank import fit_low_rank


def problem(rows: int, inputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the covariance of inputs some of which are far larger than others."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(4 * inputs, inputs, generator=generator, dtype=torch.float64)
    x = (x @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)) * torch.logspace(-1, 1, inputs)
    return weight, x.T @ x / len(x)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [TERNARY, TWO_BITS])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rule", ["gaussian", "absmean"])
def test_no_step_raises_the_error(seed, levels, weighted, rule):
    weight, covariance = problem(12, 16, seed)
    scale = initial_scale(weight, 8, levels, rule)
    fit = fit_low_rank(weight, scale, levels, 3, covariance=covariance if weighted else None)
    assert all(after <= before * (1 + 1e-12) for before, after in zip(fit.errors, fit.errors[1:], strict=False))
    assert fit.errors[-1] < 0.9 * fit.errors[1]  # rounding anew gains something too


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_product_of_full_rank_makes_up_for_all_that_levels_leave(shape, weighted):
    weight, covariance = problem(*shape, 0)
    scale = initial_scale(weight, 4, TERNARY, "gaussian")
    fit = fit_low_rank(weight, scale, TERNARY, min(shape), covariance=covariance if weighted else None, rounds=1)
    level = codes(weight, scale, TERNARY)
    assert torch.allclose(values(level, scale) + fit.up @ fit.down, weight, atol=1e-9)
    assert fit.errors[1] < 1e-12 * fit.errors[0]


def test_the_product_is_the_best_of_its_rank():
    """Of one round, against the truncated decomposition of numpy in the basis of the inputs' covariance."""
    import numpy as np
    from scipy.linalg import sqrtm

    weight, covariance = problem(10, 14, 1)
    scale = initial_scale(weight, 14, TERNARY, "gaussian")
    rest = (weight - values(codes(weight, scale, TERNARY), scale)).numpy()
    damped = covariance.numpy() / covariance.diagonal().mean().item() + 1e-2 * np.eye(14)
    sizes = np.linalg.svd(rest @ np.real(sqrtm(damped)), compute_uv=False)
    fit = fit_low_rank(weight, scale, TERNARY, 3, covariance=covariance, rounds=1)
    assert fit.errors[1] == pytest.approx(float((sizes[3:] ** 2).sum()), rel=1e-9)


def test_factors_have_equal_sizes_where_inputs_weigh_alike():
    weight, _ = problem(10, 14, 2)
    fit = fit_low_rank(weight, initial_scale(weight, 7, TERNARY, "gaussian"), TERNARY, 4)
    assert torch.allclose(fit.up.norm(dim=0), fit.down.norm(dim=1))


def test_the_weighted_fit_has_the_smaller_error_on_these_inputs():
    weight, covariance = problem(24, 32, 3)
    scale = initial_scale(weight, 32, TERNARY, "gaussian")

    def output_error(fit) -> float:
        rest = weight - fit.up @ fit.down
        rest = rest - values(codes(rest, fit.scale, TERNARY), fit.scale)
        return float(torch.einsum("oi,ij,oj->", rest, covariance, rest))

    plain, weighted = (fit_low_rank(weight, scale, TERNARY, 4, covariance=one) for one in (None, covariance))
    assert output_error(weighted) < output_error(plain)
