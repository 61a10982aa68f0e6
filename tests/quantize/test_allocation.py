"""Mixed precision: the exact knapsack, and the sensitivity that it weighs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.quantize.maths.allocation import allocate, sensitivity

numbers = st.integers(0, 12)
problems = st.lists(st.lists(st.tuples(numbers, numbers), min_size=4, max_size=4), min_size=6, max_size=6)


def by_brute_force(costs, sizes, budget):
    every = itertools.product(range(4), repeat=6)
    fits = [choice for choice in every if sum(sizes[g][c] for g, c in enumerate(choice)) <= budget]
    return min((sum(costs[g][c] for g, c in enumerate(choice)), total(sizes, choice)) for choice in fits)


def total(values, choice):
    return sum(values[group][part] for group, part in enumerate(choice))


@settings(deadline=None, max_examples=15)
@given(problems, st.floats(0, 1))
def test_the_knapsack_equals_brute_force_on_six_groups_of_four_widths(problem, fullness):
    costs = [[float(cost) for cost, _ in group] for group in problem]
    sizes = [[size for _, size in group] for group in problem]
    least, most = sum(map(min, sizes)), sum(map(max, sizes))
    budget = least + round(fullness * (most - least))
    choice = allocate(costs, sizes, budget)
    assert (total(costs, choice), total(sizes, choice)) == by_brute_force(costs, sizes, budget)


def test_a_model_of_many_layers_is_no_worse_than_any_uniform_width():
    draw = np.random.default_rng(0)
    weights = draw.integers(1, 9, 100) * 1000
    costs = [[scale * 4.0**-bits for bits in range(2, 9)] for scale in draw.lognormal(size=100)]
    sizes = [[int(count * bits) for bits in range(2, 9)] for count in weights]
    for place, bits in enumerate(range(2, 9)):
        budget = int(weights.sum() * bits)
        choice = allocate(costs, sizes, budget)
        assert total(sizes, choice) <= budget
        assert total(costs, choice) <= sum(group[place] for group in costs)


def test_a_budget_below_the_smallest_choices_is_an_error():
    with pytest.raises(ValueError, match="the smallest choices take 3"):
        allocate([[1.0], [1.0]], [[1], [2]], 2)


def test_sensitivity_is_half_the_fisher_form_per_token():
    """Σ_t of one token's gradient g x^T: the form is (g . E x)^2, which both sketches' sides give exactly."""
    draw = torch.Generator().manual_seed(0)
    x, g, error = (torch.randn(*size, generator=draw, dtype=torch.float64) for size in [(5,), (3,), (3, 5)])
    input_sum, output_sum = g.square().sum() * torch.outer(x, x), x.square().sum() * torch.outer(g, g)
    expected = float((g @ error @ x) ** 2 / 2 / 7)
    assert sensitivity(error, output_sum, input_sum, num_tokens=7) == pytest.approx(expected, rel=1e-12)


def test_what_no_gradient_reached_costs_nothing():
    assert sensitivity(torch.ones(2, 3), torch.zeros(2, 2), torch.zeros(3, 3), num_tokens=4) == 0
