"""Sums over steps give what all activations would: probes, subspace, direction; and what chance reaches."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from burnish.steer.maths import probe as maths

HEADS, WIDTH, HIDDEN, STEPS = 3, 4, 10, 60


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, maths.HeadSums]:
    """Outputs of heads, their weights, labels, and the sums of the outputs in three pieces."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(STEPS, HEADS, WIDTH, generator=generator, dtype=torch.float64) + 0.3
    weights = torch.randn(HEADS, HIDDEN, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.where(torch.rand(STEPS, generator=generator) < 0.3, -1.0, 1.0).double()
    outputs[:, 1] += labels[:, None] * torch.tensor([0.8, 0.0, -0.5, 0.0])  # head 1 knows
    every = maths.shifted(labels, torch.tensor([7, 20]))
    sums = maths.HeadSums.empty(HEADS, WIDTH, 3)
    for piece in torch.arange(STEPS).split(23):
        sums.add(outputs[piece], every[:, piece])
    return outputs, weights, every, sums


def test_contributions_add_up_to_the_projection(layer: tuple[torch.Tensor, ...]):
    outputs, weights, *_ = layer
    projection = weights.transpose(0, 1).reshape(HIDDEN, HEADS * WIDTH)
    assert torch.equal(maths.by_head(projection, HEADS), weights)
    summed = maths.contributions(outputs, weights).sum(1)
    torch.testing.assert_close(summed, outputs.flatten(1) @ projection.T)


def test_probes_from_sums_are_scikit_learns_ridge_on_activations(layer):
    outputs, weights, every, sums = layer
    found = maths.probes(sums, weights)
    activations = maths.contributions(outputs, weights)
    for head in range(HEADS):
        a = activations[:, head].numpy()
        penalty = maths.RIDGE * np.square(a).sum() / WIDTH
        for number, labels in enumerate(every.numpy()):
            ridge = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky", tol=1e-12).fit(a, labels)
            np.testing.assert_allclose(found[number, head], ridge.coef_, rtol=1e-6, atol=1e-9)


def test_directions_are_the_difference_of_means_in_the_leading_subspace(layer):
    outputs, weights, every, sums = layer
    activations = maths.contributions(outputs, weights)
    checking = every[0] < 0
    assert sums.num_checking == int(checking.sum()) > 0
    difference = activations[checking].mean(0) - activations[~checking].mean(0)
    whole = maths.directions(sums, weights, None)
    torch.testing.assert_close(whole, torch.nn.functional.normalize(difference, dim=1))
    centred = (activations - activations.mean(0)).reshape(-1, HIDDEN).numpy()
    leading = torch.from_numpy(np.linalg.svd(centred, full_matrices=False)[2][:4])
    cut = maths.directions(sums, weights, maths.subspace(sums, weights, 4))
    torch.testing.assert_close(cut, torch.nn.functional.normalize(difference @ leading.T @ leading, dim=1))
    torch.testing.assert_close(cut.norm(dim=1), torch.ones(HEADS, dtype=torch.float64))


def test_a_head_that_makes_no_difference_has_no_direction(layer):
    *_, sums = layer
    sums.labelled[0] = sums.first  # as if all labels were those of the mean
    sums.labelled[0] *= 1 - 2 * sums.num_checking / sums.num
    assert not maths.directions(sums, torch.zeros(HEADS, HIDDEN, WIDTH), None).any()


def test_calls_are_counted_as_the_sign_of_the_probe_on_contributions(layer):
    outputs, weights, every, sums = layer
    found = maths.probes(sums, weights)
    inner = torch.einsum("hcd,khc->khd", weights, found)
    score = torch.einsum("nhc,khc->khn", maths.contributions(outputs, weights), found)
    expected = ((score >= 0) == (every[:, None, :] > 0)).sum(2)
    assert torch.equal(maths.right(outputs, every, inner), expected)
    assert expected[0, 1] > expected[0, [0, 2]].max()


def test_shifted_labels_keep_how_long_a_check_goes_on():
    labels = torch.tensor([1.0, 1, -1, -1, -1, 1, -1, 1])
    first, *others = maths.shifted(labels, torch.tensor([1, 5])).tolist()
    assert first == labels.tolist()
    for shift, other in zip((1, 5), others, strict=True):
        assert other == [*labels.tolist()[shift:], *labels.tolist()[:shift]]


def test_the_level_of_chance_is_that_of_the_best_head():
    accuracies = torch.tensor([[0.5, 0.7], [0.6, 0.4], [0.8, 0.1]])
    assert maths.chance_level(accuracies, 0.5) == pytest.approx(0.7)
    assert maths.chance_level(accuracies, 1.0) == pytest.approx(0.8)
