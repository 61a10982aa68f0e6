"""Losses between hidden states and between routers, one value per token.

A hidden state is divided by the teacher's root mean square *at that token*, so that a few tokens with massive
activations (the first one, usually) do not outweigh the rest, and so that a token's loss does not depend on which
others share its batch: sums over micro-batches add up exactly.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

SMALLEST_SQUARE = 1e-12


def matching_layers(num_student: int, num_teacher: int) -> list[int]:
    """For each layer of the student the teacher's at the same relative depth; the last goes to the last.

    Layer i of n ends at depth (i + 1) / n; equal numbers give the identity.
    """
    return [max(round((layer + 1) * num_teacher / num_student) - 1, 0) for layer in range(num_student)]


def hidden_mse(
    student: Float[Tensor, "*tokens student_hidden"],
    teacher: Float[Tensor, "*tokens hidden"],
    projection: Float[Tensor, "hidden student_hidden"] | None = None,
) -> Float[Tensor, "*tokens"]:
    """‖P h_s - h_t‖² / ‖h_t‖²: the mean squared error in units of the teacher's mean square.

    Args:
        student, teacher: hidden states of matching layers.
        projection: P, learned with the student where the widths differ; None for equal widths.
    """
    mapped = student if projection is None else student @ projection.T
    scale = teacher.square().mean(-1).clamp(min=SMALLEST_SQUARE)
    return (mapped - teacher).square().mean(-1) / scale


def hidden_cosine(
    student: Float[Tensor, "*tokens student_hidden"],
    teacher: Float[Tensor, "*tokens hidden"],
    projection: Float[Tensor, "hidden student_hidden"] | None = None,
) -> Float[Tensor, "*tokens"]:
    """1 - cos(P h_s, h_t)."""
    mapped = student if projection is None else student @ projection.T
    return 1 - F.cosine_similarity(mapped, teacher, dim=-1)


def router_kl(
    student: Float[Tensor, "*tokens experts"], teacher: Float[Tensor, "*tokens experts"]
) -> Float[Tensor, "*tokens"]:
    """KL(softmax(z_t) ‖ softmax(z_s)) of router logits of one layer; both models must have the same experts."""
    log_t, log_s = teacher.log_softmax(-1), student.log_softmax(-1)
    return (log_t.exp() * (log_t - log_s)).sum(-1)
