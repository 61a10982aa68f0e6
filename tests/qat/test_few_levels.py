"""Weights of a few levels: what they are, where scales begin, and which gradient passes rounding."""

import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from burnish.qat.latent import ramped
from burnish.qat.maths.few_levels import GAUSSIAN_SCALE, TERNARY, TWO_BITS, codes, few_levels, initial_scale, values

LEVELS = [TERNARY, TWO_BITS]
RULES = ["gaussian", "absmean"]


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rounded(weight: torch.Tensor, group: int, levels, rule) -> torch.Tensor:
    scale = initial_scale(weight, group, levels, rule)
    return values(codes(weight, scale, levels), scale)


def gaussian_error(scale: float, levels) -> float:
    """Mean squared error of a standard normal number, by numerical integration."""
    low, high = levels
    total = 0.0
    for level in range(low, high + 1):
        start = -12.0 if level == low else (level - 0.5) * scale
        end = 12.0 if level == high else (level + 0.5) * scale
        total += quad(lambda x, level=level: (x - level * scale) ** 2 * norm.pdf(x), start, end, epsabs=1e-12)[0]
    return total


@pytest.mark.parametrize(("levels", "error"), [(TERNARY, 0.1902), (TWO_BITS, 0.1494)])
def test_the_gaussian_scale_has_the_least_error(levels, error):
    best = minimize_scalar(gaussian_error, bounds=(0.5, 2), args=(levels,), method="bounded", options={"xatol": 1e-9})
    assert GAUSSIAN_SCALE[levels] == pytest.approx(best.x, abs=1e-6)
    assert best.fun == pytest.approx(error, abs=1e-4)


def test_errors_of_gaussian_weights_are_those_of_the_specification():
    weight = gaussian(64, 4096)
    errors = {rule: float((weight - rounded(weight, 4096, TERNARY, rule)).square().mean()) for rule in RULES}
    assert errors == pytest.approx({"gaussian": 0.1902, "absmean": 0.2634}, rel=0.01)
    threshold = initial_scale(weight, 4096, TERNARY, "gaussian") / 2
    assert threshold.numpy() == pytest.approx(0.612, rel=0.05)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("factor", [0.25, 8.0, 3.7])
def test_rounding_commutes_with_a_positive_factor(levels, rule, factor):
    weight = gaussian(6, 32)
    close = {"rtol": 1e-14, "atol": 0.0}
    assert torch.allclose(
        rounded(factor * weight, 16, levels, rule), factor * rounded(weight, 16, levels, rule), **close
    )


def test_absmean_is_that_of_bitnet():
    """transformers' own `WeightQuant`, which rounds a whole matrix by the mean size of its weights."""
    from transformers.integrations.bitnet import WeightQuant

    weight = gaussian(8, 32).float()
    scale = initial_scale(weight.reshape(1, -1), 256, TERNARY, "absmean")
    ours = values(codes(weight.reshape(1, -1), scale, TERNARY), scale).reshape(8, 32)
    assert torch.allclose(ours, WeightQuant.apply(weight), rtol=1e-6, atol=0)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_group_of_zeros_and_a_group_on_the_grid_stay(levels):
    scale = torch.full((1, 2), 0.5)
    on_grid = torch.tensor([[0.5, -0.5, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(few_levels(on_grid, scale, levels, torch.float32), on_grid)
    assert torch.equal(initial_scale(torch.zeros(1, 4), 4, levels, "gaussian"), torch.ones(1, 1))


@pytest.mark.parametrize("levels", LEVELS)
def test_no_rounding_is_the_latent_weight_and_all_of_it_what_is_written(levels):
    latent = gaussian(4, 16).float()
    scale = initial_scale(latent, 8, levels, "gaussian")
    assert torch.equal(few_levels(latent, scale, levels, torch.bfloat16, 0.0), latent)
    stored = scale.bfloat16()
    written = (codes(latent, stored.float(), levels).unflatten(1, (2, 8)) * stored.float().unsqueeze(2)).flatten(1)
    assert torch.equal(few_levels(latent, scale, levels, torch.bfloat16), written)
    half = few_levels(latent, scale, levels, torch.bfloat16, 0.5)
    assert torch.allclose(half, (latent + written) / 2, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("part", [0.0, 0.4, 1.0])
def test_the_gradient_is_the_identity_within_the_clip_and_what_is_left_outside(levels, part):
    scale = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    inside = torch.linspace(levels[0] - 0.499, levels[1] + 0.499, 9, dtype=torch.float64)
    outside = torch.tensor([levels[0] - 0.51, levels[1] + 0.51, -9.0, 9.0], dtype=torch.float64)
    latent = torch.cat([inside, outside])[None].requires_grad_()
    weights = torch.arange(1.0, 14.0, dtype=torch.float64)[None]
    (few_levels(latent, scale, levels, torch.float64, part) * weights).sum().backward()
    assert latent.grad is not None
    assert scale.grad is not None
    assert torch.equal(latent.grad[:, :9], weights[:, :9])
    assert torch.allclose(latent.grad[:, 9:], (1 - part) * weights[:, 9:])
    level = codes(latent.detach(), scale.detach(), levels)
    moves = torch.cat([level[:, :9] - latent.detach()[:, :9], level[:, 9:]], dim=1)
    assert torch.allclose(scale.grad, part * (moves * weights).sum(dim=1, keepdim=True))


def test_the_gradient_of_a_scale_is_the_derivative_where_no_weight_is_inside():
    """Beyond the clip the weight is a level times the scale, a smooth function of it."""
    latent = torch.tensor([[5.0, -7.0, 9.0, -3.0]], dtype=torch.float64)
    scale = torch.tensor([[0.9, 1.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: few_levels(latent, s, TERNARY, torch.float64), (scale,))


def test_the_ramp_goes_from_nothing_to_all():
    assert [ramped(step, 100, 0.1) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert ramped(0, 100, 0.0) == 1.0


def test_scales_that_fall_to_nothing_stay_positive():
    latent, scale = gaussian(1, 4).float(), torch.tensor([[-1.0]])
    assert few_levels(latent, scale, TERNARY, torch.bfloat16).isfinite().all()
