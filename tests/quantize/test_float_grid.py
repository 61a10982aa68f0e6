"""The float8 grid: its numbers, its error, and agreement with the reader that loads it."""

import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.quant_args import QuantizationArgs
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.quantize.maths.float_grid import FLOAT8, float_grid
from burnish.quantize.maths.grid import combine, integer_grid
from burnish.quantize.maths.rounding import proxy_loss, round_two_sided


def weight(rows=6, columns=64, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rows, columns, generator=generator, dtype=dtype) * torch.logspace(-4, 2, rows, dtype=dtype)[:, None]
    )


def every_float8():
    """All 253 finite numbers of the format, by their bits."""
    numbers = torch.arange(256, dtype=torch.uint8).view(FLOAT8).double()
    return numbers[numbers.isfinite()].unique()


def test_rounding_finds_the_nearest_of_all_float8_numbers():
    w = weight()
    grid = float_grid(w)
    rounded = grid.nearest(w, *grid.parameters())
    levels = every_float8()
    distance = (w.unsqueeze(-1) - grid.scale.unsqueeze(-1) * levels).abs().amin(dim=-1)
    torch.testing.assert_close((w - rounded).abs(), distance, rtol=0, atol=1e-12)


def test_a_rounded_weight_is_a_fixed_point():
    w = weight(dtype=torch.float32)
    grid = float_grid(w)
    once = grid.nearest(w, *grid.parameters())
    assert torch.equal(grid.values(grid.codes(once)), once)


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_the_error_is_relative_to_the_element(seed):
    """Three bits of mantissa: at most 2^-4 of the element where it is not subnormal (below 2^-6 scales)."""
    w = weight(seed=seed)
    grid = float_grid(w)
    error = (w - grid.nearest(w, *grid.parameters())).abs()
    assert bool((error <= torch.maximum(w.abs() / 16, grid.scale * 2.0**-10) * (1 + 1e-9)).all())


def test_the_largest_element_of_a_row_is_exact():
    w = weight()
    grid = float_grid(w)
    largest = w.abs().argmax(dim=-1, keepdim=True)
    torch.testing.assert_close(grid.nearest(w, *grid.parameters()).gather(-1, largest), w.gather(-1, largest))


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
def test_codes_are_those_of_compressed_tensors(scale_dtype):
    w = weight(dtype=torch.float32)
    grid = float_grid(w, scale_dtype=scale_dtype)
    args = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True)
    theirs = quantize(w, grid.scale, None, args, dtype=FLOAT8)
    assert torch.equal(grid.codes(w).view(torch.uint8), theirs.view(torch.uint8))
    assert torch.equal(grid.values(grid.codes(w)), dequantize(theirs, grid.scale, None, args))


def test_a_row_of_zeros_stays_zero():
    w = weight()
    w[2] = 0
    grid = float_grid(w, scale_dtype=torch.bfloat16)
    assert torch.equal(grid.nearest(w, *grid.parameters())[2], torch.zeros(64, dtype=w.dtype))


def test_one_sided_rounding_lowers_its_proxy_on_this_grid_too():
    w = weight()
    inputs = torch.randn(256, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).cumsum(-1)
    covariance = inputs.T @ inputs / 256 + 0.01 * torch.eye(64, dtype=torch.float64)
    grid = float_grid(w)
    plain = proxy_loss(w - round_two_sided(w, None, None, grid), None, covariance)
    one_sided = proxy_loss(w - round_two_sided(w, None, covariance, grid), None, covariance)
    assert float(one_sided) < 0.7 * float(plain)


def test_grids_of_one_kind_combine_into_one():
    parts = [weight(seed=seed) for seed in (0, 1)]
    grids = [integer_grid(w, bits=4, group_size=32, symmetric=False) for w in parts]
    together, whole = combine(grids, torch.cat), torch.cat(parts)
    expected = integer_grid(whole, bits=4, group_size=32, symmetric=False)
    assert torch.equal(together.codes(whole), expected.codes(whole))
