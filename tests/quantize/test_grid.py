"""Integer grids against the library whose format they are written in."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_qparams

from burnish.quantize.maths.grid import integer_grid, search_scale


def gaussian(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_and_zero_points_are_those_of_compressed_tensors(bits, symmetric):
    weight = gaussian(6, 32) + 0.3
    grid = integer_grid(weight, bits=bits, group_size=8, symmetric=symmetric)
    arguments = QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="group", group_size=8)
    groups = weight.unflatten(-1, (-1, 8))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
    torch.testing.assert_close(grid.scale, scale)
    torch.testing.assert_close(grid.zero, zero.to(grid.zero.dtype))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scales", ["signed", "symmetric", "asymmetric"])
def test_codes_and_values_round_trip(bits, scales):
    weight = gaussian(4, 24)
    grid = integer_grid(weight, bits=bits, group_size=8, symmetric=scales != "asymmetric", signed=scales == "signed")
    nearest = grid.nearest(weight, *grid.parameters())
    codes = grid.codes(nearest)
    assert codes.min() >= -(2 ** (bits - 1)) and codes.max() <= 2 ** (bits - 1) - 1
    assert torch.equal(grid.values(codes), nearest)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_under_signed_scales_the_largest_weight_is_the_last_level_whichever_sign_it_has(bits):
    weight = gaussian(6, 32).double()
    grid = integer_grid(weight, bits=bits, group_size=8, signed=True)
    groups = weight.unflatten(-1, (-1, 8))
    largest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1)
    assert (largest > 0).any() and (largest < 0).any()
    torch.testing.assert_close(grid.scale, -largest / 2 ** (bits - 1))
    rounded = grid.nearest(weight, *grid.parameters()).unflatten(-1, (-1, 8))
    torch.testing.assert_close(rounded.gather(-1, groups.abs().argmax(-1, keepdim=True)).squeeze(-1), largest)


def test_signed_scales_are_better_where_a_level_counts():
    """Steps are 2^b - 1 to 2^b shorter; at 3 bits of a Gaussian that is a quarter less squared error."""
    weight = gaussian(500, 64)

    def error(**settings):
        grid = integer_grid(weight, bits=3, group_size=64, **settings)
        return float((weight - grid.nearest(weight, *grid.parameters())).square().mean())

    assert error(signed=True) < 0.85 * error()


def test_nearest_is_nearest():
    weight = gaussian(4, 16)
    grid = integer_grid(weight, bits=3, group_size=8, symmetric=False)
    levels = torch.stack([grid.values(torch.full_like(weight, q, dtype=torch.int8)) for q in range(-4, 4)])
    best = (levels - weight).abs().min(dim=0).values
    torch.testing.assert_close((grid.nearest(weight, *grid.parameters()) - weight).abs(), best, rtol=0, atol=1e-6)


def test_scales_are_rounded_to_the_dtype_on_disk():
    grid = integer_grid(gaussian(4, 16), bits=4, group_size=8, scale_dtype=torch.bfloat16)
    assert torch.equal(grid.scale.bfloat16().float(), grid.scale)


@pytest.mark.parametrize("scales", ["signed", "symmetric", "asymmetric"])
def test_a_group_of_zeros_stays_zero(scales):
    weight = gaussian(2, 16)
    weight[0, :8] = 0
    kind = {"symmetric": scales != "asymmetric", "signed": scales == "signed"}
    grid = integer_grid(weight, bits=4, group_size=8, scale_dtype=torch.bfloat16, **kind)
    assert not grid.nearest(weight, *grid.parameters())[0, :8].any()


def test_scale_search_never_raises_the_weighted_error():
    weight, importance = gaussian(8, 64), gaussian(64).abs()

    def error(grid):
        return ((weight - grid.nearest(weight, *grid.parameters())) ** 2 * importance).unflatten(-1, (-1, 16)).sum(-1)

    searched = search_scale(weight, importance, bits=2, group_size=16)
    assert (error(searched) <= error(integer_grid(weight, bits=2, group_size=16))).all()
    assert error(searched).sum() < 0.9 * error(integer_grid(weight, bits=2, group_size=16)).sum()
