import math

import mpmath
import numpy as np
import pytest
import torch

from burnish.events.maths.quadrature import (
    dilogarithm_of_minus_exp,
    log_softplus,
    softplus_integral,
    softplus_integral_quadrature,
)


@pytest.mark.parametrize("x", [-40.0, -3.0, 0.0, 2.5, 29.9, 30.1, 200.0])
def test_dilogarithm_equals_mpmath(x: float) -> None:
    expected = float(mpmath.polylog(2, -mpmath.exp(x)).real)
    assert dilogarithm_of_minus_exp(x) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(("u", "c", "length"), [(0.3, -2.0, 4.0), (-5.0, 3.0, 3.0), (2.0, 1e-9, 5.0), (1.0, 0.0, 2.0)])
def test_softplus_integral_equals_adaptive_quadrature(u: float, c: float, length: float) -> None:
    expected = float(mpmath.quad(lambda s: mpmath.log1p(mpmath.exp(u + c * s)), [0, length]))
    assert softplus_integral(u, c, length) == pytest.approx(expected, rel=1e-10)


def test_softplus_integral_to_infinity_is_the_limit() -> None:
    assert softplus_integral(1.0, -0.5, np.inf) == pytest.approx(float(softplus_integral(1.0, -0.5, 200.0)), rel=1e-12)
    assert softplus_integral(1.0, 0.5, np.inf) == np.inf


def test_twelve_nodes_are_within_a_millionth_of_the_closed_form() -> None:
    # The bound holds while |c S| <= 10; the worst case lies at its end.
    u, c, length = (a.ravel() for a in np.meshgrid(np.linspace(-6, 6, 13), np.linspace(-10, 10, 21), [0.2, 1.0]))
    c = c / length
    numeric = softplus_integral_quadrature(*(torch.from_numpy(a) for a in (u, c, length)), num_nodes=12).numpy()
    assert np.max(np.abs(numeric / softplus_integral(u, c, length) - 1)) < 1e-6


def test_integral_is_additive_over_a_split() -> None:
    whole = softplus_integral(0.4, -1.3, 3.0)
    halves = softplus_integral(0.4, -1.3, 1.2) + softplus_integral(0.4 - 1.3 * 1.2, -1.3, 1.8)
    assert whole == pytest.approx(float(halves), rel=1e-13)


def test_monte_carlo_mean_is_within_four_standard_errors() -> None:
    points = 3.0 * torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = 3.0 * torch.nn.functional.softplus(0.5 - 1.5 * points)
    error = float(values.std() / len(values) ** 0.5)
    assert abs(float(values.mean()) - float(softplus_integral(0.5, -1.5, 3.0))) < 4 * error


def test_log_softplus_keeps_its_slope_where_softplus_underflows() -> None:
    x = torch.tensor([-800.0, -20.0, 0.0, 40.0], dtype=torch.float64, requires_grad=True)
    expected = torch.tensor([1.0, 1.0, 0.5 / math.log(2), 1 / 40], dtype=torch.float64)  # sigmoid / softplus
    value = log_softplus(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert torch.isfinite(value).all()
    assert torch.allclose(slope, expected, atol=1e-8)
