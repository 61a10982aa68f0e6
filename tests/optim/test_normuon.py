"""Exact properties of NorMuon, in float64."""

import pytest
import torch

from burnish.optim import Muon, NorMuon
from burnish.optim.maths.orthogonalise import orthogonalise

SHAPES = [(6, 6), (10, 4), (4, 10)]


def gradients(shape, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(steps)]


def start(shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The orthogonalisation adds 1e-7 to the norm of its input, so a direction and its multiple differ by about that much.
NS_EPS = 1e-7


def trajectory(optimizer_class, weight, grads, **options):
    """Weights after the given gradients."""
    parameter = torch.nn.Parameter(weight.clone())
    optimizer = optimizer_class([parameter], **{"lr": 0.01, "weight_decay": 0.0} | options)
    for gradient in grads:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_first_update_has_rows_of_equal_norm(shape):
    weight, (gradient,) = start(shape), gradients(shape, 1)
    change = trajectory(NorMuon, weight, [gradient], scale="none") - weight
    size = 0.01 * orthogonalise(gradient).norm() / shape[0] ** 0.5
    close(change.norm(dim=1), size.expand(shape[0]), NS_EPS)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "scale, factor",
    [
        ("none", lambda m, n: 1),
        ("spectral", lambda m, n: (m / n) ** 0.5),
        ("reference", lambda m, n: max(1, m / n) ** 0.5),
        ("rms_moonlight", lambda m, n: 0.2 * max(m, n) ** 0.5),
    ],
)
def test_norm_preserving_scales_keep_the_norm_of_the_orthogonalised_update(shape, scale, factor):
    weight, grads = start(shape), gradients(shape, 3)
    before = trajectory(NorMuon, weight, grads[:2], scale=scale)
    after = trajectory(NorMuon, weight, grads, scale=scale)
    momentum = torch.zeros(shape, dtype=torch.float64)
    for gradient in grads:
        momentum.lerp_(gradient, 0.05)
    orthogonal = orthogonalise(torch.lerp(grads[-1], momentum, 0.95))
    expected = 0.01 * factor(*shape) * orthogonal.norm()
    assert (after - before).norm().item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("optimizer_class", [NorMuon, Muon])
@pytest.mark.parametrize("shape", SHAPES)
def test_rms_scale_makes_the_root_mean_square_a_fifth_of_the_learning_rate(optimizer_class, shape):
    weight, grads = start(shape), gradients(shape, 2)
    change = trajectory(optimizer_class, weight, grads) - trajectory(optimizer_class, weight, grads[:1])
    assert change.square().mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=1e-12)


@pytest.mark.parametrize("scale", ["rms", "reference", "spectral"])
def test_normuon_equals_muon_when_beta2_is_one(scale):
    weight, grads = start((7, 5)), gradients((7, 5), 4)
    normuon = trajectory(NorMuon, weight, grads, scale=scale, betas=(0.95, 1.0), weight_decay=0.1)
    close(normuon, trajectory(Muon, weight, grads, scale=scale, weight_decay=0.1), 1e-10)


def test_beta2_zero_is_muon_followed_by_exact_row_normalisation():
    weight, (gradient,) = start((7, 5)), gradients((7, 5), 1)
    change = trajectory(NorMuon, weight, [gradient], betas=(0.95, 0.0), scale="none") - weight
    orthogonal = orthogonalise(gradient)
    rows = orthogonal / orthogonal.norm(dim=1, keepdim=True)
    close(change, -0.01 * rows * orthogonal.norm() / rows.norm(), NS_EPS)


def test_bias_correction_of_the_second_moment_would_change_nothing():
    # A correction multiplies v by one number per step; so does another beta2 history of equal shape at step one.
    weight, (gradient,) = start((7, 5)), gradients((7, 5), 1)
    results = [trajectory(NorMuon, weight, [gradient], betas=(0.95, beta2)) for beta2 in (0.0, 0.5, 0.95)]
    close(results[0], results[1], 1e-8)
    close(results[0], results[2], 1e-8)


