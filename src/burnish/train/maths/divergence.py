"""Divergences between a teacher p and a student s over the vocabulary, one value per token, in nats.

At temperature τ both are softmax(logits / τ), and the value is multiplied by τ² so that its gradient keeps its size
(Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531). Gradients flow into the student only if the
teacher's logits were made without a graph. Everything is computed in the dtype of the logits given; give float32.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Tail = Literal["bucket", "renormalise", "zero"]


def forward_kl(
    student: Float[Tensor, "*tokens vocab"], teacher: Float[Tensor, "*tokens vocab"], temperature: float = 1.0
) -> Float[Tensor, "*tokens"]:
    """τ² Σ_v p log(p / s): the student must cover all that the teacher finds likely."""
    log_p, log_s = _log_probabilities(student, teacher, temperature)
    return temperature**2 * kl(log_p, log_s)


def reverse_kl(
    student: Float[Tensor, "*tokens vocab"], teacher: Float[Tensor, "*tokens vocab"], temperature: float = 1.0
) -> Float[Tensor, "*tokens"]:
    """τ² Σ_v s log(s / p): the student must avoid what the teacher finds unlikely."""
    log_p, log_s = _log_probabilities(student, teacher, temperature)
    return temperature**2 * kl(log_s, log_p)


def jensen_shannon(
    student: Float[Tensor, "*tokens vocab"],
    teacher: Float[Tensor, "*tokens vocab"],
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """τ² (β KL(p ‖ m) + (1 - β) KL(s ‖ m)) with m = β p + (1 - β) s, 0 < β < 1.

    Divided by β it tends to the forward KL as β → 0, divided by 1 - β to the reverse KL as β → 1.
    Source: On-Policy Distillation of Language Models (2023, arXiv:2306.13649).
    """
    log_p, log_s = _log_probabilities(student, teacher, temperature)
    return temperature**2 * mixed_kl(log_p, log_s, beta)


def top_k_targets(
    teacher: Float[Tensor, "*tokens vocab"], k: int, temperature: float = 1.0
) -> tuple[Int[Tensor, "*tokens k"], Float[Tensor, "*tokens k"]]:
    """The ids of the k largest logits and their log-probabilities over the whole vocabulary: what to keep on disk."""
    values, ids = teacher.topk(k, dim=-1)
    return ids, values / temperature - torch.logsumexp(teacher / temperature, dim=-1, keepdim=True)


def top_k_kl(
    student: Float[Tensor, "*tokens vocab"],
    ids: Int[Tensor, "*tokens k"],
    log_probabilities: Float[Tensor, "*tokens k"],
    tail: Tail = "bucket",
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    """Forward KL from the teacher's k likeliest tokens alone.

    * `bucket`: all other tokens are one class of the remaining mass. A proper divergence: at most the full KL, and
      equal to it when k is the whole vocabulary.
    * `renormalise`: both are renormalised over the k tokens; what the student does elsewhere costs nothing.
    * `zero`: Σ over the k tokens of p log(p / s), the tail left out. Not a divergence: it can be negative, and the
      student that minimises it is not the teacher.

    Args:
        student: logits.
        ids, log_probabilities: from `top_k_targets`, at the same temperature.
        tail: what becomes of the other tokens.
        temperature: τ.
    """
    log_s = (student / temperature).log_softmax(-1).gather(-1, ids)
    log_p = log_probabilities
    if tail == "renormalise":
        log_p = log_p - log_p.logsumexp(-1, keepdim=True)
        log_s = log_s - log_s.logsumexp(-1, keepdim=True)
    total = kl(log_p, log_s)
    if tail == "bucket" and ids.shape[-1] < student.shape[-1]:
        log_rest_p = log_complement(log_p.logsumexp(-1))
        # The student's own tail, summed and not taken as 1 - Σ, keeps its gradient exact where the tail is small.
        others = (student / temperature).scatter(-1, ids, -torch.inf)
        log_rest_s = others.logsumexp(-1) - (student / temperature).logsumexp(-1)
        total = total + log_rest_p.exp() * (log_rest_p - log_rest_s)
    return temperature**2 * total


def entropy(logits: Float[Tensor, "*tokens vocab"]) -> Float[Tensor, "*tokens"]:
    """-Σ_v p log p, in nats."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


def _log_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)


def kl(log_p: Float[Tensor, "*tokens vocab"], log_q: Float[Tensor, "*tokens vocab"]) -> Float[Tensor, "*tokens"]:
    """Σ p log(p / q); a token of probability 0 in p, as models give to tokens they mask, adds nothing."""
    log_p = log_p.clamp(min=torch.finfo(log_p.dtype).min)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def mixed_kl(
    log_p: Float[Tensor, "*tokens vocab"], log_s: Float[Tensor, "*tokens vocab"], beta: float
) -> Float[Tensor, "*tokens"]:
    """β KL(p ‖ m) + (1 - β) KL(s ‖ m) with m = β p + (1 - β) s, 0 < β < 1."""
    log_m = torch.logaddexp(log_p + math.log(beta), log_s + math.log1p(-beta))
    return beta * kl(log_p, log_m) + (1 - beta) * kl(log_s, log_m)


def log_complement(log_mass: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, kept finite where rounding leaves no mass."""
    smallest = torch.finfo(log_mass.dtype).eps
    return torch.log(-torch.expm1(log_mass.clamp(max=-smallest)))
