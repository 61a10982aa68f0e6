"""Distances between distributions over two vocabularies, one value for each stretch of text that both cut alike.

Two tokenizers cut a text at different places; where both cut, a stretch of one or more tokens of each ends. By the
chain rule the distribution over its last token, times the probability of the tokens before it, is comparable on both
sides. Which token is which nobody knows, so the probabilities are compared by their rank (Towards Cross-Tokenizer
Distillation: the Universal Logit Distillation Loss for LLMs, 2024, arXiv:2402.12030). Tokens that are spelled the same
in both vocabularies need no guess; `shared_and_ranked` compares those by name, as TRL's GOLD trainer does.

Where one side needs many tokens for a stretch, the product of their probabilities is small, and so is the gradient of
both. `likelihood` compares nothing but how likely the text itself is (Universal Cross-Tokenizer Distillation via
Approximate Likelihood Matching, 2025, arXiv:2503.20083); its gradient does not vanish with the student's probability.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from burnish.train.maths.divergence import kl, log_complement, mixed_kl

LEAST = math.log(1e-8)
"""Probabilities of shared tokens count as at least this much, as in TRL: they are not normalised, and can be 0."""


def stretches(ours: Sequence[int], theirs: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Numbers of the tokens of both sides between one common cut and the next; what follows the last cut is left out.

    Args:
        ours, theirs: where in the text each token ends, never falling.
    """
    start = other_start = other = reached = 0
    for place, end in enumerate(ours):
        while other < len(theirs) and theirs[other] < end:
            other += 1
        if other == len(theirs):
            return
        if theirs[other] == end > reached:  # a token without a text of its own belongs to the stretch that follows
            other += 1
            yield range(start, place + 1), range(other_start, other)
            start, other_start, reached = place + 1, other, end


def likelihood(
    student: Float[Tensor, " stretches"], teacher: Float[Tensor, " stretches"], temperature: float = 1.0
) -> Float[Tensor, " stretches"]:
    """p log(p / s) + (1 - p) log((1 - p) / (1 - s)): the forward KL of whether a text goes on as it does.

    Args:
        student, teacher: log-probabilities of the stretches, log s and log p at temperature 1.
        temperature: τ of p^(1/τ) and s^(1/τ).
    """
    # Below 1 by a rounding error, so that what is certain on one side has finite odds on the other.
    most = -torch.finfo(student.dtype).eps
    log_s, log_p = ((values / temperature).clamp(max=most) for values in (student, teacher))
    log_rest_s, log_rest_p = log_complement(log_s), log_complement(log_p)
    return log_p.exp() * (log_p - log_s) + log_rest_p.exp() * (log_rest_p - log_rest_s)


def ranked(
    student: Float[Tensor, "stretches vocab"], teacher: Float[Tensor, "stretches other_vocab"]
) -> Float[Tensor, " stretches"]:
    """Σ_r |s_(r) - p_(r)|, both sorted, the smaller vocabulary filled up with zeros; from log-probabilities."""
    ours, theirs = (values.exp().sort(-1, descending=True).values for values in (student, teacher))
    size = max(ours.shape[-1], theirs.shape[-1])
    ours, theirs = (torch.nn.functional.pad(values, (0, size - values.shape[-1])) for values in (ours, theirs))
    return (ours - theirs).abs().sum(-1)


def shared_and_ranked(
    student: Float[Tensor, "stretches vocab"],
    teacher: Float[Tensor, "stretches other_vocab"],
    ours: Int[Tensor, " shared"],
    theirs: Int[Tensor, " shared"],
    beta: float = 0.5,
) -> Float[Tensor, " stretches"]:
    """w JSD_β over the tokens of both vocabularies + (1 - w) `ranked` over the rest, w = shared / other_vocab.

    Args:
        student, teacher: log-probabilities, perhaps of less than all mass.
        ours, theirs: numbers of the shared tokens in both vocabularies.
        beta: as in `jensen_shannon`; 0 is the forward and 1 the reverse KL.
    """
    log_s, log_p = student[:, ours].clamp(min=LEAST), teacher[:, theirs].clamp(min=LEAST)
    if beta in (0, 1):
        named = kl(log_p, log_s) if beta == 0 else kl(log_s, log_p)
    else:
        named = mixed_kl(log_p, log_s, beta)
    share = len(theirs) / teacher.shape[-1]
    if len(ours) == student.shape[-1] or len(theirs) == teacher.shape[-1]:
        return share * named  # nothing is left to rank on one of the sides
    rest = (_without(student, ours), _without(teacher, theirs))
    return share * named + (1 - share) * ranked(*rest)


def _without(values: Tensor, columns: Tensor) -> Tensor:
    kept = torch.ones(values.shape[-1], dtype=torch.bool, device=values.device)
    kept[columns] = False
    return values[:, kept]
