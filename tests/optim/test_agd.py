"""AGD between its two limits: momentum SGD, and momentum over the change of the gradient."""

import itertools

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.optim import AGD


def stepped(gradients, **options):
    """The weights after every step, from zero."""
    parameter = torch.nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = AGD([parameter], **{"lr": 0.01, "betas": (0.9, 0.99)} | options)
    weights = []
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        weights.append(parameter.detach().clone())
    return weights


def drawn(steps):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 3, dtype=torch.float64, generator=generator) for _ in range(steps)]


def test_a_delta_above_every_change_is_momentum_sgd_of_rate_lr_over_delta():
    gradients, delta = drawn(6), 1e3
    momentum, weight = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    for step, (gradient, found) in enumerate(zip(gradients, stepped(gradients, delta=delta), strict=True), start=1):
        momentum = 0.9 * momentum + 0.1 * gradient
        weight = weight - 0.01 / delta * momentum / (1 - 0.9**step)
        torch.testing.assert_close(found, weight, rtol=1e-12, atol=0)


def test_the_first_step_is_that_of_adam():
    (found,) = stepped(drawn(1), delta=1e-30)
    torch.testing.assert_close(found, -0.01 * drawn(1)[0].sign(), rtol=1e-12, atol=0)


def test_scaling_the_gradients_changes_nothing_above_delta():
    plain, scaled = (stepped([size * g for g in drawn(5)], delta=1e-30) for size in (1.0, 1e-6))
    torch.testing.assert_close(scaled[-1], plain[-1], rtol=1e-9, atol=0)


def test_under_a_constant_gradient_steps_grow_until_delta_stops_them():
    delta = 0.5
    weights = stepped([torch.ones(1, dtype=torch.float64)] * 400, delta=delta)
    sizes = [(a - b).item() for a, b in zip([torch.zeros(1), *weights], weights, strict=False)]
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(sizes))
    assert sizes[-1] == pytest.approx(0.01 / delta, rel=1e-3)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_a_delta_that_divides_by_nothing_is_refused(delta):
    with pytest.raises(SettingsError, match="delta is"):
        AGD([torch.nn.Parameter(torch.ones(2))], delta=delta)
