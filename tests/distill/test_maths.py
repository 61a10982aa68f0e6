"""Divergences, hidden-state losses and token weights: limits, identities and normalisation, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.distill.maths import weights as w
from burnish.distill.maths.hidden import hidden_cosine, hidden_mse, matching_layers, router_kl
from burnish.train.maths.divergence import (
    entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    top_k_kl,
    top_k_targets,
)

VOCAB = 11


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def student():
    return 2 * normal(3, 5, VOCAB)


@pytest.fixture
def teacher():
    return 2 * normal(3, 5, VOCAB, seed=1)


DIVERGENCES = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "jsd": jensen_shannon,
    "bucket": lambda s, t, temperature=1.0: top_k_kl(s, *top_k_targets(t, 4, temperature), "bucket", temperature),
}


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_divergence_is_positive_and_zero_only_from_the_teacher_itself(student, teacher, name, temperature):
    divergence = DIVERGENCES[name]
    assert (divergence(student, teacher, temperature=temperature) > 0).all()
    assert divergence(teacher, teacher, temperature=temperature).abs().max() < 1e-14


@pytest.mark.parametrize("name", ["forward", "jsd", "bucket"])
def test_a_token_that_the_teacher_masks_counts_nothing(student, teacher, name):
    """Its logit is -inf: the divergence is over all tokens still, and is what a very small logit gives."""
    masked, small = teacher.clone(), teacher.clone()
    masked[..., 3], small[..., 3] = -torch.inf, -700.0
    student.requires_grad_()
    value = DIVERGENCES[name](student, masked)
    torch.testing.assert_close(value, DIVERGENCES[name](student, small), rtol=1e-12, atol=1e-12)
    assert torch.autograd.grad(value.sum(), student)[0].isfinite().all()
    torch.testing.assert_close(entropy(masked), entropy(small), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_its_gradient_at_the_teacher_is_zero(teacher, name):
    """Why a divergence of a model from itself can score nothing."""
    student = teacher.clone().requires_grad_()
    DIVERGENCES[name](student, teacher).sum().backward()
    assert student.grad.abs().max() < 1e-14


def test_forward_kl_is_cross_entropy_less_the_teachers_entropy(student, teacher):
    cross = -(teacher.softmax(-1) * student.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(forward_kl(student, teacher), cross - entropy(teacher), rtol=1e-12, atol=1e-12)


def test_reverse_is_forward_with_the_roles_exchanged(student, teacher):
    torch.testing.assert_close(reverse_kl(student, teacher), forward_kl(teacher, student), rtol=0, atol=0)


def test_jensen_shannon_of_one_half_is_symmetric_and_at_most_log_two(student, teacher):
    value = jensen_shannon(20 * student, 20 * teacher)
    torch.testing.assert_close(value, jensen_shannon(20 * teacher, 20 * student), rtol=1e-12, atol=1e-14)
    assert value.max() <= math.log(2) + 1e-12


@pytest.mark.parametrize(("beta", "limit", "divisor"), [(1e-7, forward_kl, 1e-7), (1 - 1e-7, reverse_kl, 1e-7)])
def test_jensen_shannon_tends_to_both_kls(student, teacher, beta, limit, divisor):
    torch.testing.assert_close(
        jensen_shannon(student, teacher, beta) / divisor, limit(student, teacher), rtol=1e-4, atol=1e-6
    )


def test_gradients_keep_their_size_at_high_temperature(student, teacher):
    """τ² KL tends to the squared difference of centred logits over 2 V."""
    value = forward_kl(student, teacher, temperature=1e4)
    difference = (student - teacher) - (student - teacher).mean(-1, keepdim=True)
    torch.testing.assert_close(value, difference.square().sum(-1) / (2 * VOCAB), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "zero"])
def test_all_of_the_vocabulary_is_the_full_kl(student, teacher, tail):
    value = top_k_kl(student, *top_k_targets(teacher, VOCAB, 2.0), tail, 2.0)
    torch.testing.assert_close(value, forward_kl(student, teacher, 2.0), rtol=1e-12, atol=1e-12)


@settings(max_examples=25)
@given(st.integers(1, VOCAB), st.integers(0, 10**6))
def test_the_bucket_is_at_most_the_full_kl(k, seed):
    student, teacher = 3 * normal(4, VOCAB, seed=seed), 3 * normal(4, VOCAB, seed=seed + 1)
    value = top_k_kl(student, *top_k_targets(teacher, k))
    assert (value <= forward_kl(student, teacher) + 1e-12).all()
    assert (value >= -1e-12).all()


def test_the_zero_tail_can_be_negative(teacher):
    student = teacher + 0.0
    student[..., :] = teacher.scatter_add(-1, teacher.argmax(-1, keepdim=True), torch.full((3, 5, 1), 2.0).double())
    assert (top_k_kl(student, *top_k_targets(teacher, 1), "zero") < 0).all()


def test_a_tail_without_mass_stays_finite():
    teacher = torch.tensor([[200.0, 0.0, 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    value = top_k_kl(student, *top_k_targets(teacher, 1))
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(3), rel=1e-6)
    assert torch.isfinite(student.grad).all()


def test_hidden_mse_does_not_see_a_common_scale():
    student, teacher = normal(4, 6), normal(4, 6, seed=1)
    torch.testing.assert_close(hidden_mse(7 * student, 7 * teacher), hidden_mse(student, teacher), rtol=1e-12, atol=0)


def test_hidden_mse_of_nothing_is_one():
    assert hidden_mse(torch.zeros(4, 6).double(), normal(4, 6)).tolist() == pytest.approx([1.0] * 4, rel=1e-12)


def test_hidden_losses_vanish_for_the_right_projection():
    student, projection = normal(4, 6), normal(8, 6, seed=2)
    teacher = student @ projection.T
    assert hidden_mse(student, teacher, projection).max() < 1e-25
    assert hidden_cosine(student, teacher, projection).abs().max() < 1e-12


def test_router_kl_does_not_see_a_shift_of_the_logits():
    student, teacher = normal(5, 4), normal(5, 4, seed=1)
    torch.testing.assert_close(router_kl(student + 3, teacher), router_kl(student, teacher), rtol=1e-12, atol=1e-12)


MASK = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 1, 0, 0]], dtype=torch.bool)


def test_turns_are_the_runs_of_counting_tokens():
    assert w.turns(MASK).tolist() == [[0, 1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 1, 2, 2, 2]]


def test_every_turn_counts_the_same():
    weights = w.segment_mean(MASK, w.turns(MASK))
    third = 1 / 3
    assert weights.tolist() == [
        pytest.approx([0, 0.5, 0.5, 0, third, third, third, 0]),
        pytest.approx([0.5, 0.5, 0, 0, 0, 1, 0, 0]),
    ]


def test_sequence_mean_of_equal_lengths_is_token_mean():
    mask = torch.ones(3, 4, dtype=torch.bool)
    assert torch.equal(w.segment_mean(mask, torch.zeros(3, 4, dtype=torch.long)) * 4, w.token_mean(mask))


def test_gamma_zero_is_token_mean():
    values = normal(2, 8).abs()
    plain = w.token_mean(MASK).double()
    for weights in (w.certain(MASK, values, VOCAB, 0.0), w.uncertain(MASK, values, 0.0), w.focus(MASK, values, 0.0)):
        assert torch.equal(weights, plain)


def test_rewards_of_one_change_nothing_and_of_zero_silence():
    weights = w.token_mean(MASK)
    rewards = torch.tensor([[1.0], [0.0]]).expand(2, 8)
    kept = w.outcome(weights, rewards)
    assert torch.equal(kept[0], weights[0]) and not kept[1].any()


def test_nothing_counts_after_the_first_error_of_a_segment():
    mask = torch.ones(1, 8, dtype=torch.bool)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    failed = torch.tensor([[0, 0, 1, 0, 0, 1, 0, 0]], dtype=torch.bool)
    assert w.until_first_error(mask, failed, segments).int().tolist() == [[1, 1, 0, 0, 1, 0, 0, 0]]


def test_without_errors_the_mask_stays():
    segments = torch.zeros(2, 8, dtype=torch.long)
    assert torch.equal(w.until_first_error(MASK, torch.zeros_like(MASK), segments), MASK)


def weights_of(name, mask, segments, student, teacher):
    divergence = forward_kl(student, teacher)
    match name:
        case "token":
            return w.token_mean(mask).double()
        case "sequence":
            return w.segment_mean(mask, segments).double()
        case "certain":
            return w.certain(mask, entropy(teacher), VOCAB, 1.5)
        case "uncertain":
            return w.uncertain(mask, entropy(teacher), 0.7)
        case _:
            return w.focus(mask, divergence, 0.5)


WEIGHTS = ["token", "sequence", "certain", "uncertain", "focus"]


def mean_gradient(name, batches):
    """Gradient of Σ w l / Σ w over all batches, with respect to a bias on the student's logits."""
    bias = torch.zeros(VOCAB, dtype=torch.float64, requires_grad=True)
    total, weight = 0.0, 0.0
    for mask, segments, student, teacher in batches:
        logits = student + bias
        weights = weights_of(name, mask, segments, logits, teacher)
        part, share = w.weighted_sum(forward_kl(logits, teacher), weights)
        total, weight = total + part, weight + share
    (total / weight).backward()
    return bias.grad


