"""Advantages, losses of a policy and their reduction: identities, limits and TRL's own numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from burnish.align.maths.advantage import (
    ESTIMATORS,
    centred,
    gae,
    leave_one_out,
    mixed,
    on_tokens,
    return_to_go,
    standardised,
    stepwise,
)
from burnish.align.maths.policy_loss import (
    cispo,
    clipped,
    divergence,
    iced,
    importance,
    is_clipped,
    sequence_log_ratio,
    truncated,
)
from burnish.align.maths.reduction import Normaliser, denominator, share


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


# -- advantages ----------------------------------------------------------------------------------------------------


def test_advantages_of_a_group_by_hand() -> None:
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    assert centred(reward).tolist() == [[0.5, -0.5, -0.5, 0.5]]
    torch.testing.assert_close(leave_one_out(reward), reward - (2 - reward) / 3)
    torch.testing.assert_close(standardised(reward, eps=0.0), (reward - 0.5) / reward.std())


@pytest.mark.parametrize("name", ESTIMATORS)
def test_advantages_of_a_group_sum_to_zero(name: str) -> None:
    assert ESTIMATORS[name](drawn(5, 8)).sum(dim=1).abs().max() < 1e-12


def test_an_answer_that_could_not_be_judged_has_no_part_in_its_group() -> None:
    reward = torch.tensor([[1.0, torch.nan, 0.0, 0.0]])
    known = torch.tensor([[1.0, 0.0, 0.0]])
    for estimate in ESTIMATORS.values():
        found = estimate(reward)
        assert found[0, 1] == 0
        torch.testing.assert_close(found[:, [0, 2, 3]], estimate(known))


def test_stepwise_is_the_episodes_own_advantage_when_the_reward_is_last_and_turns_are_equal() -> None:
    last = drawn(6)
    reward = torch.zeros(6, 3, dtype=torch.float64)
    reward[:, 2] = last
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    found = stepwise(reward, torch.full((6,), 3), group)
    torch.testing.assert_close(found, centred(last.reshape(2, 3)).reshape(6, 1).expand(6, 3))


def test_stepwise_differs_from_the_episodes_own_when_turns_are_unequal() -> None:
    reward = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    found = stepwise(reward, torch.tensor([2, 3, 1]), torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(found[:, 0], torch.tensor([1 / 3, -2 / 3, 1 / 3], dtype=torch.float64))
    torch.testing.assert_close(found[:, 1], torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64))
    # one episode alone reaches the third turn: the group's mean return stands in
    torch.testing.assert_close(found[:, 2], torch.tensor([0.0, -2 / 3, 0.0], dtype=torch.float64))


def test_return_to_go_discounts_turns_and_ends_where_the_episode_does() -> None:
    found = return_to_go(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([2]), gamma=0.5)
    assert found.tolist() == [[2.0, 2.0, 0.0]]


def test_tokens_have_the_advantage_of_their_turn_and_those_of_no_turn_none() -> None:
    advantage = mixed(torch.tensor([1.0]), torch.tensor([[0.5, -0.5]]), weight=2.0)
    assert on_tokens(advantage, torch.tensor([[-1, 0, 0, -1, 1]])).tolist() == [[0.0, 2.0, 2.0, 0.0, 0.0]]


def test_gae_with_lambda_one_is_the_return_less_the_value() -> None:
    reward, value = drawn(2, 7), drawn(2, 7) * 0.5
    advantage, returns = gae(reward, value, torch.ones(2, 7, dtype=torch.bool), gamma=0.9, lam=1.0)
    to_go = return_to_go(reward, torch.tensor([7, 7]), gamma=0.9)
    torch.testing.assert_close(advantage, to_go - value)
    torch.testing.assert_close(returns, to_go)


def test_gae_with_lambda_zero_is_the_one_step_error() -> None:
    reward, value = drawn(2, 7), drawn(2, 7) * 0.5
    advantage, _ = gae(reward, value, torch.ones(2, 7, dtype=torch.bool), gamma=0.9, lam=0.0)
    following = torch.cat([value[:, 1:], torch.zeros(2, 1, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(advantage, reward + 0.9 * following - value)


def test_gae_steps_over_what_the_environment_said() -> None:
    reward, value = drawn(2, 5), drawn(2, 5) * 0.5
    wide_reward, wide_value = drawn(2, 8) * 100, drawn(2, 8) * 100
    mask = torch.tensor([True, True, False, False, True, False, True, True]).expand(2, 8)
    wide_reward[mask], wide_value[mask] = reward.flatten(), value.flatten()
    narrow, _ = gae(reward, value, torch.ones(2, 5, dtype=torch.bool), 0.9, 0.8)
    wide, returns = gae(wide_reward, wide_value, mask, 0.9, 0.8)
    torch.testing.assert_close(wide[mask], narrow.flatten())
    assert not wide[~mask].any() and not returns[~mask].any()


# -- losses --------------------------------------------------------------------------------------------------------


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), of, retain_graph=True)[0]


def test_at_ratio_one_every_loss_has_the_policy_gradient() -> None:
    log_prob, advantage, mask = drawn(3, 4).requires_grad_(), drawn(3, 4) * 2, torch.ones(3, 4, dtype=torch.float64)
    ratio = log_prob - log_prob.detach()
    for loss in (
        clipped(ratio, advantage),
        clipped(ratio, advantage, dual=3.0),
        importance(ratio, advantage),
        cispo(log_prob, ratio, advantage),
        clipped(sequence_log_ratio(ratio, mask), advantage),
    ):
        torch.testing.assert_close(gradient(loss, log_prob), -advantage)


def test_beyond_the_clip_there_is_no_gradient_where_it_would_go_on() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5], dtype=torch.float64).log().requires_grad_()
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    found = gradient(clipped(ratio, advantage, 0.2, 0.28), ratio)
    torch.testing.assert_close(found, torch.tensor([-0.5, 0.0, 0.0, 1.5], dtype=torch.float64))
    assert is_clipped(ratio, advantage, 0.2, 0.28).tolist() == [False, True, True, False]


def test_the_dual_bound_caps_what_a_bad_token_costs() -> None:
    ratio = torch.tensor([10.0, 10.0], dtype=torch.float64).log()
    advantage = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert clipped(ratio, advantage, dual=3.0).tolist() == [3.0, -1.2]


def test_cispo_keeps_the_gradient_of_a_token_that_is_far_off() -> None:
    log_prob = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    found = gradient(cispo(log_prob, torch.tensor([5.0], dtype=torch.float64), torch.ones(1).double()), log_prob)
    assert found.tolist() == [-1.2]


def test_gspos_gradient_by_tokens_is_that_of_the_sequences_ratio() -> None:
    log_prob, old = drawn(2, 6).mul(0.1).requires_grad_(), drawn(2, 6) * 0.1 + 0.02
    mask = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2], dtype=torch.float64)
    advantage = torch.tensor([[1.0], [-2.0]], dtype=torch.float64).expand(2, 6)
    by_token = share(importance(sequence_log_ratio(log_prob - old, mask), advantage), mask, 2.0, "sequence")
    whole = ((log_prob - old) * mask).sum(1) / mask.sum(1)
    by_row = (-whole.exp() * advantage[:, 0]).mean()
    torch.testing.assert_close(by_token, by_row)
    torch.testing.assert_close(gradient(by_token, log_prob), gradient(by_row, log_prob))


def test_correcting_for_the_engine_changes_the_gradient_and_not_only_a_number() -> None:
    log_prob, engine = drawn(4, 5).requires_grad_(), drawn(4, 5) + drawn(4, 5) * 0.3
    loss = clipped(log_prob - log_prob.detach(), drawn(4, 5) + 1)
    plain = gradient(loss, log_prob)
    factor = truncated(log_prob - engine, 0.0, 2.0)
    torch.testing.assert_close(gradient(loss * factor, log_prob), plain * factor)
    assert not torch.allclose(plain * factor, plain)
    assert not factor.requires_grad


def test_the_ice_mask_drops_tokens_on_either_side() -> None:
    mismatch = torch.tensor([0.4, 0.5, 1.0, 2.0, 2.1], dtype=torch.float64).log()
    assert iced(mismatch, 2.0).tolist() == [0, 1, 1, 1, 0]


def test_estimators_of_the_divergence_agree_near_each_other_and_by_expectation() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    reference = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64).log()
    exact = float((policy.exp() * (policy - reference)).sum())
    for estimator in ("k1", "k3"):
        assert float((policy.exp() * divergence(policy, reference, estimator)).sum()) == pytest.approx(exact)
    near = divergence(policy, policy + 1e-3, "k2")
    torch.testing.assert_close(near, divergence(policy, policy + 1e-3, "k3"), rtol=1e-3, atol=0)
    assert (divergence(policy, reference, "k3") >= 0).all()
    assert divergence(policy, policy + 50, "k3").isfinite().all()


def test_the_gradient_of_k2_is_the_divergences_own_in_expectation() -> None:
    logits, reference = drawn(5).requires_grad_(), drawn(5).flip(0).log_softmax(-1)
    policy = logits.log_softmax(-1)
    exact = gradient(policy.exp() * (policy - reference), logits)
    sampled = gradient(policy.detach().exp() * divergence(logits.log_softmax(-1), reference, "k2"), logits)
    torch.testing.assert_close(sampled, exact)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="k1, k2 and k3"):
        divergence(drawn(2), drawn(2), "k4")


# -- reduction -----------------------------------------------------------------------------------------------------

LENGTHS = (900, 100, 40, 7)


@pytest.mark.parametrize("normaliser", ["token", "sequence", "constant"])
@pytest.mark.parametrize("cuts", [[4], [1, 1, 1, 1], [2, 2], [3, 1]])
def test_a_step_is_the_same_however_it_is_cut(normaliser: Normaliser, cuts: list[int]) -> None:
    weight = drawn(4, 900).requires_grad_()
    mask = (torch.arange(900) < torch.tensor(LENGTHS)[:, None]).double()
    whole = share(weight.square(), mask, denominator(mask, normaliser, 1000), normaliser)
    parts = list(zip(weight.split(cuts), mask.split(cuts), strict=True))
    total = torch.stack([denominator(part, normaliser, 1000) for _, part in parts]).sum()
    cut = torch.stack([share(part.square(), where, total, normaliser) for part, where in parts]).sum()
    torch.testing.assert_close(cut, whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(cut, weight), gradient(whole, weight), rtol=1e-12, atol=0)


def test_averages_of_averages_would_not_be_the_same() -> None:
    mask = (torch.arange(900) < torch.tensor(LENGTHS)[:, None]).double()
    loss = drawn(4, 900).square()
    whole = share(loss, mask, denominator(mask, "token"), "token")
    averaged = torch.stack([(loss[row] * mask[row]).sum() / mask[row].sum() for row in range(4)]).mean()
    assert not torch.allclose(whole, averaged, rtol=1e-2)


def test_processes_that_average_gradients_are_told_how_many_they_are() -> None:
    loss, mask = drawn(4, 9), torch.ones(4, 9, dtype=torch.float64)
    total = denominator(mask, "token")
    whole = share(loss, mask, total, "token")
    halves = [share(loss[rows], mask[rows], total, "token", processes=2) for rows in ([0, 1], [2, 3])]
    torch.testing.assert_close(torch.stack(halves).mean(), whole)


def test_the_constant_normaliser_needs_a_length() -> None:
    with pytest.raises(ValueError, match="longest"):
        denominator(torch.ones(1, 2), "constant")
