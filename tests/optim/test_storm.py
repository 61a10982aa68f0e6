"""Exact properties of PStorm, in float64."""

import math

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.optim.constrained import PStorm
from burnish.optim.maths.storm import momentum, proximal_map, step_size

EXACT = {"rtol": 0, "atol": 1e-13}  # some ten operations on numbers of size one


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def least_squares(rows, targets, weight):
    def closure():
        loss = (rows @ weight - targets).square().mean()
        loss.backward()
        return loss.detach()

    return closure


def test_the_weight_of_the_new_gradient_lies_between_0_and_1_and_falls():
    weights = [momentum(step, 0.3) for step in range(1000)]
    assert all(0 < weight < 1 for weight in weights)
    assert weights == sorted(weights, reverse=True)


def test_the_weight_is_the_published_one():
    """eta_0 = 4^(1/3) / (8 L), eta_t = eta_0 / (t + 4)^(1/3), for L = 2."""
    smoothness, eta = 2.0, [4 ** (1 / 3) / (8 * 2.0) / (t + 4) ** (1 / 3) for t in range(5)]
    for t in range(4):
        square = (eta[t] * smoothness) ** 2
        expected = (1 + 24 * square - eta[t + 1] / eta[t]) / (1 + 4 * square)
        assert momentum(t, 1 / (8 * smoothness)) == pytest.approx(expected, rel=1e-14)
        assert step_size(t, 1 / (8 * smoothness)) == pytest.approx(eta[t], rel=1e-14)


@pytest.mark.parametrize("b", [None, 0.0, 0.3, 1.0])
def test_with_all_data_every_b_is_proximal_gradient_descent(b):
    rows, targets = normal(20, 4), normal(20, seed=1)
    weight, plain = normal(4, seed=2).requires_grad_(), normal(4, seed=2).requires_grad_()
    optimizer = PStorm([weight], lr=0.05, b=b, proximal="l1", strength=0.1)
    shrink = proximal_map("l1", strength=0.1)
    for step in range(30):
        optimizer.step(least_squares(rows, targets, weight))
        size = step_size(step, 0.05) if b is None else 0.05
        (gradient,) = torch.autograd.grad((rows @ plain - targets).square().mean(), plain)
        plain.data = shrink(plain.detach() - size * gradient, size)
    torch.testing.assert_close(weight, plain, **EXACT)


def test_b_of_one_is_stochastic_gradient_descent():
    rows, targets = normal(64, 4), normal(64, seed=1)
    weight, plain = normal(4, seed=2).requires_grad_(), normal(4, seed=2).requires_grad_()
    ours, theirs = PStorm([weight], lr=0.05, b=1.0), torch.optim.SGD([plain], lr=0.05)
    for first in range(0, 64, 8):
        batch = rows[first : first + 8], targets[first : first + 8]
        ours.step(least_squares(*batch, weight))
        theirs.zero_grad()
        least_squares(*batch, plain)()
        theirs.step()
    torch.testing.assert_close(weight, plain, **EXACT)


def test_with_b_of_zero_and_gradients_that_differ_by_a_constant_the_estimate_stays_exact():
    """On a quadratic, samples that differ in their linear term alone have no effect beyond the first gradient."""
    weight, plain = torch.ones(3, dtype=torch.float64, requires_grad=True), torch.ones(3, dtype=torch.float64)
    optimizer = PStorm([weight], lr=0.1, b=0.0)

    def closure(shift):
        weight.grad = 2 * weight.detach() + shift

    optimizer.step(lambda: closure(0.0))
    for seed in range(10):
        optimizer.step(lambda seed=seed: closure(normal(3, seed=seed)))
    for _ in range(11):
        plain = plain - 0.1 * 2 * plain
    torch.testing.assert_close(weight.detach(), plain, **EXACT)


def test_restart_takes_the_next_gradient_as_it_is():
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = PStorm([weight], lr=0.1, b=0.0)
    for gradient in (1.0, 2.0):
        optimizer.step(lambda gradient=gradient: setattr(weight, "grad", torch.full_like(weight, gradient)))
    optimizer.restart()
    before = weight.detach().clone()
    optimizer.step(lambda: setattr(weight, "grad", torch.full_like(weight, 5.0)))
    torch.testing.assert_close(weight.detach(), before - 0.5, **EXACT)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"proximal": "l1", "strength": 0.5},
        {"proximal": "box", "low": -0.4, "high": 0.9},
        {"proximal": "ball", "radius": 1.3},
    ],
)
def test_proximal_maps_minimise_what_defines_them(options):
    """prox(v) minimises h(x) + ||x - v||^2 / (2 step), so that no point nearby is better."""
    point, step = 2 * normal(5), 0.7
    kind = options.get("proximal", "none")
    found = proximal_map(kind, **{name: value for name, value in options.items() if name != "proximal"})(point, step)

    def value(x):
        outside = {
            "none": False,
            "l1": False,
            "box": bool(((x < -0.4) | (x > 0.9)).any()),
            "ball": float(torch.linalg.vector_norm(x)) > 1.3 + 1e-12,
        }[kind]
        penalty = 0.5 * float(x.abs().sum()) if kind == "l1" else 0.0
        return math.inf if outside else penalty + float((x - point).square().sum()) / (2 * step)

    best = value(found)
    assert best < math.inf
    assert all(best <= value(found + 0.1 * normal(5, seed=seed)) for seed in range(200))


def test_a_training_goes_on_from_its_state():
    rows, targets = normal(64, 4), normal(64, seed=1)

    def run(weight, optimizer, start, stop):
        for first in range(start, stop, 8):
            optimizer.step(least_squares(rows[first : first + 8], targets[first : first + 8], weight))

    whole = normal(4, seed=2).requires_grad_()
    run(whole, PStorm([whole], lr=0.05), 0, 64)
    half = normal(4, seed=2).requires_grad_()
    first = PStorm([half], lr=0.05)
    run(half, first, 0, 32)
    rest = half.detach().clone().requires_grad_()
    second = PStorm([rest], lr=0.05)
    second.load_state_dict(first.state_dict())
    run(rest, second, 32, 64)
    assert torch.equal(whole, rest)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"lr": 0.0}, "lr is 0"),
        ({"b": 1.5}, "b is 1.5"),
        ({"proximal": "l2"}, "proximal is 'l2'"),
        ({"proximal": "box", "low": 1.0, "high": 0.0}, "the box holds nothing"),
        ({"proximal": "ball", "radius": 0.0}, "radius is 0"),
        ({"proximal": "l1", "strength": -1.0}, "strength is -1"),
    ],
)
def test_options_out_of_range_are_refused(options, named):
    with pytest.raises(SettingsError, match=named):
        PStorm([torch.zeros(2, requires_grad=True)], **options)


def test_a_step_without_closure_is_refused():
    with pytest.raises(SettingsError, match="two gradients on one batch"):
        PStorm([torch.zeros(2, requires_grad=True)]).step()
