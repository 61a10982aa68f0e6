"""Refitted scales: the least squares solution, in numbers that a checkpoint can store, under codes that stay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from burnish.quantize.maths.float_grid import float_grid
from burnish.quantize.maths.grid import integer_grid
from burnish.quantize.maths.refit import refit_scales
from burnish.quantize.maths.rounding import round_two_sided
from burnish.quantize.stage import Quantize

SMALL = {"group_size": 32, "tokens": 512, "length": 32}


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(size: int, rank: int, seed: int) -> torch.Tensor:
    vectors = gaussian(size, rank, seed=seed)
    return vectors @ vectors.T / rank


def errors(weight, levels, scale, factor) -> torch.Tensor:
    """(w - Qs) H (w - Qs)^T of every row, straight from its definition."""
    group = weight.shape[1] // scale.shape[1]
    difference = weight - levels * scale.repeat_interleave(group, dim=1)
    return torch.einsum("oi,ij,oj->o", difference, factor, difference)


def rounded(bits: int, symmetric: bool, seed: int, scale_dtype: torch.dtype | None = None, *, signed: bool = False):
    """A weight with its grid and the codes that one-sided rounding gives it."""
    weight = gaussian(10, 24, seed=seed)
    weight[3, 8:16] = 0  # a group that no scale means anything for
    factor = second_moment(24, 40, seed + 1)
    grid = integer_grid(weight, bits=bits, group_size=8, symmetric=symmetric, signed=signed, scale_dtype=scale_dtype)
    codes = grid.codes(round_two_sided(weight, None, factor, grid))
    return weight, grid, codes, factor


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_the_least_squares_solution(symmetric):
    """Against the solver for rectangular systems, on whitened inputs, a row at a time."""
    weight, grid, codes, factor = rounded(4, symmetric, seed=1)
    levels = grid.levels(codes)
    root = torch.linalg.cholesky(factor)
    scale = refit_scales(weight, levels, grid.scale, factor)
    for row in range(len(weight)):
        design = torch.block_diag(*levels[row].split(8)).T  # (24, 3)
        solution = torch.linalg.lstsq(root.T @ design, (root.T @ weight[row])[:, None], driver="gelsd").solution[:, 0]
        used = levels[row].split(8)
        kept = torch.stack([part.any() for part in used])
        torch.testing.assert_close(scale[row][kept], solution[kept], rtol=1e-9, atol=0)
        torch.testing.assert_close(scale[row][~kept], grid.scale[row][~kept], rtol=0, atol=0)


@given(
    bits=st.integers(2, 8),
    kind=st.sampled_from(["signed", "symmetric", "asymmetric"]),
    seed=st.integers(0, 1000),
    rank=st.integers(1, 40),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, None]),
)
def test_no_row_gets_a_larger_error_and_no_scale_another_sign_whatever_the_factor(bits, kind, seed, rank, dtype):
    weight, grid, codes, _ = rounded(bits, kind != "asymmetric", seed, dtype, signed=kind == "signed")
    factor, levels = second_moment(24, rank, seed + 2), grid.levels(codes)
    scale = refit_scales(weight, levels, grid.scale, factor, scale_dtype=dtype)
    assert torch.equal(scale.sign(), grid.scale.sign())
    if dtype is not None:
        assert torch.equal(scale, scale.to(dtype).double()), "a scale that the checkpoint cannot hold"
    before, after = errors(weight, levels, grid.scale, factor), errors(weight, levels, scale, factor)
    assert (after <= before * (1 + 1e-9) + 1e-12).all()


def test_no_stored_neighbour_of_a_scale_is_better():
    """Brute force over the two next numbers of bfloat16, for every scale alone."""
    weight, grid, codes, factor = rounded(3, True, 7, torch.bfloat16)
    levels = grid.levels(codes)
    scale = refit_scales(weight, levels, grid.scale, factor, scale_dtype=torch.bfloat16)
    best = errors(weight, levels, scale, factor)
    for group in range(scale.shape[1]):
        for step in (-1, 1):
            other = scale.clone()
            bits = scale[:, group].to(torch.bfloat16).view(torch.int16) + step
            other[:, group] = bits.view(torch.bfloat16).double()
            assert (errors(weight, levels, other, factor) >= best - 1e-12).all()


def test_weights_that_are_the_codes_times_a_scale_get_that_scale():
    weight, grid, codes, factor = rounded(4, True, 3)
    levels, wanted = grid.levels(codes), 1.5 * grid.scale
    weight = levels * wanted.repeat_interleave(8, dim=1)
    found = refit_scales(weight, levels, grid.scale, factor)
    used = levels.unflatten(1, (3, 8)).any(dim=2)
    torch.testing.assert_close(found[used], wanted[used], rtol=1e-9, atol=0)


def test_parts_of_the_rows_give_what_all_of_them_give(monkeypatch):
    weight, grid, codes, factor = rounded(3, True, 5)
    whole = refit_scales(weight, grid.levels(codes), grid.scale, factor)
    monkeypatch.setattr("burnish.quantize.maths.refit.SYSTEM_NUMBERS", 27)  # three rows at a time
    parts = refit_scales(weight, grid.levels(codes), grid.scale, factor)
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)


def test_a_float8_row_is_fitted_too():
    weight, factor = gaussian(6, 16), second_moment(16, 20, 1)
    grid = float_grid(weight)
    levels = grid.levels(grid.codes(grid.nearest(weight, *grid.parameters())))
    scale = refit_scales(weight, levels, grid.scale, factor)
    assert (errors(weight, levels, scale, factor) < errors(weight, levels, grid.scale, factor)).all()


def codes_and_scales(quantized):
    packed = quantized.packed.items()
    codes = {f"{weight}, {name}": t for weight, parts in packed for name, t in parts.items() if "scale" not in name}
    return codes, {weight: next(t for name, t in parts.items() if "scale" in name) for weight, parts in packed}


@pytest.mark.parametrize("method", ["rtn", "gptq", "yaqa"])
def test_a_checkpoint_with_refitted_scales_has_the_same_codes_and_loads(model, texts, ids, tmp_path, method):
    settings = {"method": method, "sketch": "b", "bits": 3, "damping": 0.1, **SMALL}
    codes, scales = codes_and_scales(Quantize(**settings, refit=False)(model, calibration=texts))
    quantized = Quantize(**settings, refit=True)(model, calibration=texts)
    new_codes, new_scales = codes_and_scales(quantized)
    assert codes.keys() == new_codes.keys()
    assert all(torch.equal(codes[name], new_codes[name]) for name in codes)
    assert all(not torch.equal(scales[name], new_scales[name]) for name in scales)
    quantized.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids).logits, quantized.module(input_ids=ids).logits)
