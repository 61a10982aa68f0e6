"""Exact properties of COSMOS, in float64."""

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.optim import COSMOS
from burnish.optim.maths import cosmos as maths
from burnish.optim.maths.orthogonalise import orthogonalise

SHAPES = [(6, 6), (10, 4), (4, 10)]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run(weight, grads, **options):
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = COSMOS([parameter], **{"lr": 0.01, "weight_decay": 0.0, "rank": 2} | options)
    for gradient in grads:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_step_has_the_same_length(shape):
    weight, grads = random(*shape), list(random(3, *shape, seed=1))
    change = run(weight, grads)[0] - run(weight, grads[:2])[0]
    assert change.square().mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=1e-7)  # eps 1e-8 in the norm


@pytest.mark.slow
def test_the_basis_stays_orthonormal_and_the_covariance_symmetric_and_positive():
    weight, generator = random(10, 6), torch.Generator().manual_seed(3)
    grads = [torch.randn(10, 6, dtype=torch.float64, generator=generator) for _ in range(1000)]
    _, state = run(weight, grads, rank=3)
    basis, covariance = state["basis0"], state["covariance0"]
    assert (basis.T @ basis - torch.eye(3)).abs().max() < 1e-10
    assert torch.equal(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > 0


def test_full_rank_is_adam_in_the_rotated_basis_with_fixed_length():
    weight, gradient = random(10, 4), random(10, 4, seed=1)
    result, state = run(weight, [gradient], rank=4, gamma=0.3)
    basis = state["basis0"]
    adam = torch.sign(gradient @ basis) @ basis.T  # the first step of Adam is the sign
    expected = weight - 0.01 * 0.2 * 40**0.5 * adam / adam.norm()
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-7)  # eps 1e-8 of Adam, on entries near zero


def test_without_gamma_only_the_leading_space_moves():
    weight, gradient = random(10, 6), random(10, 6, seed=1)
    change = run(weight, [gradient], gamma=0.0)[0] - weight
    assert torch.linalg.matrix_rank(change, rtol=1e-9) == 2


def test_rank_zero_is_normalised_muon():
    weight, gradient = random(10, 6), random(10, 6, seed=1)
    result, _ = run(weight, [gradient], rank=0)
    muon = orthogonalise(gradient)
    torch.testing.assert_close(result, weight - 0.01 * 0.2 * 60**0.5 * muon / muon.norm(), rtol=0, atol=1e-9)


def test_gradients_in_a_fixed_space_leave_nothing_to_orthogonalise():
    weight, space = random(10, 6), torch.linalg.qr(random(6, 2, seed=2)).Q
    grads = [random(10, 2, seed=s) @ space.T for s in range(3, 6)]
    change = run(weight, grads)[0] - weight
    outside = change - change @ space @ space.T
    assert outside.abs().max() < 1e-12


def test_legacy_orthogonalises_rounding_noise_there():
    weight, space = random(10, 6), torch.linalg.qr(random(6, 2, seed=2)).Q
    grads = [random(10, 2, seed=s) @ space.T for s in range(3, 6)]
    change = run(weight, grads, legacy=True, betas=(0.95, 0.9))[0] - weight
    outside = change - change @ space @ space.T
    assert outside.norm() > 1e-8 * change.norm()


def test_signs_of_the_basis_do_not_matter():
    gradient, momentum = random(10, 6), random(10, 6, seed=1)
    basis, covariance = maths.first_basis(gradient, 3, 0.9)
    signs = torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)
    flipped = basis * signs, signs[:, None] * covariance * signs
    results = []
    for start_basis, start_covariance in ((basis, covariance), flipped):
        new_basis, _ = maths.track_basis(start_basis, start_covariance, momentum, 0.9)
        second = (momentum @ new_basis).square()
        results.append(maths.direction(momentum, new_basis, second, gamma=0.2, eps=1e-8))
    torch.testing.assert_close(*results, rtol=0, atol=1e-10)


def test_multiplying_all_gradients_changes_nothing():
    weight, grads = random(10, 6), list(random(4, 10, 6, seed=1))
    scaled = run(weight, [1000 * g for g in grads])[0]
    torch.testing.assert_close(scaled, run(weight, grads)[0], rtol=0, atol=1e-8)


def test_power_steps_converge_to_the_leading_space_at_the_rate_of_the_gap():
    left, right = torch.linalg.qr(random(10, 6)).Q, torch.linalg.qr(random(6, 6, seed=1)).Q
    gradient = left @ torch.tensor([8.0, 7, 2, 1.5, 1, 0.5], dtype=torch.float64).diag() @ right.T
    basis = torch.linalg.qr(random(6, 2, seed=2)).Q
    covariance = torch.zeros(2, 2, dtype=torch.float64)
    angles = []
    for _ in range(6):
        basis, covariance = maths.track_basis(basis, covariance, gradient, 0.0)
        angles.append((right[:, 2:].T @ basis).norm())
    rates = torch.stack(angles)[1:] / torch.stack(angles)[:-1]
    # The first ratio still sees the random start; an angle of order one is not yet its own tangent.
    assert rates[1:].max() <= (2 / 7) ** 2


def test_plain_momentum_is_the_bias_corrected_mean():
    grads = random(3, 4, 4)
    mean = torch.zeros(4, 4, dtype=torch.float64)
    for gradient in grads:
        mean.lerp_(gradient, 0.1)
    weights = torch.tensor([0.081, 0.09, 0.1], dtype=torch.float64)
    expected = (weights[:, None, None] * grads).sum(0) / weights.sum()
    result = maths.momentum(mean, grads[-1], 0.9, 3, nesterov=False)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


def test_number_of_state_elements():
    parameter = torch.nn.Parameter(torch.zeros(10, 6))
    state = COSMOS([parameter], lr=0.01, rank=2).state[parameter]
    state.pop("step")
    assert sum(tensor.numel() for tensor in state.values()) == 10 * 6 + 6 * 2 + 2 * 2 + 10 * 2


def test_gradients_are_not_written_to():
    parameter = torch.nn.Parameter(random(10, 6))
    optimizer = COSMOS([parameter], lr=0.01)
    parameter.grad = random(10, 6, seed=1)
    before = parameter.grad.clone()
    optimizer.step()
    assert torch.equal(parameter.grad, before)


def test_a_first_gradient_of_zero_is_survived():
    weight, gradient = random(10, 6), random(10, 6, seed=1)
    result, _ = run(weight, [torch.zeros_like(gradient), gradient, gradient])
    assert result.isfinite().all() and not torch.equal(result, weight)


def test_a_rank_above_the_number_of_columns_is_refused():
    with pytest.raises(SettingsError, match="rank is 7, but a 10 x 6 matrix has at most 6 input directions"):
        COSMOS([torch.nn.Parameter(torch.zeros(10, 6))], lr=0.01, rank=7)
