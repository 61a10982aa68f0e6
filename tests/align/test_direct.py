"""The DPO margin."""

import torch

from burnish.align.maths.direct import direct_margin, divergence_score, sequence_log_prob


def test_alpha_divergence_near_one_is_the_reverse_kl():
    ratio = torch.linspace(-5, 5, 21, dtype=torch.float64)
    torch.testing.assert_close(divergence_score(ratio, "alpha_divergence", 1 + 1e-5), ratio, rtol=1e-4, atol=1e-6)


def test_alpha_divergence_zero_is_the_forward_kl_up_to_a_constant():
    ratio = torch.linspace(-5, 5, 21, dtype=torch.float64)
    difference = divergence_score(ratio, "alpha_divergence", 0.0) - divergence_score(ratio, "forward_kl")
    torch.testing.assert_close(difference, torch.ones_like(ratio))


def test_scores_are_finite_for_extreme_ratios():
    ratio = torch.tensor([-1e4, 1e4])
    for kind in ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"):
        assert torch.isfinite(divergence_score(ratio, kind, 2.0)).all()


def test_tail_weight_scales_only_what_is_longer_than_the_shorter_answer():
    per_token = -torch.ones(2, 5)
    mask = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 0, 0]])
    assert sequence_log_prob(per_token * mask, mask, 0.5).tolist() == [-3.0, -2.0]


def test_margin_is_zero_when_policy_and_reference_agree():
    log_prob = torch.tensor([-7.0, -3.0, -2.0, -9.0], dtype=torch.float64)
    assert direct_margin(log_prob, log_prob[:2], log_prob[2:], beta=0.3).tolist() == [0.0, 0.0]
