"""How far one next-token distribution is from the text, and from another distribution.

Suffixes: N tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def cross_entropy(
    log_probs_NV: Float[Tensor, "tokens vocab"], targets_N: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """-log p(target) in nats, per token."""
    return -log_probs_NV.gather(1, targets_N[:, None])[:, 0]


def kl_divergence(
    log_p_NV: Float[Tensor, "tokens vocab"], log_q_NV: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """KL(p || q) = Σ p (log p − log q) in nats, per token; p is the reference.

    Computed as Σ [q − p − p (log q − log p)], which equals it because p and q both sum to one. Every term is
    non-negative, and an error in a normalising constant cancels to first order: in float32 the plain sum is off by
    about 1e-6 nats, as much as the whole divergence of a well rounded model, this one by about 1e-8.
    """
    p_NV = log_p_NV.exp()
    terms_NV = (log_p_NV - log_q_NV).mul_(p_NV)  # in place: every temporary is a row of the vocabulary
    return terms_NV.add_(log_q_NV.exp()).sub_(p_NV).sum(dim=1)


def top1_agreement(
    scores_p_NV: Float[Tensor, "tokens vocab"], scores_q_NV: Float[Tensor, "tokens vocab"]
) -> Bool[Tensor, " tokens"]:
    """Whether both put the same token first (the lowest id where scores tie), per token."""
    return _first(scores_p_NV) == _first(scores_q_NV)


def _first(scores_NV: Float[Tensor, "tokens vocab"]) -> Int[Tensor, " tokens"]:
    """Id of the largest score, per token; of several that are equal the lowest."""
    if scores_NV.device.type == "cpu" and scores_NV.dtype in (torch.float32, torch.float64):
        # torch's own takes as long here as the exponentials of the whole divergence; numpy's a tenth of that.
        return torch.from_numpy(scores_NV.numpy().argmax(axis=1))
    return scores_NV.argmax(dim=1)


def normalise(logits_NV: Float[Tensor, "tokens vocab"]) -> Float[Tensor, "tokens vocab"]:
    """Log-probabilities of logits, in float32 at least."""
    wide = logits_NV if logits_NV.dtype is torch.float64 else logits_NV.float()
    return wide.log_softmax(dim=1)
