"""How much each token counts. A step's loss is Σ w_t l_t / Σ w_t, both sums over the whole step.

The loop forms both sums over all micro-batches and processes and divides once (`burnish.train.losses.Loss`), so none
of these weights may depend on a mean over the micro-batch; none does. All are without gradient, and all are zero where
the mask is, so that a masked token's loss has exactly no gradient.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_mean(mask: Bool[Tensor, "rows length"]) -> Float[Tensor, "rows length"]:
    """1 for every token that counts."""
    return mask.to(torch.float32)


def segment_mean(
    mask: Bool[Tensor, "rows length"], segments: Int[Tensor, "rows length"]
) -> Float[Tensor, "rows length"]:
    """1 / (tokens that count in the token's segment): every segment counts the same, however long.

    Segments are sequences (packed into rows, numbered from 0 within each row), or turns of a conversation (`turns`).
    A segment must lie within one row.
    """
    counts = torch.zeros(mask.shape[0], int(segments.max()) + 1, dtype=torch.float32, device=mask.device)
    counts.scatter_add_(1, segments, mask.to(torch.float32))
    return torch.where(mask, 1 / counts.gather(1, segments).clamp(min=1), 0.0)


def sequences(
    mask: Bool[Tensor, "rows length"], position_ids: Int[Tensor, "rows length"] | None
) -> Int[Tensor, "rows length"]:
    """Numbers of the sequences packed into each row: position ids start again with each; a row is one without them."""
    return torch.zeros_like(mask, dtype=torch.long) if position_ids is None else (position_ids == 0).long().cumsum(1)


def turns(mask: Bool[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """Numbers of the runs of counting tokens in each row: a turn of the assistant is a run."""
    before = torch.nn.functional.pad(mask[:, :-1], (1, 0))
    return (mask & ~before).long().cumsum(1)


def certain(
    mask: Bool[Tensor, "rows length"], entropies: Float[Tensor, "rows length"], vocab_size: int, gamma: float
) -> Float[Tensor, "rows length"]:
    """(1 - H_t / log V)^γ: tokens of which the teacher is sure count more. γ = 0 is `token_mean`."""
    share = (1 - entropies.detach() / math.log(vocab_size)).clamp(0, 1)
    return torch.where(mask, share**gamma, 0.0)


def uncertain(
    mask: Bool[Tensor, "rows length"], entropies: Float[Tensor, "rows length"], gamma: float
) -> Float[Tensor, "rows length"]:
    """H_t^γ: tokens at which the teacher sees a choice count more. γ = 0 is `token_mean`."""
    return torch.where(mask, entropies.detach().clamp(min=0) ** gamma, 0.0)


def focus(
    mask: Bool[Tensor, "rows length"], divergences: Float[Tensor, "rows length"], gamma: float, cap: float = 5.0
) -> Float[Tensor, "rows length"]:
    """min(d_t, cap)^γ: tokens with a large divergence count more. γ = 0 is `token_mean`.

    Args:
        mask: tokens that count.
        divergences: nats: of the student from the teacher (hard tokens count more), or of the teacher's prediction
            from one with a short context (tokens that need the long context count more).
        gamma: how much more.
        cap: nats above which a divergence counts no more; absolute, so that it does not depend on the batch.
    """
    return torch.where(mask, divergences.detach().clamp(0, cap) ** gamma, 0.0)


def outcome(weights: Float[Tensor, "rows length"], rewards: Float[Tensor, "rows length"]) -> Tensor:
    """Weights times the reward of the token's sequence: 0 and 1 keep what succeeded."""
    return weights * rewards


def until_first_error(
    mask: Bool[Tensor, "rows length"], failed: Bool[Tensor, "rows length"], segments: Int[Tensor, "rows length"]
) -> Bool[Tensor, "rows length"]:
    """The mask without what follows the first failed token of its segment; the failed token itself is left out too."""
    errors = failed.long().cumsum(1)
    # Errors of earlier segments of the same row do not count: subtract what had been seen when the segment began.
    begins = torch.ones_like(failed)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    seen_before = torch.where(begins, errors - failed.long(), 0).cummax(1).values
    return mask & (errors - seen_before == 0)


def weighted_sum(
    losses: Float[Tensor, "*tokens"], weights: Float[Tensor, "*tokens"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """(Σ w l, Σ w). A token of weight 0 is left out before it is multiplied, so not even a NaN of it gets through."""
    counted = weights != 0
    return (losses[counted] * weights[counted]).sum(), weights.sum()
