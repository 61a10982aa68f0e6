"""The loss of a view: what the model predicts under other positions shall be what it predicts under the standard ones.

    ell_i = KL(p_view(. | x_<=i) || sg p_0(. | x_<=i)),   L = mean of ell_i over the tokens behind the change

The gradient flows through the view alone (sg stops it), so that nothing but the view follows.

Source: Shuffle the Context: RoPE-Perturbed Self-Distillation for Long-Context Adaptation (2026, arXiv:2604.14339). What
differs: tokens whose label does not count are left out of the mean, as padding is.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from burnish.train.maths.divergence import reverse_kl
from burnish.train.maths.stretches import in_stretches, tokens_at_once, wide


def view_divergence(
    student: Float[Tensor, "tokens vocab"], teacher: Float[Tensor, "tokens vocab"]
) -> Float[Tensor, " tokens"]:
    """ell, nats, of logits in float32 or float64; the teacher gets no gradient."""
    return reverse_kl(student, teacher.detach())


def view_distillation_loss(
    student: Float[Tensor, "*tokens vocab"],
    teacher: Float[Tensor, "*tokens vocab"],
    counts: Bool[Tensor, "*tokens"],
    at_once: int | None = None,
) -> Float[Tensor, ""]:
    """The mean of ell over the tokens that count, 0 where none does.

    Args:
        student: logits under the view, in any dtype; those of a stretch of tokens are made float32 at a time.
        teacher: logits under the standard positions.
        counts: the tokens behind the change whose label counts.
        at_once: logits that may be in memory in float32; by the device where not given.
    """

    def of_stretch(ours: Tensor, theirs: Tensor, counted: Tensor) -> tuple[Tensor]:
        # Float32 is made of what counts alone, and a NaN of a masked token does not get through.
        return (view_divergence(wide(ours[counted]), wide(theirs[counted])).sum()[None],)

    flat = (student.flatten(0, -2), teacher.detach().flatten(0, -2), counts.flatten())
    rows = tokens_at_once(student.device, student.shape[-1], at_once)
    return in_stretches(of_stretch, flat, rows)[0].sum() / counts.sum().clamp(min=1)
