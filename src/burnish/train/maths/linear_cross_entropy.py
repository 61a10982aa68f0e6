"""Cross-entropy of a linear head without its logits: a stretch of tokens at a time, gradients made on the way.

    z = bend(scale * (W h + b)),   loss = sum_i w_i (logsumexp z_i - z_i[t_i])

The logits of 4,096 tokens over a vocabulary of 49,152 take 0.8 GB in float32, and their softmax and its gradient as
much again each. As the loss is a sum over tokens, the gradient of a stretch is known as soon as its logits are: the
forward pass leaves the gradients of h, W and b, and the backward pass multiplies them by one number. Each of the three
matrix products is done once, as without stretches.

The idea is that of Cut Your Losses (2024, arXiv:2411.09009) and Liger (2024, arXiv:2410.10989), with plain torch.
`torch.nn.functional.linear_cross_entropy` of torch 2.13 does it too, but knows neither scaled nor bent logits nor
weights of tokens, and torch 2.11 does not have it.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.train.maths.stretches import tokens_at_once
from burnish.train.maths.unlikelihood import signed_losses, slopes


def linear_cross_entropy(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    bias: Float[Tensor, " vocab"] | None = None,
    *,
    scale: float = 1.0,
    cap: float | None = None,
    token_weights: Float[Tensor, " tokens"] | None = None,
    at_once: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " tokens"]]:
    """The weighted sum over tokens, in float32 (float64 for float64), with a gradient once; and beside it the loss of
    each token, without its weight and without a gradient.

    Args:
        hidden: what the head takes.
        weight, bias: of the head.
        targets: the right ids, all of them within the vocabulary.
        scale, cap: of the logits; `bend(z) = cap tanh(z / cap)`.
        token_weights: 1 each where not given; they get no gradient. One below 0 is of a token to unlearn
            (`burnish.train.maths.unlikelihood`).
        at_once: logits that may be in memory; by the device where not given.

    Raises:
        RuntimeError: a second backward pass, whose gradients are gone.
    """
    rows = tokens_at_once(hidden.device, len(weight), at_once)
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, scale, cap, token_weights, rows)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        cap: float | None,
        token_weights: Tensor | None,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        kind = hidden.device.type
        wide = torch.float64 if hidden.dtype is torch.float64 else torch.float32
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wanted = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=wide, device=hidden.device)
        each = torch.zeros(len(hidden), dtype=wide, device=hidden.device)
        of_hidden = torch.empty_like(hidden) if wanted[0] else None
        of_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        of_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[2] else None
        with torch.autocast(kind, enabled=False):
            matrix = weight.to(narrow)
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                states = hidden[part].to(narrow)
                logits = states @ matrix.mT if bias is None else torch.addmm(bias.to(narrow), states, matrix.mT)
                logits = logits.to(wide).mul_(scale) if scale != 1 else logits.to(wide)
                if cap is not None:
                    logits = logits.div_(cap).tanh_().mul_(cap)
                slope = None if cap is None or not any(wanted) else 1 - (logits / cap).square_()
                weights = None if token_weights is None else token_weights[part].to(wide)
                losses = each[part] = _losses_(logits, targets[part], weights)
                total += losses.sum() if weights is None else signed_losses(losses, weights) @ weights.abs()
                if any(wanted):
                    gradient = logits if slope is None else logits.mul_(slope)
                    gradient = (gradient.mul_(scale) if scale != 1 else gradient).to(narrow)
                    if of_hidden is not None:
                        of_hidden[part] = gradient @ matrix
                    if of_weight is not None:
                        _add_product_(of_weight, gradient, states)
                    if of_bias is not None:
                        of_bias += gradient.sum(dim=0, dtype=wide)
        ctx.mark_non_differentiable(each)
        ctx.gradients = (of_hidden, of_weight, of_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total, each

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy keeps its gradients for one backward pass only")
        gradients, ctx.gradients = ctx.gradients, None
        found = [
            None if gradient is None else gradient.mul_(grad_outputs[0]).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return (*found, None, None, None, None, None)


def _losses_(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """The cross-entropy of each token; leaves the gradient of their weighted sum in place of the logits."""
    place = targets[:, None]
    # The largest logit becomes 0, so that what is likely is rounded least.
    chosen = logits.sub_(logits.amax(dim=-1, keepdim=True)).gather(-1, place)
    sums = logits.exp_().sum(dim=-1, keepdim=True)
    losses = (sums.log() - chosen)[:, 0]
    logits.div_(sums).scatter_add_(-1, place, -torch.ones_like(sums))
    if weights is not None:
        logits.mul_(slopes(losses, weights)[:, None])
    return losses


def _add_product_(to: Tensor, gradient: Tensor, states: Tensor) -> None:
    """to += gradient^T states, in place where both are of one dtype."""
    if to.dtype is gradient.dtype:
        to.addmm_(gradient.mT, states)
    else:
        to += gradient.mT @ states
