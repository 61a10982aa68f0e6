"""Which tokens a draft may propose, and how many of them a model then accepts.

A draft that proposes out of K tokens needs K rows of the head in place of V. The model that verifies still chooses
among all V, so its texts stay what they are; what is lost is acceptance, and that has a bound. With p the model's
distribution and q the draft's, which is zero outside of its vocabulary V_h, one proposed token is accepted with

    alpha = sum_{x in V_h} min(p(x), q(x))  <=  c = sum_{x in V_h} p(x),     the coverage of V_h

Source: FR-Spec: Accelerating Large-Vocabulary Language Models via Frequency-Ranked Speculative Sampling, 2025,
arXiv:2502.14856; the form of the map is that of EAGLE-3, 2025, arXiv:2503.01840.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def most_frequent(counts: Int[Tensor, " vocab"], size: int, always: Collection[int]) -> Int[Tensor, " size"]:
    """The `size` most frequent tokens in ascending order, those of `always` among them; of equal ones the first.

    Args:
        counts: how often each token occurred.
        size: from the number of `always` to that of all tokens.
        always: tokens that are taken whatever they count.
    """
    ranks = counts.clone()
    ranks[torch.tensor(sorted(always), dtype=torch.long)] = int(counts.max()) + 1
    return ranks.argsort(descending=True, stable=True)[:size].sort().values


def offsets(tokens: Int[Tensor, " size"]) -> Int[Tensor, " size"]:
    """`d2t` of EAGLE-3: draft token j is token j + d2t[j] of the model."""
    return tokens - torch.arange(len(tokens))


def tokens_of(d2t: Int[Tensor, " size"]) -> Int[Tensor, " size"]:
    """The model's tokens, from `offsets`."""
    return d2t + torch.arange(len(d2t))


def known(tokens: Int[Tensor, " size"], vocabulary: int) -> Bool[Tensor, " vocab"]:
    """`t2d` of EAGLE-3: which of the model's tokens the draft has."""
    found = torch.zeros(vocabulary, dtype=torch.bool)
    found[tokens] = True
    return found


def acceptance(p: Float[Tensor, "*tokens size"], q: Float[Tensor, "*tokens size"]) -> Float[Tensor, "*tokens"]:
    """alpha above, of the parts of both distributions on the draft's vocabulary."""
    return torch.minimum(p, q).sum(-1)
