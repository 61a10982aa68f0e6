import pytest
import torch

from burnish.events.maths.hawkes import gap_quantile
from burnish.events.maths.inversion import panel_edges, tabulate

LIKE = torch.zeros((), dtype=torch.float64)
EDGES = panel_edges(4.0, 1000.0, 128, LIKE)
BASE = torch.tensor([[0.45], [0.2]], dtype=torch.float64)
RISE = torch.tensor([[1.3], [3.0]], dtype=torch.float64)


def hawkes_hazard(gap: torch.Tensor) -> torch.Tensor:
    return BASE + RISE * torch.exp(-1.5 * gap)


@pytest.fixture(scope="module")
def table():
    return tabulate(hawkes_hazard, EDGES)


LEVELS = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64)


def test_inverse_of_the_compensator_is_the_gap(table) -> None:
    target = -torch.log1p(-LEVELS).expand(2, -1)
    assert torch.allclose(table.compensator(table.invert(target)), target, atol=1e-10, rtol=1e-10)


def test_quantiles_equal_lambert_w(table) -> None:
    expected = gap_quantile(LEVELS.numpy(), BASE.numpy(), RISE.numpy(), 1.5)
    found = table.invert(-torch.log1p(-LEVELS).expand(2, -1)).numpy()
    assert found == pytest.approx(expected, rel=1e-6)  # four nodes per panel on a hazard that is not polynomial


def test_inverse_is_monotone(table) -> None:
    target = torch.linspace(0, 12, 500, dtype=torch.float64).expand(2, -1)
    assert (table.invert(target).diff() > 0).all()


def test_constant_hazard_gives_exponential_quantiles() -> None:
    table = tabulate(lambda gap: torch.full_like(gap, 0.7).expand(1, -1), EDGES)
    expected = -torch.log1p(-LEVELS) / 0.7
    assert torch.allclose(table.invert(-torch.log1p(-LEVELS)[None])[0], expected, rtol=1e-12)


def test_quantile_beyond_the_table_uses_the_tail_hazard() -> None:
    table = tabulate(lambda gap: torch.full_like(gap, 1e-4).expand(1, -1), EDGES)
    target = torch.tensor([[5.0]], dtype=torch.float64)
    assert float(table.invert(target)) == pytest.approx(5e4, rel=1e-10)


def test_compensator_beyond_the_table_goes_on_with_the_tail_hazard() -> None:
    table = tabulate(lambda gap: torch.full_like(gap, 1e-4).expand(1, -1), EDGES)
    assert float(table.compensator(torch.tensor([[5e4]], dtype=torch.float64))) == pytest.approx(5.0, rel=1e-10)


def test_a_target_that_is_never_reached_is_infinite() -> None:
    table = tabulate(lambda gap: (0.5 * (gap < 1)).to(gap), EDGES)
    assert torch.isinf(table.invert(torch.tensor([[3.0]], dtype=torch.float64))).all()
