"""Rounding: the exact properties of the two-sided fixed point, in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.quantize.maths.grid import IntegerGrid, integer_grid
from burnish.quantize.maths.rounding import _Problem, _sweep_tiles, proxy_loss, round_two_sided, unit_lower
from burnish.quantize.maths.shrinkage import shrink

REFERENCE = Path(__file__).parents[1] / "reference" / "quantize" / "yaqa_rounding_official.npz"


def positive_definite(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size + 4, generator=generator, dtype=torch.float64)
    return root @ root.T / size + 0.05 * torch.eye(size, dtype=torch.float64)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unbounded(weight: torch.Tensor, step: float) -> IntegerGrid:
    one = torch.ones(*weight.shape[:-1], 1, dtype=weight.dtype)
    return IntegerGrid(4, True, weight.shape[-1], step * one, 0 * one, bounded=False)


def by_definition(weight, output_factor, input_factor, grid) -> torch.Tensor:
    """The fixed point element by element, straight from its definition."""
    left, right = unit_lower(output_factor)[0], unit_lower(input_factor)[0]
    left, right = left - torch.eye(len(left)), right - torch.eye(len(right))
    parameters = grid.parameters()
    error, rounded = torch.zeros_like(weight), torch.zeros_like(weight)
    for j in reversed(range(weight.shape[1])):
        for i in reversed(range(weight.shape[0])):
            feedback = left[:, i] @ error @ right[:, j] + left[:, i] @ error[:, j] + error[i] @ right[:, j]
            rounded[i, j] = grid.nearest(weight[i, j] + feedback, *(p[i, j] for p in parameters))
            error[i, j] = weight[i, j] - rounded[i, j]
    return rounded


def gptq(weight, factor, grid) -> torch.Tensor:
    """GPTQ as published: columns from first to last, errors spread by the rows of the Cholesky factor of H^-1."""
    upper = torch.linalg.cholesky(torch.linalg.inv(factor), upper=True)
    weight, rounded = weight.clone(), torch.zeros_like(weight)
    scale, zero = grid.parameters()
    for j in range(weight.shape[1]):
        rounded[:, j] = grid.nearest(weight[:, j], scale[:, j], zero[:, j])
        error = (weight[:, j] - rounded[:, j]) / upper[j, j]
        weight[:, j:] -= error[:, None] * upper[j, j:]
    return rounded


@pytest.mark.parametrize("shape", [(9, 12), (20, 24), (33, 16)])
@pytest.mark.parametrize("tile", [4, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_two_sided_rounding_equals_its_definition(shape, tile, symmetric):
    weight = gaussian(*shape)
    factors = positive_definite(shape[0], 1), positive_definite(shape[1], 2)
    grid = integer_grid(weight, bits=3, group_size=4, symmetric=symmetric)
    rounded = round_two_sided(weight, *factors, grid, order="natural", tile=tile)
    assert torch.equal(rounded, by_definition(weight, *factors, grid))


def test_identity_on_the_output_side_is_one_sided_rounding():
    weight = gaussian(70, 130)
    factor = positive_definite(130, 3)
    grid = integer_grid(weight, bits=3, group_size=10)
    identity = torch.eye(70, dtype=torch.float64)
    one_sided = round_two_sided(weight, None, factor, grid)
    assert torch.equal(round_two_sided(weight, identity, factor, grid), one_sided)
    # the general schedule too, not only the shortcut for a diagonal factor
    problem = _Problem.of(weight, identity, factor, grid, "diagonal")
    general = problem.in_original_order(_sweep_tiles(problem, 16, elementwise=True))[0]
    assert torch.equal(general, one_sided)


def test_one_sided_rounding_is_gptq_with_columns_reversed():
    weight = gaussian(12, 40)
    factor = positive_definite(40, 4)
    grid = integer_grid(weight, bits=3, group_size=8)
    flipped = IntegerGrid(3, True, 8, grid.scale.flip(-1), grid.zero.flip(-1))
    ours = round_two_sided(weight, None, factor, grid, order="natural")
    assert torch.equal(ours.flip(-1), gptq(weight.flip(-1), factor.flip(0, 1), flipped))


def test_diagonal_order_is_natural_order_of_the_sorted_problem():
    weight = gaussian(10, 16)
    output_factor, input_factor = positive_definite(10, 5), positive_definite(16, 6)
    rows, columns = output_factor.diagonal().argsort(), input_factor.diagonal().argsort()
    grid = unbounded(weight, 0.3)
    sorted_factors = output_factor[rows][:, rows], input_factor[columns][:, columns]
    of_sorted = round_two_sided(weight[rows][:, columns], *sorted_factors, grid, order="natural")
    rounded = round_two_sided(weight, output_factor, input_factor, grid, order="diagonal")
    assert torch.equal(rounded[rows][:, columns], of_sorted)


def test_diagonal_factors_give_nearest_rounding():
    weight = gaussian(8, 12)
    grid = integer_grid(weight, bits=3, group_size=4)
    diagonals = torch.diag(gaussian(8).abs() + 1), torch.diag(gaussian(12).abs() + 1)
    nearest = grid.nearest(weight, *grid.parameters())
    assert torch.equal(round_two_sided(weight, *diagonals, grid), nearest)
    assert torch.equal(round_two_sided(weight, None, None, grid), nearest)


def test_a_weight_on_the_grid_is_unchanged():
    weight = gaussian(16, 24)
    grid = integer_grid(weight, bits=4, group_size=8, symmetric=False)
    on_grid = grid.nearest(weight, *grid.parameters())
    rounded = round_two_sided(on_grid, positive_definite(16, 1), positive_definite(24, 2), grid)
    assert torch.equal(rounded, on_grid)


@pytest.mark.parametrize("bounded", [True, False])
def test_proxy_is_the_pivot_weighted_square_of_eta(bounded):
    weight = gaussian(24, 32)
    output_factor, input_factor = positive_definite(24, 1), positive_definite(32, 2)
    grid = integer_grid(weight, bits=2, group_size=8) if bounded else unbounded(weight, 0.5)
    error = weight - round_two_sided(weight, output_factor, input_factor, grid, order="natural")
    (left, left_pivots), (right, right_pivots) = unit_lower(output_factor), unit_lower(input_factor)
    eta = left.T @ error @ right
    expected = (left_pivots.diagonal()[:, None] * eta**2 * right_pivots.diagonal()).sum()
    torch.testing.assert_close(proxy_loss(error, output_factor, input_factor), expected, rtol=1e-9, atol=0)


def test_eta_stays_within_half_a_step_on_an_unbounded_grid():
    weight = gaussian(24, 32)
    output_factor, input_factor = positive_definite(24, 1), positive_definite(32, 2)
    error = weight - round_two_sided(weight, output_factor, input_factor, unbounded(weight, 0.5), order="natural")
    eta = unit_lower(output_factor)[0].T @ error @ unit_lower(input_factor)[0]
    assert eta.abs().max() <= 0.25 + 1e-12


def test_mean_loss_on_an_unbounded_grid_is_the_product_of_pivot_traces():
    step, count = 0.5, 200
    weight = gaussian(count, 24, 32)
    output_factor, input_factor = positive_definite(24, 1), positive_definite(32, 2)
    rounded = round_two_sided(weight, output_factor, input_factor, unbounded(weight, step), order="natural")
    mean = proxy_loss(weight - rounded, output_factor, input_factor).mean()
    pivots = [unit_lower(factor)[1].trace() for factor in (output_factor, input_factor)]
    torch.testing.assert_close(mean, step**2 / 12 * pivots[0] * pivots[1], rtol=0.05, atol=0)


@pytest.mark.parametrize("constant", [1e-6, 8.0, 3e5])
def test_scaling_a_factor_changes_nothing(constant):
    weight = gaussian(24, 32)
    output_factor, input_factor = positive_definite(24, 1), positive_definite(32, 2)
    grid = integer_grid(weight, bits=3, group_size=8)
    rounded = round_two_sided(weight, output_factor, input_factor, grid)
    assert torch.equal(round_two_sided(weight, constant * output_factor, input_factor, grid), rounded)
    assert torch.equal(round_two_sided(weight, output_factor, constant * input_factor, grid), rounded)


def test_proxy_is_the_same_in_a_rotated_basis():
    left = torch.linalg.qr(gaussian(12, 12, seed=1)).Q
    right = torch.linalg.qr(gaussian(16, 16, seed=2)).Q
    output_factor, input_factor, error = positive_definite(12, 1), positive_definite(16, 2), gaussian(12, 16)
    rotated = proxy_loss(left @ error @ right.T, left @ output_factor @ left.T, right @ input_factor @ right.T)
    torch.testing.assert_close(rotated, proxy_loss(error, output_factor, input_factor), rtol=1e-12, atol=0)


def test_no_rounding_reproduces_the_weight():
    class Everything:
        """The grid of all numbers."""

        def parameters(self):
            return ()

        def nearest(self, values):
            return values

    weight = gaussian(20, 36)
    factors = positive_definite(20, 1), positive_definite(36, 2)
    torch.testing.assert_close(round_two_sided(weight, *factors, Everything(), tile=8), weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["element_bounded", "element_unbounded", "tile_bounded", "tile_unbounded"])
def test_rounding_equals_the_published_program_element_for_element(name):
    with np.load(REFERENCE, allow_pickle=False) as file:
        part = {key: torch.from_numpy(file[f"{name}/{key}"]) for key in ("weight", "output_factor", "input_factor")}
        expected = torch.from_numpy(file[f"{name}/rounded"])
        tile, step, lowest, _, damping = file[f"{name}/settings"].tolist()
    weight = part["weight"]
    one = torch.ones(len(weight), 1, dtype=weight.dtype)
    grid = IntegerGrid(3, True, weight.shape[1], step * one, 0 * one, bounded=lowest == -4)
    rounded = round_two_sided(
        weight,
        shrink(part["output_factor"], damping=damping),
        shrink(part["input_factor"], damping=damping),
        grid,
        order="natural",
        feedback="element" if tile == 1 else "tile",
        tile=16,
    )
    torch.testing.assert_close(rounded, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(16, 24), (18, 20)])
def test_tile_feedback_obeys_its_identity(shape):
    """tr(H_O E H_I E^T) = tr(D_O eta D_I eta^T) with block L and D, and eta the difference that the grid saw."""
    weight = gaussian(*shape)
    output_factor, input_factor = positive_definite(shape[0], 1), positive_definite(shape[1], 2)
    grid = unbounded(weight, 0.5)
    tile = 4
    rounded = round_two_sided(weight, output_factor, input_factor, grid, order="natural", feedback="tile", tile=tile)
    error = weight - rounded
    left, left_pivots = unit_lower(output_factor, tile)
    front = -shape[1] % tile  # columns are cut into tiles from the last one
    padded = torch.eye(shape[1] + front, dtype=torch.float64)
    padded[front:, front:] = input_factor
    right, right_pivots = (factor[front:, front:] for factor in unit_lower(padded, tile))
    eta = left.T @ error @ right
    assert eta.abs().max() <= 0.25 + 1e-12
    expected = torch.trace(left_pivots @ eta @ right_pivots @ eta.T)
    torch.testing.assert_close(proxy_loss(error, output_factor, input_factor), expected, rtol=1e-9, atol=0)


def test_batched_problems_are_independent():
    weight = gaussian(3, 10, 12)
    output_factors = torch.stack([positive_definite(10, seed) for seed in range(3)])
    input_factors = torch.stack([positive_definite(12, seed) for seed in range(3)])
    grid = integer_grid(weight, bits=3, group_size=4)
    together = round_two_sided(weight, output_factors, input_factors, grid)
    for k in range(3):
        alone = integer_grid(weight[k], bits=3, group_size=4)
        assert torch.equal(together[k], round_two_sided(weight[k], output_factors[k], input_factors[k], alone))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(40, 72), (96, 64), (3, 64, 160)])
@pytest.mark.parametrize("sides", ["both", "output", "input"])
def test_a_gpu_rounds_like_the_cpu(shape, sides):
    weight = gaussian(*shape)
    output_side = None if sides == "input" else positive_definite(shape[-2], 1)
    input_side = None if sides == "output" else positive_definite(shape[-1], 2)
    expected = round_two_sided(weight, output_side, input_side, integer_grid(weight, bits=3, group_size=8))
    moved = [None if tensor is None else tensor.cuda() for tensor in (weight, output_side, input_side)]
    found = round_two_sided(*moved, integer_grid(weight.cuda(), bits=3, group_size=8))
    assert torch.equal(found.cpu(), expected)


def test_two_sided_rounding_lowers_the_two_sided_proxy_and_raises_the_one_sided_one():
    weight = gaussian(48, 64)
    output_factor, input_factor = positive_definite(48, 1), positive_definite(64, 2)
    grid = integer_grid(weight, bits=3, group_size=16)
    one_sided = weight - round_two_sided(weight, None, input_factor, grid)
    two_sided = weight - round_two_sided(weight, output_factor, input_factor, grid)
    assert proxy_loss(two_sided, output_factor, input_factor) < proxy_loss(one_sided, output_factor, input_factor)
    assert proxy_loss(two_sided, None, input_factor) > proxy_loss(one_sided, None, input_factor)


def test_a_factor_that_is_not_positive_definite_is_refused():
    weight = gaussian(4, 6)
    bad = positive_definite(6, 1)
    bad[5, 5] = -1.0
    with pytest.raises(torch.linalg.LinAlgError):
        round_two_sided(weight, None, bad, unbounded(weight, 0.1))
