"""What is made of logits token by token, without all logits in memory: a stretch of tokens at a time.

The backward pass makes the logits of a stretch again, so that a training step holds those of one stretch only
(Training Deep Nets with Sublinear Memory Cost, 2016, arXiv:1604.06174). It costs the product of the head once more.
`linear_cross_entropy` needs no second product, as its loss is a plain sum; here each value may be weighted by what
comes of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 27}
"""By device; 1 << 24 are 64 MB in float32."""


def tokens_at_once(device: torch.device, vocab_size: int, at_once: int | None = None) -> int:
    """How many tokens have so many logits, at least one."""
    return max(1, (at_once or LOGITS_AT_ONCE.get(device.type, LOGITS_AT_ONCE["cpu"])) // vocab_size)


def wide(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def in_stretches(
    compute: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor], at_once: int
) -> tuple[Tensor, ...]:
    """`compute(*tensors)`, as if at once.

    Args:
        compute: tensors of some tokens -> tensors of those tokens; the value of a token depends on nothing else.
        tensors: one entry a token.
        at_once: tokens; where there are no more, nothing is computed twice.
    """
    if len(tensors[0]) <= at_once:
        return compute(*tensors)
    parts = zip(*(tensor.split(at_once) for tensor in tensors), strict=True)
    if torch.is_grad_enabled():
        made = [checkpoint(compute, *part, use_reentrant=False) for part in parts]
    else:
        made = [compute(*part) for part in parts]
    return tuple(torch.cat(values) for values in zip(*made, strict=True))