@pytest.mark.parametrize("scale", ["rms", "reference"])
def test_multiplying_all_gradients_changes_nothing(scale):
    weight, grads = start((7, 5)), gradients((7, 5), 4)
    scaled = trajectory(NorMuon, weight, [1000 * g for g in grads], scale=scale)
    close(scaled, trajectory(NorMuon, weight, grads, scale=scale), NS_EPS)


def test_permuting_rows_commutes_with_the_step():
    weight, grads = start((7, 5)), gradients((7, 5), 4)
    order = torch.tensor([3, 1, 6, 0, 5, 2, 4])
    close(trajectory(NorMuon, weight[order], [g[order] for g in grads]), trajectory(NorMuon, weight, grads)[order])


def rotation(size):
    return torch.linalg.qr(start((size, size), seed=5)).Q


@pytest.mark.parametrize("optimizer_class", [NorMuon, Muon])
def test_rotating_the_inputs_commutes_with_the_step(optimizer_class):
    weight, grads, turn = start((7, 5)), gradients((7, 5), 4), rotation(5)
    turned = trajectory(optimizer_class, weight @ turn, [g @ turn for g in grads])
    close(turned, trajectory(optimizer_class, weight, grads) @ turn)


def test_rotating_the_outputs_commutes_with_muon_but_not_with_normuon():
    weight, grads, turn = start((7, 5)), gradients((7, 5), 4), rotation(7)

    def difference(optimizer_class):
        turned = trajectory(optimizer_class, turn @ weight, [turn @ g for g in grads])
        return (turned - turn @ trajectory(optimizer_class, weight, grads)).abs().max().item()

    assert difference(Muon) < 1e-12
    assert difference(NorMuon) > 1e-4


@pytest.mark.parametrize("optimizer_class", [NorMuon, Muon])
@pytest.mark.parametrize("scale", ["rms", "reference", "spectral", "rms_moonlight", "none"])
def test_zero_gradients_only_decay(optimizer_class, scale):
    weight = start((7, 5))
    zero = torch.zeros_like(weight)
    result = trajectory(optimizer_class, weight, [zero, zero], scale=scale, weight_decay=0.1)
    close(result, weight * (1 - 0.01 * 0.1) ** 2, 1e-15)


def test_a_row_without_gradient_does_not_move():
    weight, grads = start((7, 5)), gradients((7, 5), 4)
    for gradient in grads:
        gradient[2] = 0
    assert torch.equal(trajectory(NorMuon, weight, grads)[2], weight[2])


@pytest.mark.parametrize("shape", SHAPES)
def test_muon_equals_torch_muon_in_float32(shape):
    # torch.optim.Muon computes in bfloat16, so only that dtype can be compared; equal operations give equal bits
    # but for the order in which two products are added.
    weight, grads = start(shape).float(), [g.float() for g in gradients(shape, 3)]
    ours = trajectory(Muon, weight, grads, scale="rms_moonlight", ns_dtype=torch.bfloat16, weight_decay=0.1)
    parameter = torch.nn.Parameter(weight.clone())
    theirs = torch.optim.Muon([parameter], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in grads:
        parameter.grad = gradient.clone()
        theirs.step()
    torch.testing.assert_close(ours, parameter.detach(), rtol=0, atol=2e-4)


def test_cautious_decay_leaves_weights_that_the_update_grows():
    weight, (gradient,) = start((7, 5)), gradients((7, 5), 1)
    plain = trajectory(NorMuon, weight, [gradient]) - weight
    cautious = trajectory(NorMuon, weight, [gradient], weight_decay=0.1, cautious=True) - weight
    shrinks = plain * weight < 0
    close(cautious, plain - 0.01 * 0.1 * weight * shrinks, 1e-15)


def test_state_is_one_moment_and_one_number_per_row():
    parameter = torch.nn.Parameter(torch.zeros(7, 5))
    state = NorMuon([parameter], lr=0.01).state[parameter]
    assert sum(tensor.numel() for tensor in state.values()) == 7 * (5 + 1)
