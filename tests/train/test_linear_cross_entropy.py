"""The loss without all logits is the plain loss, and so are its gradients."""

import pytest
import torch

from burnish.arch import head_of
from burnish.train import balanced_loss, causal_lm_loss
from burnish.train.losses import HeadLoss
from burnish.train.maths import linear_cross_entropy as without_logits

TOKENS, VOCAB, HIDDEN = 23, 41, 8


def linear_cross_entropy(*inputs, **settings):
    """The sum alone; the losses of single tokens are tested with the marks of rows."""
    return without_logits.linear_cross_entropy(*inputs, **settings)[0]


def drawn(*shape, dtype=torch.float64):
    seed = sum(shape)
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def plain(hidden, weight, targets, bias, scale, cap, token_weights):
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return losses.sum() if token_weights is None else losses @ token_weights


@pytest.mark.parametrize("at_once", [1, 3 * VOCAB, 10 * VOCAB, 10**6])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale, cap", [(1.0, None), (0.3, None), (1.0, 2.0), (1.7, 3.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradients_are_those_of_the_plain_loss(at_once, with_bias, scale, cap, weighted):
    hidden, weight = drawn(TOKENS, HIDDEN), drawn(VOCAB, HIDDEN)
    bias = drawn(VOCAB) if with_bias else None
    targets = torch.arange(TOKENS) * 7 % VOCAB
    token_weights = torch.arange(TOKENS).double() / 5 if weighted else None
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    expected = plain(hidden, weight, targets, bias, scale, cap, token_weights)
    found = linear_cross_entropy(
        hidden, weight, targets, bias, scale=scale, cap=cap, token_weights=token_weights, at_once=at_once
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for ours, theirs in zip(
        torch.autograd.grad(3 * found, inputs), torch.autograd.grad(3 * expected, inputs), strict=True
    ):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_a_token_of_negative_weight_is_unlearned():
    """By -log(1 - p) from probabilities, in value and gradient, with weights of both signs."""
    hidden, weight = drawn(TOKENS, HIDDEN), drawn(VOCAB, HIDDEN)
    targets = torch.arange(TOKENS) * 7 % VOCAB
    token_weights = torch.linspace(-0.1, 1.0, TOKENS, dtype=torch.float64)
    p = torch.softmax(hidden @ weight.T, -1)[torch.arange(TOKENS), targets]
    expected = torch.where(token_weights < 0, -token_weights.abs() * (1 - p).log(), -token_weights * p.log()).sum()
    for at_once in (3 * VOCAB, 10**6):
        found = linear_cross_entropy(hidden, weight, targets, token_weights=token_weights, at_once=at_once)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
        for ours, theirs in zip(
            torch.autograd.grad(found, [hidden, weight]),
            torch.autograd.grad(expected, [hidden, weight], retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_token_that_is_certain_is_unlearned_without_an_infinite_gradient():
    logits = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    total = linear_cross_entropy(logits, torch.eye(3), torch.tensor([0]), token_weights=torch.tensor([-0.1]))
    (gradient,) = torch.autograd.grad(total, logits)
    assert 0.5 < float(total.detach()) < 2
    assert float(gradient.abs().max()) <= 0.1


def test_float32_gradients_differ_by_rounding_alone():
    hidden, weight = drawn(300, 64, dtype=torch.float32), drawn(500, 64, dtype=torch.float32)
    weight = (weight.detach() / 8).requires_grad_()  # logits of size 1; the rounding of a logit grows with its size
    targets = torch.arange(300)
    ours = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, at_once=64 * 500), [hidden, weight])
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exactly = torch.autograd.grad(plain(*exact, targets, None, 1.0, None, None), exact)
    for one, other in zip(ours, exactly, strict=True):
        assert (one - other).abs().max() <= 1e-6 * other.abs().max()


def test_only_what_needs_a_gradient_gets_one_and_none_is_kept_twice():
    hidden, weight = drawn(TOKENS, HIDDEN), drawn(VOCAB, HIDDEN)
    targets = torch.zeros(TOKENS, dtype=torch.long)
    linear_cross_entropy(hidden, weight.detach(), targets).backward()
    assert hidden.grad is not None and weight.grad is None
    linear_cross_entropy(hidden.detach(), weight, targets).backward()
    assert weight.grad is not None
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets).requires_grad
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_no_tokens_have_no_loss_and_a_gradient_of_zero():
    hidden, weight = drawn(0, HIDDEN), drawn(VOCAB, HIDDEN)
    loss = linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0 and not weight.grad.any()


def test_autocast_multiplies_in_bfloat16_as_the_layer_does():
    hidden, weight = drawn(64, 32, dtype=torch.float32), drawn(90, 32, dtype=torch.float32)
    targets = torch.arange(64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = torch.nn.functional.linear(hidden, weight)
        expected = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
        found = linear_cross_entropy(hidden, weight, targets, at_once=10 * 90)
    assert logits.dtype is torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    ours, theirs = torch.autograd.grad(found, [hidden, weight]), torch.autograd.grad(expected, [hidden, weight])
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 2**-7 * other.abs().max()


@pytest.mark.parametrize(
    "kind, settings, balance",
    [
        ("llama", {}, 0.0),
        ("llama", {"tie_word_embeddings": True}, 0.0),
        ("gemma2", {"final_logit_softcapping": 2.0}, 0.0),
        ("mixtral", {}, 0.01),
    ],
)
def test_a_models_loss_by_its_head_is_its_loss(model_of, kind, settings, balance, all_float64):
    model = model_of(kind, dtype=torch.float64, **settings).eval()
    ids = torch.randint(0, 300, (3, 17), generator=torch.Generator().manual_seed(1))
    targets = ids.roll(-1, 1)
    targets[0, :9] = -100
    batch = {"input_ids": ids, "targets": targets}
    results = []
    for loss_fn in (HeadLoss(head_of(model), balance), balanced_loss(balance) if balance else causal_lm_loss):
        model.zero_grad()
        loss = loss_fn(model, batch)
        loss.total.backward()
        results.append((loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours.total, theirs.total, rtol=1e-12, atol=0)
    assert ours.weight == theirs.weight == 3 * 17 - 9 and ours.metrics.keys() == theirs.metrics.keys()
    assert our_gradients.keys() == their_gradients.keys()
    largest = max(gradient.abs().max() for gradient in their_gradients.values())
    for name, gradient in their_gradients.items():
        assert (our_gradients[name] - gradient).abs().max() <= 1e-12 * largest, name
