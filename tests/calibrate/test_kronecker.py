"""Kronecker factors against the published program, automatic differentiation and their own definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from burnish.calibrate.maths.kronecker import by_sequence, covariance_sum, sketch_a_sums, sketch_b_sums, symmetric

REFERENCE = Path(__file__).parents[1] / "reference" / "quantize" / "yaqa_sketch_official.npz"


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same_direction(ours: torch.Tensor, theirs: np.ndarray) -> None:
    """Equal up to a positive scalar; their sums are in float32."""
    expected = torch.from_numpy(theirs)
    torch.testing.assert_close(ours / ours.norm(), expected / expected.norm(), rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def toy():
    """Inputs of W1, output gradients of the summed cross-entropy, and the reference's factors."""
    reference = np.load(REFERENCE, allow_pickle=False)
    inputs, first, second = (torch.from_numpy(reference[key]).double() for key in ("X", "W1", "W2"))
    labels = torch.from_numpy(reference["y"])
    outputs = (inputs @ first.T).requires_grad_()
    loss = F.cross_entropy((torch.tanh(outputs) @ second.T).flatten(0, 1), labels.flatten(), reduction="sum")
    (gradients,) = torch.autograd.grad(loss, outputs)
    return inputs, gradients, reference


def test_sketch_b_equals_the_published_program(toy):
    inputs, gradients, reference = toy
    input_sum, output_sum = sketch_b_sums(inputs, gradients)
    same_direction(symmetric(input_sum), reference["B_it0_hin"])
    same_direction(symmetric(output_sum), reference["B_it0_hout"])


def test_further_rounds_of_sketch_b_equal_the_published_program(toy):
    """Their half steps alternate: first the output side from the input side, then the other way round."""
    inputs, gradients, reference = toy
    input_factor = torch.from_numpy(reference["Bpow_it0_hin"]).double()
    output_factor = symmetric(sketch_b_sums(inputs, gradients, input_factor=input_factor)[1])
    same_direction(output_factor, reference["Bpow_it1_hout"])
    same_direction(
        symmetric(sketch_b_sums(inputs, gradients, output_factor=output_factor)[0]), reference["Bpow_it2_hin"]
    )


def test_sketch_a_equals_the_published_power_iteration(toy):
    inputs, gradients, reference = toy
    rows, gradient_rows = inputs.flatten(0, 1), gradients.flatten(0, 1)
    input_factor, output_factor = symmetric(covariance_sum(rows)), None
    same_direction(input_factor, reference["A_it0_hin"])
    for half_step in range(1, 6):
        sums = sketch_a_sums(rows, gradient_rows, input_factor=input_factor, output_factor=output_factor)
        if half_step % 2:
            output_factor = symmetric(sums[1])
        else:
            input_factor = symmetric(sums[0])
        same_direction(input_factor, reference[f"A_it{half_step}_hin"])
        if output_factor is not None:
            same_direction(output_factor, reference[f"A_it{half_step}_hout"])


def test_expected_sketch_is_the_exact_hessian_of_the_divergence():
    """Σ over labels of p(label) vec(Gw) vec(Gw)^T equals the Hessian of KL(original || perturbed) by autograd."""
    inputs, first, second = gaussian(3, 4, seed=1), gaussian(3, 4, seed=2), gaussian(5, 3, seed=3)

    def log_probabilities(weight):
        return F.log_softmax(torch.tanh(inputs @ weight.T) @ second.T, dim=-1)

    original = log_probabilities(first).detach()

    def divergence(flat):
        return (original.exp() * (original - log_probabilities(flat.view(3, 4)))).sum()

    hessian = torch.autograd.functional.hessian(divergence, first.flatten())
    fisher = torch.zeros(12, 12, dtype=torch.float64)
    for token in range(3):
        for label in range(5):
            outputs = (inputs @ first.T).requires_grad_()
            loss = -F.log_softmax(torch.tanh(outputs) @ second.T, dim=-1)[token, label]
            (gradients,) = torch.autograd.grad(loss, outputs)
            vector = (gradients.T @ inputs).flatten()
            fisher += original[token, label].exp() * torch.outer(vector, vector)
    torch.testing.assert_close(fisher, hessian, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [3, 40])
def test_sketch_b_is_the_square_of_every_sequence_gradient(tokens):
    """Both ways of computing it: the weight gradient itself (many tokens) and products with a middle matrix (few)."""
    inputs, gradients = gaussian(5, tokens, 12), gaussian(5, tokens, 10, seed=1)
    weight_gradients = gradients.mT @ inputs
    input_sum, output_sum = sketch_b_sums(inputs, gradients)
    torch.testing.assert_close(symmetric(input_sum), (weight_gradients.mT @ weight_gradients).sum(0))
    torch.testing.assert_close(symmetric(output_sum), (weight_gradients @ weight_gradients.mT).sum(0))


@pytest.mark.parametrize("tokens", [3, 40])
def test_sketch_b_with_the_other_side_is_the_partial_trace(tokens):
    inputs, gradients = gaussian(5, tokens, 12), gaussian(5, tokens, 10, seed=1)
    input_factor, output_factor = (symmetric(covariance_sum(gaussian(30, size, seed=size))) for size in (12, 10))
    weight_gradients = gradients.mT @ inputs
    sums = sketch_b_sums(inputs, gradients, input_factor=input_factor, output_factor=output_factor)
    expected_input = (weight_gradients.mT @ output_factor @ weight_gradients).sum(0)
    expected_output = (weight_gradients @ input_factor @ weight_gradients.mT).sum(0)
    torch.testing.assert_close(symmetric(sums[0]), expected_input)
    torch.testing.assert_close(symmetric(sums[1]), expected_output)


def test_sketch_b_of_single_tokens_is_sketch_a():
    inputs, gradients = gaussian(30, 1, 8), gaussian(30, 1, 6, seed=1)
    of_b = sketch_b_sums(inputs, gradients)
    of_a = sketch_a_sums(inputs[:, 0], gradients[:, 0])
    torch.testing.assert_close(symmetric(of_b[0]), symmetric(of_a[0]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(symmetric(of_b[1]), symmetric(of_a[1]), rtol=1e-12, atol=1e-12)


def test_padding_counts_for_nothing():
    inputs, gradients = gaussian(2, 5, 8), gaussian(2, 5, 6, seed=1)
    padded = [
        torch.cat([part, torch.zeros(2, 7, part.shape[-1], dtype=part.dtype)], dim=1) for part in (inputs, gradients)
    ]
    for ours, expected in zip(sketch_b_sums(*padded), sketch_b_sums(inputs, gradients), strict=True):
        torch.testing.assert_close(symmetric(ours), symmetric(expected), rtol=1e-12, atol=1e-12)


def test_rows_are_gathered_into_their_sequences():
    """As for an expert, which sees some tokens of some sequences in any order."""
    rows = gaussian(6, 3)
    gathered = by_sequence(rows, torch.tensor([2, 0, 2, 2, 0, 3]), 5)
    assert gathered.shape == (5, 3, 3)
    assert torch.equal(gathered[2], rows[[0, 2, 3]])
    assert torch.equal(gathered[0, :2], rows[[1, 4]])
    assert not gathered[0, 2:].any() and not gathered[1].any() and not gathered[4].any()


def test_sums_of_parts_add_up():
    inputs, gradients = gaussian(6, 4, 8), gaussian(6, 4, 5, seed=1)
    whole = sketch_b_sums(inputs, gradients)
    parts = sketch_b_sums(inputs[:2], gradients[:2])
    parts = sketch_b_sums(inputs[2:], gradients[2:], into=parts)
    for ours, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
