"""Losses of a policy per token, from log-probabilities now and when the tokens were drawn.

With the ratio rho = exp(log p - log p_old) and an advantage A:

    clipped     max(-rho A, -clip(rho, 1 - low, 1 + high) A);  dual: at most -c A if A < 0  PPO, 2017, arXiv 1707.06347
    importance  -rho A
    cispo       -sg(clip(rho, low, high)) A log p                       MiniMax-M1, 2025, arXiv 2506.13585
    sequence    rho = exp(mean log ratio of the row), gradient through every token    GSPO, 2025, arXiv 2507.18071

and factors of a token's loss that are not differentiated: `iced` drops tokens whose ratio between trainer and sampler
lies outside [1/b, b] (IcePop), `truncated` multiplies by that ratio, cut off. They change the gradient as well as the
value: a correction that only multiplied a reported number would correct nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LARGEST_EXPONENT = 10.0
"""Of the k3 estimator, which one far token would otherwise decide."""


def clipped(
    log_ratio: Float[Tensor, "*rows tokens"],
    advantage: Float[Tensor, "*rows tokens"],
    low: float = 0.2,
    high: float = 0.2,
    dual: float | None = None,
) -> Float[Tensor, "*rows tokens"]:
    """PPO's surrogate.

    Args:
        log_ratio: log p - log p_old, differentiable.
        advantage: of each token.
        low: how far below 1 the ratio is followed.
        high: how far above.
        dual: c; a token with negative advantage never costs more than -c A. 3 is usual; None leaves it out.
    """
    ratio = log_ratio.exp()
    loss = torch.maximum(-ratio * advantage, -ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is None:
        return loss
    return torch.where(advantage < 0, torch.minimum(loss, -dual * advantage), loss)


def is_clipped(
    log_ratio: Float[Tensor, "*rows tokens"],
    advantage: Float[Tensor, "*rows tokens"],
    low: float = 0.2,
    high: float = 0.2,
) -> Bool[Tensor, "*rows tokens"]:
    """Where `clipped` has no gradient, without the dual bound."""
    ratio = log_ratio.exp()
    return ((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0))


def importance(
    log_ratio: Float[Tensor, "*rows tokens"], advantage: Float[Tensor, "*rows tokens"]
) -> Float[Tensor, "*rows tokens"]:
    """-rho A."""
    return -log_ratio.exp() * advantage


def cispo(
    log_prob: Float[Tensor, "*rows tokens"],
    log_ratio: Float[Tensor, "*rows tokens"],
    advantage: Float[Tensor, "*rows tokens"],
    low: float = 0.0,
    high: float = 1.2,
) -> Float[Tensor, "*rows tokens"]:
    """-sg(clip(rho, low, high)) A log p: every token keeps a gradient, however far its ratio is.

    Args:
        log_prob: differentiable.
        log_ratio: log p - log p_old.
        advantage: of each token.
        low: least weight.
        high: largest weight.
    """
    return -log_ratio.detach().exp().clamp(low, high) * advantage * log_prob


def sequence_log_ratio(
    log_ratio: Float[Tensor, "rows tokens"], mask: Float[Tensor, "rows tokens"]
) -> Float[Tensor, "rows tokens"]:
    """GSPO's log ratio of a token: the row's mean in value, the token's own in gradient.

    In `clipped` it gives the sequence's ratio to every token, and by the mean over the row the same gradient as the
    sequence's ratio once.
    """
    mean = (log_ratio * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return mean.detach() + log_ratio - log_ratio.detach()


def iced(mismatch: Float[Tensor, "*rows tokens"], bound: float) -> Float[Tensor, "*rows tokens"]:
    """1 where exp(mismatch) is in [1/bound, bound], else 0. Detached.

    Args:
        mismatch: log p of the trainer - log p of the sampler, both with the weights that drew the token.
        bound: b, above 1.
    """
    ratio = mismatch.detach().exp()
    return ((ratio >= 1 / bound) & (ratio <= bound)).to(mismatch.dtype)


def truncated(
    mismatch: Float[Tensor, "*rows tokens"], low: float = 0.0, high: float = 2.0
) -> Float[Tensor, "*rows tokens"]:
    """clip(exp(mismatch), low, high): what a token drawn by another engine is worth. Detached; a factor of the loss."""
    return mismatch.detach().exp().clamp(low, high)


def divergence(
    log_prob: Float[Tensor, "*rows tokens"], reference: Float[Tensor, "*rows tokens"], estimator: str = "k3"
) -> Float[Tensor, "*rows tokens"]:
    """Estimators of KL(policy || reference) from the drawn tokens.

        k1 = log p - log p_ref          unbiased
        k2 = k1^2 / 2                   its gradient is that of the divergence
        k3 = exp(-k1) + k1 - 1          unbiased and never negative; the exponent is held within +-10

    Source: J. Schulman, Approximating KL divergence, 2020.
    """
    k1 = log_prob - reference
    if estimator == "k1":
        return k1
    if estimator == "k2":
        return k1.square() / 2
    if estimator == "k3":
        return (-k1).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).exp() + k1 - 1
    raise ValueError(f"estimator is {estimator!r}, but k1, k2 and k3 are known")
