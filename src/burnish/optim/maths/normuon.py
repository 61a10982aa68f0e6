"""NorMuon: Muon whose rows (neurons) all move by the same amount.

Muon makes the singular values of an update equal, but its rows keep very different norms, because the orthogonalisation
is approximate and because a tall matrix cannot have orthonormal columns and equal rows at once. NorMuon keeps one
running second moment per row of the orthogonalised update, divides by its root, and restores the overall size:

    M  <- beta1 M + (1 - beta1) G
    U   = (1 - beta1) G + beta1 M  (Nesterov)  or  M
    O   = orthogonalise(U)
    v  <- beta2 v + (1 - beta2) mean_j O_ij^2
    Oh  = O / (sqrt(v) + eps)
    W  <- (1 - lr wd) W - lr * factor * Oh

Source: NorMuon: Making Muon more efficient and scalable (2025, arXiv:2510.05491). Muon: Keller Jordan (2024).
What differs is in `factor`: the paper, the authors' code and the distributed code each have their own (`step_factor`).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

ScaleName = Literal["rms", "reference", "spectral", "rms_moonlight", "none"]
SCALES: tuple[str, ...] = ("rms", "reference", "spectral", "rms_moonlight", "none")
RMS = 0.2
"""Root mean square of an AdamW update, in units of the learning rate; matching it lets learning rates carry over."""


def momentum_(
    buffer: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], beta: float
) -> Float[Tensor, "*shape"]:
    """Moves the running mean of the gradients, in place. No bias correction: orthogonalisation does not see scale."""
    return buffer.lerp_(gradient.to(buffer.dtype), 1 - beta)


def nesterov(
    buffer: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], beta: float
) -> Float[Tensor, "*shape"]:
    """(1 - beta) G + beta M, where M has already seen G."""
    return torch.lerp(gradient.to(buffer.dtype), buffer, beta)


def row_scales_(
    orthogonal: Float[Tensor, "*batch rows cols"],
    second_moment: Float[Tensor, "*batch rows 1"],
    beta2: float,
    eps: float = 1e-10,
) -> tuple[Float[Tensor, "*batch rows 1"], Float[Tensor, "*batch 1 1"], Float[Tensor, "*batch 1 1"]]:
    """Moves the running mean square of every row (in place); returns what rows are multiplied with, and two norms.

    The squared Frobenius norms before and after the multiplication come from the row means, without another pass over
    the matrix. Over shards of rows they are sums of local numbers, so a sharded step exchanges only these two.

    Returns:
        1 / (sqrt(v) + eps), ||O||_F^2 and ||Oh||_F^2. A row that is zero stays zero whatever its scale.
    """
    mean_square = orthogonal.square().mean(dim=-1, keepdim=True)
    return row_scales_from_(mean_square, orthogonal.shape[-1], second_moment, beta2, eps)


def row_scales_from_(
    mean_square: Float[Tensor, "*batch rows 1"],
    cols: int,
    second_moment: Float[Tensor, "*batch rows 1"],
    beta2: float,
    eps: float = 1e-10,
) -> tuple[Float[Tensor, "*batch rows 1"], Float[Tensor, "*batch 1 1"], Float[Tensor, "*batch 1 1"]]:
    """`row_scales_` of a matrix whose columns are on different processes: it is given the mean squares of the rows."""
    second_moment.lerp_(mean_square, 1 - beta2)
    row_scale = 1 / (second_moment.sqrt() + eps)
    before = cols * mean_square.sum(dim=-2, keepdim=True)
    after = cols * (mean_square * row_scale.square()).sum(dim=-2, keepdim=True)
    return row_scale, before, after


def step_factor(
    scale: str,
    rows: int,
    cols: int,
    before: Float[Tensor, "*batch 1 1"] | None,
    after: Float[Tensor, "*batch 1 1"],
    eps: float = 1e-10,
) -> Float[Tensor, "*batch 1 1"]:
    """What an update is multiplied with, besides the learning rate.

    | scale | factor | used by |
    |---|---|---|
    | rms | 0.2 sqrt(m n) / ||Oh|| : the update has RMS 0.2 exactly | Algorithm 1 of the paper |
    | reference | (||O|| / ||Oh||) sqrt(max(1, m / n)) | the authors' code, Keller Jordan's Muon |
    | spectral | (||O|| / ||Oh||) sqrt(m / n) | microsoft/dion |
    | rms_moonlight | (||O|| / ||Oh||) 0.2 sqrt(max(m, n)) | microsoft/dion, torch.optim.Muon "match_rms_adamw" |
    | none | ||O|| / ||Oh|| | |

    Args:
        rows, cols: m and n of the whole matrix.
        before, after: squared norms of O and of Oh; before is None where rows are not normalised (Muon), so Oh is O.
        eps: added to the divisor, as in the authors' code.
    """
    if scale == "rms":
        # The floor keeps a zero update zero; any other update gets its root mean square exactly.
        return RMS * (rows * cols) ** 0.5 / after.sqrt().clamp_min(torch.finfo(after.dtype).tiny ** 0.5)
    kept = torch.ones_like(after) if before is None else before.sqrt() / (after.sqrt() + eps)
    match scale:
        case "reference":
            return kept * max(1.0, rows / cols) ** 0.5
        case "spectral":
            return kept * (rows / cols) ** 0.5
        case "rms_moonlight":
            return kept * RMS * max(rows, cols) ** 0.5
        case "none":
            return kept
    raise ValueError(f"unknown scale {scale!r}")
