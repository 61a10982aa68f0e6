"""Exact properties of scores, kept sets and repair, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.slim.maths.experts import reap
from burnish.slim.maths.keep import geometric_widths, keep_highest
from burnish.slim.maths.refit import gram_terms, refit_down
from burnish.slim.maths.scores import SCORES, group_columns, magnitude, output_energy, saliency

TOKENS, HIDDEN, WIDTH = 30, 6, 8


@pytest.fixture
def expert():
    """One expert whose output goes through routing weights into a loss; weights require gradients."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, routing, target = normal(TOKENS, HIDDEN), normal(TOKENS, 1).sigmoid(), normal(TOKENS, HIDDEN)
    gate, up, down = (normal(*s).requires_grad_() for s in ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH)))
    activations = F.silu(x @ gate.T) * (x @ up.T)
    output = activations @ down.T
    output.retain_grad()
    ((routing * output).sin() * target).sum().backward()
    return {"a": activations.detach(), "g": routing, "dy": output.grad, "gate": gate, "up": up, "down": down}


def test_down_columns_up_rows_and_activations_have_the_same_first_order_score(expert):
    total = saliency(expert["a"], expert["dy"], expert["down"].detach()).sum(0)
    by_down = (expert["down"] * expert["down"].grad).sum(0)
    by_up = (expert["up"] * expert["up"].grad).sum(1)
    torch.testing.assert_close(total, by_down, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, by_up, rtol=1e-12, atol=1e-12)


def test_the_gate_row_has_another_score(expert):
    total = saliency(expert["a"], expert["dy"], expert["down"].detach()).sum(0)
    by_gate = (expert["gate"] * expert["gate"].grad).sum(1)
    assert (total - by_gate).abs().min() > 1e-3


def test_energy_is_the_squared_error_of_removing_one_neuron(expert):
    down = expert["down"].detach()
    score = SCORES["energy"]
    energy = score.finish(score.terms(expert["a"], expert["g"]), down.norm(dim=0))
    for neuron in range(WIDTH):
        removed = expert["g"] * expert["a"][:, neuron, None] * down[:, neuron]
        assert energy[neuron].item() == pytest.approx(removed.square().sum().item(), rel=1e-12)


@pytest.mark.parametrize("name", [name for name, score in SCORES.items() if score.terms])
def test_terms_add_up_over_blocks_of_tokens(expert, name):
    values, terms = expert["a"] - 0.1, SCORES[name].terms
    parts = terms(values[:11], expert["g"][:11]) + terms(values[11:], expert["g"][11:])
    torch.testing.assert_close(parts, terms(values, expert["g"]), rtol=1e-12, atol=0)


def test_group_saliency_is_the_score_of_the_groups_columns(expert):
    down = expert["down"].detach()
    groups = group_columns(saliency(expert["a"], expert["dy"], down), 2).sum(0)
    by_weight = (expert["down"] * expert["down"].grad).sum(0).view(2, -1).sum(1)
    torch.testing.assert_close(groups, by_weight, rtol=1e-12, atol=1e-12)


def test_output_energy_of_one_group_is_the_squared_output(expert):
    down = expert["down"].detach()
    torch.testing.assert_close(
        output_energy(expert["a"], down, 1)[:, 0], (expert["a"] @ down.T).square().sum(1), rtol=1e-12, atol=0
    )


def test_magnitude_of_a_neuron_scales_with_its_weights():
    gate, up, down = (torch.randn(s, dtype=torch.float64) for s in ((3, 2), (3, 2), (2, 3)))
    torch.testing.assert_close(magnitude([2 * gate, 2 * up], 2 * down), 2 * magnitude([gate, up], down))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_kept_indices_are_ascending_and_no_score_left_out_is_higher(values, data):
    count = data.draw(st.integers(1, len(values)))
    kept = keep_highest(torch.tensor(values, dtype=torch.float64), count).tolist()
    assert kept == sorted(set(kept)) and len(kept) == count
    left = [value for index, value in enumerate(values) if index not in kept]
    assert not left or max(left) <= min(values[index] for index in kept)


def test_keeping_all_is_the_identity():
    assert keep_highest(torch.randn(3, 5), 5).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_permuted_neurons_keep_the_same_neurons():
    scores = torch.randn(9, dtype=torch.float64)
    order = torch.randperm(9)
    assert sorted(order[keep_highest(scores[order], 4)].tolist()) == keep_highest(scores, 4).tolist()


def test_published_two_stage_schedule():
    assert geometric_widths(6400, 960, 2, 64) == [2496, 960]  # Phi-3.5-MoE to Phi-mini-MoE


def test_one_stage_is_one_shot():
    assert geometric_widths(100, 30, 1, 64) == [30]


def test_refit_never_loses_to_slicing(expert):
    a, g, down = expert["a"], expert["g"], expert["down"].detach()
    keep = torch.tensor([0, 3, 5])
    wanted = g * (a @ down.T)
    refitted = refit_down(down, gram_terms(a, g), keep, ridge=1e-12)
    error = (g * (a[:, keep] @ refitted.T) - wanted).norm()
    assert error < (g * (a[:, keep] @ down[:, keep].T) - wanted).norm()


def test_refit_is_the_least_squares_solution(expert):
    a, g, down = expert["a"], expert["g"], expert["down"].detach()
    keep = torch.tensor([1, 2, 6])
    solution = torch.linalg.lstsq(g * a[:, keep], g * (a @ down.T)).solution.T
    torch.testing.assert_close(refit_down(down, gram_terms(a, g), keep, ridge=1e-14), solution, rtol=1e-9, atol=1e-10)


def test_refit_of_everything_kept_changes_nothing(expert):
    down = expert["down"].detach()
    gram = gram_terms(expert["a"], expert["g"])
    assert torch.equal(refit_down(down, gram, torch.arange(WIDTH)), down)


def test_refit_without_tokens_is_slicing():
    down = torch.randn(4, 6)
    keep = torch.tensor([0, 5])
    assert torch.equal(refit_down(down, torch.zeros(6, 6), keep), down[:, keep])


def test_reap_of_an_expert_without_tokens_is_zero():
    assert reap(torch.tensor([3.0, 0.0]), torch.tensor([2, 0])).tolist() == [1.5, 0.0]
