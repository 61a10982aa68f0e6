"""Runs of steps are sums of steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.serve.costs import CostModel, DynoSim, Linear, Measured, Roofline, run, step

MODELS: dict[str, CostModel] = {
    "whole": Linear(5_000_000, 40_000, 40, 20_000),
    "fractions": Linear(5_000_000.3, 40_000.7, 39.5, 20_000.1),
    "nothing": Linear(),
    "roofline": Roofline(8e9, 32, 4096, 131072),
    "dynosim": DynoSim(1_000_000),
    "table": Measured([(1, 1e6), (1000, 5e7)], [(1, 5e6), (100, 9e6)], 3.3),
}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=30)
@given(
    decodes=st.integers(1, 300),
    context=st.integers(1, 500_000),
    most=st.integers(1, 60),
    share=st.floats(0, 1.2),
)
def test_a_run_is_its_steps_one_after_the_other(name: str, decodes: int, context: int, most: int, share: float):
    model = MODELS[name]
    times = [step(model, [], decodes, context + decodes * number) for number in range(most)]
    whole = run(model, decodes, context, most)
    assert whole == (most, sum(times[:-1]), sum(times))
    until = int(share * sum(times))
    expected = next((n for n in range(1, most + 1) if sum(times[:n]) >= until), most)
    assert run(model, decodes, context, most, until) == (expected, sum(times[: expected - 1]), sum(times[:expected]))


def test_a_run_longer_than_what_is_laid_out_at_a_time():
    model = MODELS["fractions"]
    times = [step(model, [], 3, 1000 + 3 * number) for number in range(9000)]
    assert run(model, 3, 1000, 9000) == (9000, sum(times[:-1]), sum(times))
    assert run(model, 3, 1000, 9000, sum(times[:5000])) == (5000, sum(times[:4999]), sum(times[:5000]))


def test_prompts_are_paid_for():
    assert step(Linear(10, 2, 0, 5), [(100, 0), (7, 30)], 3, 50) == 10 + 2 * 107 + 5 * 3
    roofline = Roofline(1e9, 10, 1000, 1000, weight_bytes=8, flops=1e12, bandwidth=1e12, efficiency=1.0)
    assert step(roofline, [(1000, 0)], 0, 0) == round((2e9 * 1000 + 4 * 10 * 1000 * 1000 * 500) / 1e12 * 1e9)
    assert step(roofline, [], 1, 40_000) == round((8e9 + 1000 * 40_000) / 1e12 * 1e9)
    for chunks in ([(1024, 0)], [(1000, 0), (24, 512)]):  # all prompts of a step together, as DynoSim has it
        assert step(DynoSim(1000), chunks, 0, 0) == round(1e6 * (4.21e-7 * 1024**2 + 1.518344e-2 * 1024 + 16.50142))


def test_a_table_is_straight_between_its_points_and_goes_on_after_them():
    table = Measured([(10, 100.0), (20, 200.0)], [(1, 50.0)])
    assert [step(table, [(tokens, 0)], 0, 0) for tokens in (5, 10, 15, 30)] == [100, 100, 150, 300]
    assert step(table, [], 40, 0) == 50
