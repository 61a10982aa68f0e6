"""Newton-Schulz against its exact scalar picture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.optim.maths.orthogonalise import POLYNOMIALS, orthogonalise


def scalar(values, schedule, steps=5):
    for a, b, c in POLYNOMIALS[schedule].iterations(steps):
        values = a * values + b * values**3 + c * values**5
    return values


@pytest.mark.parametrize("schedule", POLYNOMIALS)
@settings(max_examples=15)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9), seed=st.integers(0, 99))
def test_singular_values_go_through_the_scalar_polynomial(schedule, rows, cols, seed):
    matrix = torch.randn(rows, cols, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    plan = POLYNOMIALS[schedule]
    normalised = torch.linalg.svdvals(matrix) / (matrix.norm() * plan.norm_factor + plan.eps)
    expected = scalar(normalised, schedule).abs().sort(descending=True).values
    torch.testing.assert_close(torch.linalg.svdvals(orthogonalise(matrix, schedule)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "schedule, low, high, gain",
    [("quintic", 0.682, 1.134, 485), ("tuned5", 0.978, 1.032, 493), ("polar_express", 0.859, 1.141, 969)],
)
def test_published_range_of_singular_values(schedule, low, high, gain):
    # The grid is in units of what the iteration sees, after the division by c0.
    grid = torch.linspace(0.01, 1, 100_001, dtype=torch.float64) / POLYNOMIALS[schedule].norm_factor
    values = scalar(grid, schedule)
    assert values.min().item() == pytest.approx(low, abs=2e-3)
    assert values.max().item() == pytest.approx(high, abs=2e-3)
    tiny = torch.tensor(1e-9, dtype=torch.float64)
    lifted = (scalar(tiny / POLYNOMIALS[schedule].norm_factor, schedule) / tiny).item()
    assert lifted == pytest.approx(gain, rel=0.005)


def test_singular_vectors_stay():
    matrix = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    core = left.mT @ orthogonalise(matrix) @ right.mT
    assert (core - core.diagonal().diag()).abs().max() < 1e-10


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 7, 5)])
def test_a_batch_is_a_loop(shape):
    batch = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    single = torch.stack([orthogonalise(matrix) for matrix in batch])
    torch.testing.assert_close(orthogonalise(batch), single, rtol=1e-12, atol=1e-12)


def test_zero_stays_zero():
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_input_is_not_changed_even_where_the_cast_is_free(dtype):
    matrix = torch.randn(4, 6).to(dtype)
    before = matrix.clone()
    orthogonalise(matrix, dtype=dtype)
    assert torch.equal(matrix, before)


def test_zero_rows_stay_zero_and_do_not_disturb_the_others():
    matrix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([matrix, torch.zeros(3, 6, dtype=torch.float64)])
    torch.testing.assert_close(orthogonalise(padded)[:4], orthogonalise(matrix), rtol=1e-12, atol=1e-12)
    assert torch.equal(orthogonalise(padded)[4:], torch.zeros(3, 6, dtype=torch.float64))
