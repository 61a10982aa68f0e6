"""Positions, masks, the loss of a view and weights of tokens: limits, gradients and published programs' numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.train.maths.masks import document_numbers, places_within, visible
from burnish.train.maths.positions import cyclic_positions, skip_positions
from burnish.train.maths.token_weights import Mode, Weighting, context_divergence, token_weights
from burnish.train.maths.view_distillation import view_distillation_loss

PUBLISHED = json.loads(
    (Path(__file__).parents[1] / "reference" / "train" / "token_weights.json").read_text(encoding="utf-8")
)
MODES: tuple[Mode, ...] = ("kl", "lsd", "js", "longce", "dense", "sparse", "ppmi", "npmi")


def normal(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- positions ---------------------------------------------------------------------------------------------------------


def test_a_skip_leaves_a_gap_before_its_token():
    assert skip_positions(6, 2, 10).tolist() == [0, 1, 12, 13, 14, 15]
    assert skip_positions(3, 0, 5).tolist() == [5, 6, 7]
    assert skip_positions(3, 2, 0).tolist() == [0, 1, 2]


def test_cyclic_indices_are_turned():
    assert cyclic_positions(5, 2).tolist() == [2, 3, 4, 0, 1]
    assert cyclic_positions(4, 0).tolist() == [0, 1, 2, 3]


def test_a_score_across_the_gap_is_that_of_a_longer_distance():
    """q^T R(r_j - r_i) k of a query behind the gap and a key before it has the distance i + y - j."""
    query, key = normal(2), normal(2, seed=1)

    def turned(vector, angle):
        cos, sin = math.cos(angle), math.sin(angle)
        return torch.stack([cos * vector[0] - sin * vector[1], sin * vector[0] + cos * vector[1]])

    indices = skip_positions(8, 4, 30).tolist()
    found = turned(query, 0.1 * indices[6]) @ turned(key, 0.1 * indices[1])
    expected = query @ turned(key, 0.1 * (1 - 6 - 30))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# -- masks -------------------------------------------------------------------------------------------------------------


def test_documents_of_a_row_are_told_apart_by_positions():
    documents = document_numbers(torch.tensor([[0, 1, 2, 0, 1, 0]]))
    assert documents.tolist() == [[0, 0, 0, 1, 1, 2]]
    assert places_within(documents).tolist() == [[0, 1, 2, 0, 1, 0]]


def test_a_token_sees_its_window_and_the_sinks_of_its_document_only():
    documents = torch.tensor([[0] * 5 + [1] * 4])
    seen = visible(documents, window=2, sinks=1)[0]
    assert [row.nonzero()[:, 0].tolist() for row in seen] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 2, 3],
        [0, 3, 4],
        [5],
        [5, 6],
        [5, 6, 7],
        [5, 7, 8],
    ]


@given(st.integers(1, 9), st.integers(0, 12), st.integers(0, 4))
def test_a_window_as_long_as_the_text_is_none(length, beyond, sinks):
    documents = torch.zeros(1, length, dtype=torch.long)
    assert (visible(documents, length + beyond, sinks) == torch.ones(length, length).tril().bool()).all()
    assert (visible(documents) == visible(documents, length)).all()


# -- the loss of a view ------------------------------------------------------------------------------------------------


def test_the_loss_of_a_view_is_the_mean_reverse_divergence_behind_the_change():
    student, teacher = normal(2, 7, 11), normal(2, 7, 11, seed=1)
    counts = torch.arange(7).expand(2, 7) >= torch.tensor([[3], [5]])
    p, q = student.softmax(-1), teacher.softmax(-1)
    expected = (p * (p / q).log()).sum(-1)[counts].mean()
    for at_once in (None, 11, 33):
        torch.testing.assert_close(
            view_distillation_loss(student, teacher, counts, at_once), expected, rtol=1e-12, atol=0
        )


def test_the_gradient_of_a_view_is_its_own_and_not_the_teachers():
    student, teacher = normal(9, 11).requires_grad_(), normal(9, 11, seed=1).requires_grad_()
    counts = torch.arange(9) >= 4
    whole, stretched = (
        torch.autograd.grad(
            view_distillation_loss(student, teacher, counts, at_once), [student, teacher], allow_unused=True
        )
        for at_once in (None, 22)
    )
    assert whole[1] is None and stretched[1] is None
    torch.testing.assert_close(whole[0], stretched[0], rtol=1e-12, atol=1e-15)
    assert not whole[0][:4].any() and whole[0][4:].any(dim=1).all()


def test_two_equal_views_have_no_loss_and_what_does_not_count_none_either():
    logits = normal(5, 11)
    assert view_distillation_loss(logits, logits, torch.ones(5, dtype=torch.bool)).abs() < 1e-15
    assert view_distillation_loss(logits, logits + 1e3, torch.zeros(5, dtype=torch.bool)) == 0
    broken = logits.clone()
    broken[0] = math.nan
    assert view_distillation_loss(broken, logits, torch.arange(5) > 0).abs() < 1e-15


# -- weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, floor", [("dense", 0.75), ("sparse", 0.0), ("ppmi", 0.0), ("npmi", 0.0)])
def test_the_variants_of_short_and_long_losses_are_the_published_ones(mode, floor):
    how = Weighting(mode, prefix="formula", floor=floor, cap=math.inf, keep=0.25, shift=1.5)
    for row in range(2):
        long, short, expected = (
            torch.tensor(PUBLISHED[name][row], dtype=torch.float64) for name in ("long", "short", mode)
        )
        torch.testing.assert_close(token_weights(how, long, short), expected, rtol=1e-12, atol=1e-15)


def test_longce_is_the_published_one():
    long, short, expected = (
        torch.tensor(PUBLISHED["longce"][name], dtype=torch.float64) for name in ("long", "short", "weights")
    )
    assert (expected == 5).any() and (expected < 1).any()
    # The program keeps its weights in float32.
    torch.testing.assert_close(token_weights(Weighting("longce"), long, short), expected, rtol=1e-6, atol=0)


def losses(seed=0, tokens=30):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.rand(2, tokens, generator=generator, dtype=torch.float64)).unbind()


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"longce"}))
@pytest.mark.parametrize("prefix", ["one", "formula"])
def test_the_mean_weight_of_every_document_is_one(mode, prefix):
    long, short = losses()
    documents = torch.arange(30) // 10
    how = Weighting(mode, prefix=prefix, floor=0.3)
    weights = token_weights(how, long, short, (long - short).abs(), documents, torch.arange(30) % 10 < 4)
    torch.testing.assert_close(weights.view(3, 10).mean(1), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"longce"}))
def test_documents_weigh_their_tokens_alone(mode):
    long, short = losses(1)
    documents = torch.arange(30) // 15
    how = Weighting(mode)
    together = token_weights(how, long, short, (long - short).abs(), documents)
    first = token_weights(how, long[:15], short[:15], (long - short).abs()[:15])
    assert torch.equal(together[:15], first)


@pytest.mark.parametrize("mode", MODES)
def test_where_the_context_changes_nothing_every_weight_is_one(mode):
    long, _ = losses(2)
    for how in (Weighting(mode), Weighting(mode, gate=True)):
        assert torch.equal(token_weights(how, long, long, torch.zeros(30, dtype=torch.float64)), torch.ones_like(long))


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"longce"}))
def test_a_floor_of_one_is_the_plain_loss(mode):
    long, short = losses(3)
    assert torch.equal(token_weights(Weighting(mode, floor=1.0), long, short, long), torch.ones_like(long))


def test_a_prefix_weighs_one_or_the_floor():
    long, short = losses(4)
    prefix, signals = torch.arange(30) < 8, torch.where(torch.arange(30) < 8, 0.0, (long - short).abs())
    one = token_weights(Weighting("kl"), long, short, signals, in_prefix=prefix)
    formula = token_weights(Weighting("kl", prefix="formula"), long, short, signals, in_prefix=prefix)
    assert (one[:8] == 1).all() and (formula[:8] == 0.5).all()


def test_the_gate_leaves_a_signal_to_those_whose_label_gains():
    long, short = losses(5)
    weights = token_weights(Weighting("kl", gate=True, floor=0.0), long, short, torch.full_like(long, 2.0))
    assert ((weights > 0) == (short > long)).all()


def test_weights_have_no_gradient():
    long, short = (part.requires_grad_() for part in losses(6))
    for mode in MODES:
        assert not token_weights(Weighting(mode), long, short, (long - short).abs()).requires_grad


def test_a_capped_signal_counts_no_more():
    long, short = losses(7)
    signals = torch.full_like(long, 5.0)
    signals[0] = 1e6
    assert torch.equal(token_weights(Weighting("kl"), long, short, signals), torch.ones_like(long))


def test_divergences_of_contexts_are_those_of_their_names():
    long, short = normal(6, 11), normal(6, 11, seed=1)
    p, q = long.softmax(-1), short.softmax(-1)
    torch.testing.assert_close(context_divergence(long, short, "kl"), (p * (p / q).log()).sum(-1), rtol=1e-12, atol=0)
    apart = torch.tensor([[60.0, 0.0], [0.0, 60.0]], dtype=torch.float64)
    assert (context_divergence(long, short, "js") <= math.log(2)).all()
    torch.testing.assert_close(
        context_divergence(apart, apart.flip(0), "js"), torch.full((2,), math.log(2), dtype=torch.float64)
    )
    assert context_divergence(long, long, "kl").abs().max() < 1e-14
