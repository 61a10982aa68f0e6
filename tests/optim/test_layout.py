"""A parameter that holds several matrices is stepped as those matrices would be on their own."""

import pytest
import torch

from burnish.core.errors import SettingsError
from burnish.optim import COSMOS, SOAP, Muon, NorMuon

EVERY = [NorMuon, Muon, COSMOS, SOAP]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def step_all(optimizer_class, weights, grads, **layout):
    """The weights after three steps, given one list of gradients per parameter."""
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    optimizer = optimizer_class([{"params": parameters, **layout}], lr=0.01)
    for step in range(3):
        for parameter, gradient in zip(parameters, grads, strict=True):
            parameter.grad = gradient[step].clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("optimizer_class", EVERY)
def test_a_stack_of_experts_is_a_loop_over_matrices(optimizer_class):
    weight, grads = random(3, 6, 4), random(3, 3, 6, 4, seed=1)
    (stacked,) = step_all(optimizer_class, [weight], [grads])
    single = step_all(optimizer_class, list(weight), [grads[:, expert] for expert in range(3)])
    close(stacked, torch.stack(single))


@pytest.mark.parametrize("optimizer_class", EVERY)
def test_split_sizes_are_separate_parameters(optimizer_class):
    weight, grads = random(8, 4), random(3, 8, 4, seed=1)
    (fused,) = step_all(optimizer_class, [weight], [grads], split_sizes=(4, 2, 2))
    parts = step_all(optimizer_class, list(weight.split([4, 2, 2])), list(grads.split([4, 2, 2], dim=1)))
    close(fused, torch.cat(parts))


@pytest.mark.parametrize("optimizer_class", EVERY)
def test_split_sizes_inside_a_stack(optimizer_class):
    weight, grads = random(2, 8, 4), random(3, 2, 8, 4, seed=1)
    (fused,) = step_all(optimizer_class, [weight], [grads], split_sizes=(4, 4))
    halves = [weight[:, :4], weight[:, 4:]]
    parts = step_all(optimizer_class, halves, [grads[:, :, :4], grads[:, :, 4:]])
    close(fused, torch.cat(parts, dim=1))


@pytest.mark.parametrize("optimizer_class", EVERY)
def test_num_heads_are_separate_parameters(optimizer_class):
    weight, grads = random(6, 4), random(3, 6, 4, seed=1)
    (whole,) = step_all(optimizer_class, [weight], [grads], num_heads=3)
    heads = step_all(optimizer_class, list(weight.split(2)), list(grads.split(2, dim=1)))
    close(whole, torch.cat(heads))


# SOAP needs a square matrix here: the covariance of one tall gradient has a null space, whose basis is arbitrary.
@pytest.mark.parametrize(
    "optimizer_class, shape", [(NorMuon, (4, 6)), (Muon, (4, 6)), (COSMOS, (4, 6)), (SOAP, (5, 5))]
)
def test_transposed_storage_is_the_transposed_parameter(optimizer_class, shape):
    weight, grads = random(*shape), random(3, *shape, seed=1)
    (stored,) = step_all(optimizer_class, [weight], [grads], neuron_dim=-1)
    (ordinary,) = step_all(optimizer_class, [weight.T.contiguous()], [grads.mT.contiguous()])
    close(stored, ordinary.T)


def test_transposed_and_fused():
    weight, grads = random(4, 6), random(3, 4, 6, seed=1)
    (stored,) = step_all(NorMuon, [weight], [grads], neuron_dim=-1, split_sizes=(2, 2, 2))
    (ordinary,) = step_all(NorMuon, [weight.T.contiguous()], [grads.mT.contiguous()], split_sizes=(2, 2, 2))
    close(stored, ordinary.T)


@pytest.mark.parametrize("optimizer_class", EVERY)
def test_filters_are_one_matrix_of_output_rows(optimizer_class):
    weight, grads = random(4, 3, 2, 2), random(3, 4, 3, 2, 2, seed=1)
    (filters,) = step_all(optimizer_class, [weight], [grads])
    (flat,) = step_all(optimizer_class, [weight.flatten(1)], [grads.flatten(2)])
    close(filters.flatten(1), flat)


def test_equal_shapes_are_batched_without_changing_the_result():
    weights, grads = [random(6, 4, seed=s) for s in range(4)], [random(3, 6, 4, seed=s + 9) for s in range(4)]
    together = step_all(NorMuon, weights, grads)
    alone = [step_all(NorMuon, [w], [g])[0] for w, g in zip(weights, grads, strict=True)]
    close(torch.stack(together), torch.stack(alone))


@pytest.mark.parametrize(
    "layout, message",
    [
        ({"split_sizes": (4, 3)}, "do not add up to the 8 output rows"),
        ({"num_heads": 3}, "num_heads 3 does not divide 8"),
        ({"neuron_dim": 0}, "neuron_dim is 0"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, message):
    with pytest.raises(SettingsError, match=message):
        NorMuon([{"params": [torch.nn.Parameter(random(8, 4))], **layout}], lr=0.01)
