"""How much a token counts, by what the whole context changes in its prediction against a short one.

With the losses long_t and short_t of a token under the two contexts, d_t = long_t - short_t, and with the predictions p
(whole) and q (short) over the vocabulary, the signal g_t >= 0 of a token is

    kl, js   KL(p || q), Jensen-Shannon of p and q: how far the belief moves, whatever the label
    lsd      max(-d, 0): how much the label gains
    dense    |d|
    sparse   1 for the largest share `keep` of |d| in a document, 0 for the rest
    ppmi     max(-d - log shift, 0)
    npmi     max(d - log shift, 0)

and its weight, with the mean over the tokens of its document that count,

    w = floor + (1 - floor) min(g, cap) / mean(min(g, cap))          (1 where the mean is 0)

whose mean is 1: the loss keeps its size. `longce` is no mean: w = min(exp(-d), cap).

The mean is that of a document, as in the authors' programs, which have one in each row. So weights do not depend on
what else is in a row, a micro-batch or a process.

Sources: LongCE from What is Wrong with Perplexity for Long-context Language Modeling? (2024, arXiv:2410.23771); dense,
sparse, PPMI, NPMI from Token Weighting for Long-Range Language Modeling (2025, arXiv:2503.09202); KL, with window and
sinks as the short context, has no public text or code and is a reconstruction. What differs: the short context itself
(`burnish.train.long_context`); where fewer tokens than `keep` have a signal, no others are drawn to fill it up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from burnish.train.maths.divergence import forward_kl, jensen_shannon

Mode = Literal["kl", "lsd", "js", "longce", "dense", "sparse", "ppmi", "npmi"]

NOTHING = 1e-6
"""A mean signal below which a document has none."""


@dataclass(frozen=True)
class Weighting:
    """How signals become weights.

    Attributes:
        mode: see above.
        gate: only tokens whose label gains by the whole context have a signal.
        prefix: tokens whose short context is the whole one weigh "one" and are left out of the mean, or what the
            "formula" says of them.
        floor: the smallest weight; 1 is the plain loss.
        cap: the largest signal, in nats; of longce the largest weight.
        keep: share of the tokens that sparse keeps.
        shift: of ppmi and npmi.
    """

    mode: Mode = "kl"
    gate: bool = False
    prefix: Literal["one", "formula"] = "one"
    floor: float = 0.5
    cap: float = 5.0
    keep: float = 0.2
    shift: float = 1.0


def context_divergence(
    long: Float[Tensor, "tokens vocab"], short: Float[Tensor, "tokens vocab"], mode: Mode
) -> Float[Tensor, " tokens"]:
    """KL(p || q) in nats, or Jensen-Shannon for mode js, of logits with the whole context and with the short one."""
    return jensen_shannon(short, long) if mode == "js" else forward_kl(short, long)


def token_weights(
    how: Weighting,
    long_losses: Float[Tensor, " tokens"],
    short_losses: Float[Tensor, " tokens"],
    divergences: Float[Tensor, " tokens"] | None = None,
    documents: Int[Tensor, " tokens"] | None = None,
    in_prefix: Bool[Tensor, " tokens"] | None = None,
) -> Float[Tensor, " tokens"]:
    """The weights, without a gradient.

    Args:
        how: mode and numbers.
        long_losses, short_losses: of the tokens that count, nats, with the whole and with the short context.
        divergences: for modes kl and js.
        documents: numbers of the documents that the tokens are of, from 0; one document where not given.
        in_prefix: whether the token's short context is the whole one; none where not given.
    """
    gains = (short_losses - long_losses).detach()
    if how.mode == "longce":
        weights = gains.exp().clamp(max=how.cap)
        return weights.where(gains > 0, 1.0) if how.gate else weights
    if documents is None:
        documents = torch.zeros_like(gains, dtype=torch.long)
    free = torch.zeros_like(gains, dtype=torch.bool)
    if in_prefix is not None and how.prefix == "one":
        free = in_prefix
    signals = _signals(how, gains, divergences)
    if how.gate:
        signals = signals * (gains > 0)
    signals = signals.clamp(max=how.cap) * ~free
    if how.mode == "sparse":
        signals = _largest(signals, documents, free, how.keep)
    sums = signals.new_zeros(int(documents.max()) + 1 if len(documents) else 0)
    counts = torch.zeros_like(sums).index_add_(0, documents, (~free).to(signals.dtype)).clamp(min=1)
    means = sums.index_add(0, documents, signals) / counts
    of_token = means[documents]
    relative = torch.where(of_token < NOTHING, 1.0, signals / of_token.clamp(min=NOTHING))
    return torch.where(free, 1.0, how.floor + (1 - how.floor) * relative)


def _signals(how: Weighting, gains: Tensor, divergences: Tensor | None) -> Tensor:
    match how.mode:
        case "lsd":
            return gains.clamp(min=0)
        case "dense" | "sparse":
            return gains.abs()
        case "ppmi":
            return (gains - math.log(how.shift)).clamp(min=0)
        case "npmi":
            return (-gains - math.log(how.shift)).clamp(min=0)
        case _:
            assert divergences is not None, "modes kl and js are of divergences"
            return divergences.detach()


def _largest(signals: Tensor, documents: Tensor, free: Tensor, keep: float) -> Tensor:
    """1 for the largest share of each document's tokens that are not free, and 0 for those without a signal."""
    found = torch.zeros_like(signals)
    for document in documents.unique().tolist():
        places = ((documents == document) & ~free).nonzero()[:, 0]
        count = max(1, int(keep * len(places)))
        found[places[signals[places].topk(min(count, len(places))).indices]] = 1
    return found * (signals > 0)
