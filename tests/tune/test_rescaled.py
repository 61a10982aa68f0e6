"""Weights as functions of their scales: values, gradients, and what is written."""

import pytest
import torch
from torch.nn.utils import parametrize

from burnish.tune.maths.rescaled import RelativeGain, Rescaled


@pytest.fixture
def levels():
    return torch.randint(-4, 4, (6, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int8)


@pytest.fixture
def scale():
    """Of both signs."""
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def test_at_one_the_weight_is_codes_times_scales_rounded_once(levels, scale):
    rescaled = Rescaled(levels, scale)
    weight = rescaled(rescaled.right_inverse(torch.empty(6, 8)))
    assert torch.equal(weight, (levels.bfloat16() * scale.repeat_interleave(4, dim=1)).float())


def test_the_gradient_is_that_of_the_product_without_rounding(levels, scale):
    relative = torch.ones(6, 2, requires_grad=True)
    upstream = torch.randn(6, 8, generator=torch.Generator().manual_seed(2))
    (Rescaled(levels, scale)(relative) * upstream).sum().backward()
    found, relative.grad = relative.grad, None
    exact = levels.float() * (scale.float() * relative).repeat_interleave(4, dim=1)
    (exact * upstream).sum().backward()
    torch.testing.assert_close(found, relative.grad)


def test_what_is_written_gives_the_weight_that_was_trained(levels, scale):
    rescaled = Rescaled(levels, scale)
    relative = 1 + 0.1 * torch.randn(6, 2, generator=torch.Generator().manual_seed(3))
    written = rescaled.scales(relative)
    assert written.dtype is torch.bfloat16
    product = levels.bfloat16() * written.repeat_interleave(4, dim=1)
    assert torch.equal(rescaled(relative), product.float())


@pytest.mark.parametrize("gain", [torch.tensor([0.5, -2.0, 3.0]), torch.zeros(3)])
def test_gains_begin_where_they_are_and_move_by_their_mean_size(gain):
    norm = torch.nn.RMSNorm(3)
    norm.weight.data = gain.clone()
    parametrize.register_parametrization(norm, "weight", RelativeGain(gain.to(torch.bfloat16)))
    assert torch.equal(norm.weight, gain)
    original = norm.parametrizations.weight.original
    norm.weight.sum().backward()
    torch.testing.assert_close(original.grad, torch.full((3,), float(gain.abs().mean()) or 1.0))