@pytest.mark.parametrize("name", WEIGHTS)
def test_cutting_a_step_into_micro_batches_does_not_change_its_gradient(name):
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(3)) < 0.6
    segments = torch.zeros(6, 9, dtype=torch.long)
    student, teacher = normal(6, 9, VOCAB), normal(6, 9, VOCAB, seed=1)
    every = (mask, segments, student, teacher)
    whole = mean_gradient(name, [every])
    parts = mean_gradient(name, [tuple(t[a:b] for t in every) for a, b in ((0, 1), (1, 4), (4, 6))])
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-12)  # the weights are float32


@pytest.mark.parametrize("name", WEIGHTS)
def test_packing_sequences_into_one_row_does_not_change_the_gradient(name):
    mask = torch.rand(2, 6, generator=torch.Generator().manual_seed(4)) < 0.7
    student, teacher = normal(2, 6, VOCAB), normal(2, 6, VOCAB, seed=1)
    apart = mean_gradient(name, [(mask, torch.zeros(2, 6, dtype=torch.long), student, teacher)])
    packed = mean_gradient(
        name,
        [
            (
                mask.view(1, 12),
                torch.arange(2).repeat_interleave(6)[None],
                student.view(1, 12, VOCAB),
                teacher.view(1, 12, VOCAB),
            )
        ],
    )
    torch.testing.assert_close(packed, apart, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTS)
