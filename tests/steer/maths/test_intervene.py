"""The intervention: the authors' own outputs, and what holds of it exactly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.steer.maths.intervene import MODES, RELEASED, steered

ARRAYS = np.load(Path(__file__).parents[2] / "reference" / "steer" / "released_f32.npz")


def drawn(seed: int, rows: int = 5, heads: int = 3, hidden: int = 12) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, probes, directions = (
        torch.randn(size, hidden, generator=generator, dtype=torch.float64) for size in (rows, heads, heads)
    )
    return x, probes, torch.nn.functional.normalize(directions, dim=1)


EVERY = torch.ones(5, dtype=torch.bool)
seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("mode", RELEASED)
@pytest.mark.parametrize("coef", [-1, -4])
@pytest.mark.parametrize("order", ["", "reversed."])
def test_the_modes_give_what_the_released_patch_gives(mode: str, coef: int, order: str):
    x, probes, directions = (torch.from_numpy(ARRAYS[name]) for name in ("x", "probes", "directions"))
    if order:
        probes, directions = probes.flip(0), directions.flip(0)
    flags = torch.from_numpy(ARRAYS["flags"]).bool()
    ours, _ = steered(x, probes, directions, flags, coef=float(coef), mode=mode)
    torch.testing.assert_close(ours, torch.from_numpy(ARRAYS[f"{order}{mode}.{coef}"]), rtol=1e-5, atol=1e-5)


@given(seeds, st.floats(-3, 3))
def test_to_the_mean_at_minus_one_every_row_has_the_target_along_the_direction_and_nothing_else_moves(
    seed: int, target: float
):
    x, probes, directions = drawn(seed)
    options = {"targets": torch.tensor([target], dtype=torch.float64), "mode": "mean"}
    after, _ = steered(x, probes[:1], directions[:1], EVERY, coef=-1.0, **options)
    torch.testing.assert_close(after @ directions[0], torch.full((5,), target, dtype=torch.float64), rtol=0, atol=1e-12)
    across = torch.eye(12, dtype=torch.float64) - torch.outer(directions[0], directions[0])
    torch.testing.assert_close(after @ across, x @ across, rtol=0, atol=1e-12)
    twice, _ = steered(x, probes[:1], directions[:1], EVERY, coef=-2.0, **options)
    torch.testing.assert_close(twice - after, after - x, rtol=0, atol=1e-12)


@given(seeds)
def test_one_ungated_head_at_minus_one_leaves_nothing_along_its_direction_and_keeps_the_length(seed: int):
    x, probes, directions = drawn(seed)
    after, _ = steered(x, probes[:1], directions[:1], EVERY, coef=-1.0, mode="ungated")
    assert float((after @ directions[0]).abs().max()) < 1e-12
    torch.testing.assert_close(after.norm(dim=1), x.norm(dim=1), rtol=1e-13, atol=0)


@given(seeds)
def test_minus_four_turns_a_component_into_minus_three_of_it_before_lengths_are_kept(seed: int):
    x, probes, directions = drawn(seed)
    after, _ = steered(x, probes[:1], directions[:1], EVERY, coef=-4.0, mode="ungated")
    unscaled = x - 4 * (x @ directions[0])[:, None] * directions[0]
    torch.testing.assert_close(after / after.norm(dim=1, keepdim=True), unscaled / unscaled.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_coefficient_of_zero_changes_nothing(mode: str):
    x, probes, directions = drawn(1)
    after, _ = steered(x, probes, directions, EVERY, coef=0.0, mode=mode)
    torch.testing.assert_close(after, x, rtol=1e-15, atol=0)


def test_without_heads_or_flags_rows_keep_their_bits():
    x, probes, directions = drawn(2)
    assert steered(x, probes[:0], directions[:0], EVERY)[0] is x
    flags = torch.tensor([True, False, True, False, False])
    for mode in MODES:
        after, gates = steered(x.bfloat16(), probes, directions, flags, coef=-4.0, mode=mode)
        assert torch.equal(after[~flags], x.bfloat16()[~flags])
        assert not gates[~flags].any()


def test_a_row_whose_gates_are_closed_keeps_its_bits():
    x, probes, directions = drawn(3)
    closed = torch.where(x @ probes[0] >= 0, True, False)
    after, gates = steered(x.float(), probes[:1].float(), directions[:1].float(), EVERY, coef=-4.0)
    assert closed.any() and not closed.all()
    assert torch.equal((gates == 0)[:, 0], closed)
    assert torch.equal(after[closed], x.float()[closed])
    assert not torch.equal(after[~closed], x.float()[~closed])


@given(seeds, st.sampled_from(MODES))
def test_turning_everything_turns_the_result(seed: int, mode: str):
    x, probes, directions = drawn(seed)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    after, _ = steered(x, probes, directions, EVERY, coef=-1.5, mode=mode)
    turned, _ = steered(x @ turn, probes @ turn, directions @ turn, EVERY, coef=-1.5, mode=mode)
    torch.testing.assert_close(turned, after @ turn, rtol=1e-9, atol=1e-9)


@given(seeds, st.sampled_from(MODES))
def test_a_row_does_not_depend_on_its_batch(seed: int, mode: str):
    x, probes, directions = drawn(seed)
    together, _ = steered(x, probes, directions, EVERY, coef=-2.0, mode=mode)
    for number, row in enumerate(x):
        alone, _ = steered(row[None], probes, directions, EVERY[:1], coef=-2.0, mode=mode)
        torch.testing.assert_close(alone[0], together[number], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_along_the_direction_stays_where_the_release_divides_by_zero(dtype: torch.dtype):
    _, probes, directions = drawn(4)
    x = (3 * directions[:1]).to(dtype)
    wide = x.to(torch.promote_types(dtype, torch.float32))
    after, _ = steered(x, probes[:1].to(dtype), wide / wide.norm(), EVERY[:1], coef=-1.0, mode="ungated")
    assert torch.equal(after, x)


def test_gates_of_bfloat16_rows_follow_the_probe_in_float32():
    x = torch.tensor([[1.0, 1.0]], dtype=torch.bfloat16)
    probe = torch.tensor([[1.0, -1.001]])  # rounded to bfloat16 it is [1, -1], and the gate would be shut
    _, gates = steered(x, probe, torch.tensor([[1.0, 0.0]]), EVERY[:1])
    assert gates.item() == 1
