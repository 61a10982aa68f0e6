"""Score matching of a hazard: transformations, the published bias, and the repair."""

import math

import pytest
import torch

from burnish.events.maths.score import (
    antithetic_noise,
    centred_denoising_loss,
    denoising_loss,
    hazard_score,
    implicit_loss,
    log_time_score,
    mass_loss,
    weighted_implicit_loss,
)


def linear_hazard(
    gap: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """psi and psi' of lam = a + b s."""
    hazard = a + b * gap
    return hazard, hazard_score(hazard, b.expand_as(gap)), -(b**2) / hazard.square() - b


GAPS = torch.tensor([0.05, 0.4, 1.3, 2.2, 5.0], dtype=torch.float64)


def test_log_time_score_is_the_derivative_of_the_log_density_in_log_time() -> None:
    u = GAPS.log().requires_grad_()
    s = u.exp()
    log_density = torch.log(0.3 + 0.2 * s) - 0.3 * s - 0.1 * s**2 + u
    (expected,) = torch.autograd.grad(log_density.sum(), u)
    a, b = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    _, score, _ = linear_hazard(GAPS, a, b)
    assert torch.allclose(log_time_score(GAPS, score), expected, atol=1e-12)


def test_log_time_matching_equals_matching_with_weight_s_squared() -> None:
    # Up to a constant without parameters: the difference of the losses must not depend on the hazard.
    differences = []
    for a, b in ((0.3, 0.2), (1.1, 0.05)):
        rate, slope = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
        _, score, divergence = linear_hazard(GAPS, rate, slope)
        log_score = log_time_score(GAPS, score)
        log_divergence = GAPS * score + GAPS.square() * divergence  # d/du (1 + s psi)
        in_log_time = implicit_loss(log_score, log_divergence)
        weighted = weighted_implicit_loss(score, divergence, GAPS.square(), 2 * GAPS)
        differences.append(in_log_time - weighted)
    assert torch.allclose(differences[0], differences[1], atol=1e-12)


def test_constant_hazard_is_consistent_in_log_time() -> None:
    # For psi = -r the log-time objective is minimised at r = 2 sum s / sum s^2.
    gaps = torch.empty(4000, dtype=torch.float64).exponential_(0.7, generator=torch.Generator().manual_seed(1))
    rate = torch.tensor(2 * float(gaps.sum()) / float(gaps.square().sum()), dtype=torch.float64, requires_grad=True)
    score = log_time_score(gaps, -rate.expand_as(gaps))
    divergence = -gaps * rate
    (slope,) = torch.autograd.grad(implicit_loss(score, divergence).sum(), rate)
    assert abs(float(slope)) < 1e-8
    assert float(rate.detach()) == pytest.approx(0.7, rel=0.08)


def test_raw_gap_matching_drives_a_constant_hazard_to_zero() -> None:
    # Known failure of the published objective: psi = -r, psi' = 0, so the loss r^2/2 is least at r = 0.
    rate = torch.linspace(0.0, 2.0, 21, dtype=torch.float64)
    loss = implicit_loss(-rate, torch.zeros_like(rate))
    assert int(loss.argmin()) == 0


def test_centred_loss_differs_from_the_published_one_by_a_constant() -> None:
    noise = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64)
    differences = [
        denoising_loss(score, noise, 0.1) / 0.01 - centred_denoising_loss(score, noise, 0.1)
        for score in (torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([-0.2, 0.1, 3.0]).double())
    ]
    assert torch.allclose(differences[0], differences[1], atol=1e-12)


def test_antithetic_denoising_tends_to_the_implicit_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros((), dtype=torch.float64)
    noise = antithetic_noise((), 200_000, generator, like)
    sigma, x = 0.01, torch.tensor(0.4, dtype=torch.float64)
    noised = x + sigma * noise
    loss = centred_denoising_loss(-(noised**3), noise, sigma).mean()  # score -x^3, divergence -3 x^2
    assert float(loss) == pytest.approx(float(implicit_loss(-(x**3), -3 * x**2)), abs=5e-3)


def test_antithetic_noise_sums_to_zero() -> None:
    noise = antithetic_noise((5,), 8, torch.Generator().manual_seed(0), torch.zeros((), dtype=torch.float64))
    assert torch.equal(noise.sum(-1), torch.zeros(5, dtype=torch.float64))


def test_mass_loss_is_the_cross_entropy_of_before_or_after() -> None:
    compensator = torch.tensor([[0.4, 1.5]], dtype=torch.float64)
    horizons = torch.tensor([1.0, 3.0], dtype=torch.float64)
    value = mass_loss(compensator, torch.tensor([2.0], dtype=torch.float64), horizons)
    assert float(value) == pytest.approx((0.4 - math.log1p(-math.exp(-1.5))) / 2, rel=1e-12)
