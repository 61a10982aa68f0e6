"""The intervention by products is the intervention, heads one after the other included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from burnish.steer.maths.intervene import MODES, Mode, steered
from burnish.steer.maths.products import HeadProducts, steered_rows


def drawn(seed: int, rows: int = 5, heads: int = 4, hidden: int = 12) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, probes, directions = (
        torch.randn(size, hidden, generator=generator, dtype=torch.float64) for size in (rows, heads, heads)
    )
    return x, probes, normalize(directions, dim=1), torch.randn(heads, generator=generator, dtype=torch.float64)


@given(
    st.integers(0, 10_000),
    st.sampled_from(MODES),
    st.lists(st.floats(-4, 4), min_size=5, max_size=5),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_products_give_what_going_through_the_heads_gives(
    seed: int, mode: Mode, coefs: list[float], dtype: torch.dtype
):
    x, probes, directions, targets = drawn(seed)
    x = x.to(dtype)
    expected, gates = steered(
        x.double(),
        probes,
        directions,
        torch.ones(5, dtype=torch.bool),
        targets=targets,
        coef=torch.tensor(coefs, dtype=torch.float64),
        mode=mode,
    )
    found, opened = steered_rows(x, HeadProducts.of(probes, directions, targets), coefs, mode)
    rounding = 1e-9 if dtype == torch.float64 else torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)
    assert opened == (gates > 0.5).sum(1).tolist()


def test_a_row_whose_gates_are_closed_keeps_its_bits():
    x, probes, directions, _ = drawn(3, rows=40, heads=2)
    x = x.bfloat16()
    found, opened = steered_rows(x, HeadProducts.of(probes, directions), [-4.0] * 40)
    closed = torch.tensor(opened) == 0
    assert closed.any() and not closed.all()
    assert torch.equal(found[closed], x[closed])
    assert not torch.equal(found[~closed], x[~closed])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_along_the_direction_stays(dtype: torch.dtype):
    _, probes, directions, _ = drawn(4, heads=1)
    x = (3 * directions).to(dtype)
    along = normalize(x.double(), dim=1)
    found, opened = steered_rows(x, HeadProducts.of(probes, along), [-1.0], "ungated")
    assert torch.equal(found, x)
    assert opened == [1]


def test_what_is_no_number_stays_and_a_great_one_overflows_nothing():
    _, probes, directions, _ = drawn(5)
    x = torch.full((1, 12), float("nan"))
    heads = HeadProducts.of(probes, directions)
    assert steered_rows(x, heads, [-1.0])[0].isnan().all()
    assert steered_rows(torch.full((1, 12), 1e30), heads, [-1.0], "soft")[0].isfinite().all()
