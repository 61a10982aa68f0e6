import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.evaluate.maths.divergence import cross_entropy, kl_divergence, normalise, top1_agreement


def logits(seed: int, tokens: int = 5, vocab: int = 200, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(tokens, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_equals_scipys_relative_entropy():
    p, q = normalise(logits(0)), normalise(logits(1))
    expected = scipy.special.rel_entr(p.exp().numpy(), q.exp().numpy()).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), expected, rtol=1e-12)


def test_kl_of_a_distribution_from_itself_is_exactly_zero():
    p = normalise(logits(0).float())
    assert kl_divergence(p, p).tolist() == [0.0] * 5


def test_kl_of_two_outcomes_has_its_closed_form():
    p, q = torch.tensor([[0.25, 0.75]], dtype=torch.float64), torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    expected = 0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    assert kl_divergence(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-14)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), distance=st.floats(0, 30), scale=st.floats(0.01, 30))
def test_kl_in_float32_is_never_below_rounding(seed: int, distance: float, scale: float):
    p = logits(seed, scale=scale)
    q = p + distance * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    # Rounding of single terms is all that is left: some 1e-7 of the probabilities, which sum to one.
    assert kl_divergence(normalise(p.float()), normalise(q.float())).min() > -1e-7


def test_small_kl_survives_float32():
    p = logits(0, vocab=20_000)
    q = p + 0.003 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = kl_divergence(normalise(p), normalise(q))
    assert 1e-6 < exact.max() < 1e-5
    error = (kl_divergence(normalise(p.float()), normalise(q.float())).double() - exact).abs()
    assert error.max() < 2e-8


def test_cross_entropy_equals_torchs():
    scores, targets = logits(0), torch.tensor([3, 1, 199, 0, 7])
    expected = torch.nn.functional.cross_entropy(scores, targets, reduction="none")
    torch.testing.assert_close(cross_entropy(normalise(scores), targets), expected, rtol=1e-13, atol=0)


def test_normalise_computes_half_precision_in_float32():
    scores = logits(0).bfloat16()
    torch.testing.assert_close(normalise(scores), scores.float().log_softmax(dim=1), rtol=0, atol=0)


def test_agreement_ignores_everything_below_the_top():
    p = torch.tensor([[0.1, 3.0, 2.0], [5.0, 1.0, 0.0]])
    q = torch.tensor([[2.0, 9.0, -1.0], [0.0, 0.1, 0.2]])
    assert top1_agreement(p, q).tolist() == [True, False]