def test_padding_does_not_change_the_gradient_and_gets_none(name):
    mask = torch.ones(2, 5, dtype=torch.bool)
    student, teacher = normal(2, 5, VOCAB), normal(2, 5, VOCAB, seed=1)
    segments = torch.zeros(2, 5, dtype=torch.long)
    bare = mean_gradient(name, [(mask, segments, student, teacher)])
    pad = torch.nn.functional.pad
    longer = (
        pad(mask, (0, 3)),
        pad(segments, (0, 3)),
        pad(student, (0, 0, 0, 3), value=7.0),
        pad(teacher, (0, 0, 0, 3), value=-2.0),
    )
    torch.testing.assert_close(mean_gradient(name, [longer]), bare, rtol=1e-12, atol=1e-15)


def test_a_token_of_weight_zero_cannot_spoil_the_sum():
    losses = torch.tensor([[1.0, float("nan")]])
    total, weight = w.weighted_sum(losses, torch.tensor([[1.0, 0.0]]))
    assert (total.item(), weight.item()) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("student", "teacher", "layers"), [(3, 3, [0, 1, 2]), (2, 4, [1, 3]), (1, 4, [3]), (4, 2, [0, 0, 1, 1])]
)
def test_layers_are_matched_by_depth(student, teacher, layers):
    assert matching_layers(student, teacher) == layers
