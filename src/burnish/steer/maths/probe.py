"""Which heads know whether a step checks, and the direction in which they say so, from sums over steps alone.

Head h of a layer adds a_h = W_h o_h to the residual stream, where o_h (width d) is what it puts before the output
projection and W_h (hidden x d) its columns of that projection. Everything that is asked of a_h follows from sums of o_h
over the tokens that end a step, with labels y = +1 for linear and -1 for checking steps,

    S_h = Σ o_h o_hᵀ,     m_h = Σ o_h,     t_h = Σ y o_h,

so a layer's activations are never kept.

* The probe is w = argmin Σ (y - w·a_h)² + λ‖w‖², without a constant. It lies in the range of W_h: with W_h = Q R (QR
  decomposition), w = Q (R S_h Rᵀ + λ I)⁻¹ R t_h.
* The direction is the mean of checking steps minus that of linear ones, cut to the leading eigenvectors of the layer's
  pooled covariance Σ_h W_h (S_h - m_h m_hᵀ / n) W_hᵀ, at unit length.
* S_h does not depend on labels, so probes of permuted labels cost a vector each. Labels are shifted round all steps in
  their order, which leaves how long a check goes on as it is.

The paper (arXiv:2512.24574) has logistic probes; its calibration was not released, and squared loss, the subspace and
the test are our reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

RIDGE = 1e-3
"""λ, of the mean eigenvalue of Σ a aᵀ in the range of W_h."""


@dataclass
class HeadSums:
    """Sums over steps for all heads of one layer, in float64.

    Attributes:
        second: S, (heads, width, width).
        first: m, (heads, width).
        labelled: t for the true labels and then for each permutation, (1 + permutations, heads, width).
        num: of steps.
        num_checking: how many of them check.
    """

    second: Float[Tensor, "heads width width"]
    first: Float[Tensor, "heads width"]
    labelled: Float[Tensor, "labels heads width"]
    num: int = 0
    num_checking: int = 0

    @classmethod
    def empty(cls, num_heads: int, width: int, num_labels: int, device: torch.device | str = "cpu") -> HeadSums:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        return cls(zeros(num_heads, width, width), zeros(num_heads, width), zeros(num_labels, num_heads, width))

    def add(self, outputs: Float[Tensor, "steps heads width"], labels: Float[Tensor, "labels steps"]) -> None:
        """Adds steps: what each head puts before the output projection, and the labels, +1 or -1."""
        outputs, labels = outputs.double(), labels.double()
        self.second += torch.einsum("nhd,nhe->hde", outputs, outputs)
        self.first += outputs.sum(0)
        self.labelled += torch.einsum("kn,nhd->khd", labels, outputs)
        self.num += len(outputs)
        self.num_checking += int((labels[0] < 0).sum())


def by_head(projection: Float[Tensor, "hidden inputs"], num_heads: int) -> Float[Tensor, "heads hidden width"]:
    """W_h for every head, from an output projection stored (out, in)."""
    return projection.unflatten(1, (num_heads, -1)).transpose(0, 1)


def contributions(
    outputs: Float[Tensor, "steps heads width"], weights: Float[Tensor, "heads hidden width"]
) -> Float[Tensor, "steps heads hidden"]:
    """a_h = W_h o_h; summed over heads, the output of the projection without its bias."""
    return torch.einsum("nhd,hcd->nhc", outputs, weights)


def probes(sums: HeadSums, weights: Float[Tensor, "heads hidden width"]) -> Float[Tensor, "labels heads hidden"]:
    """The ridge probe of every head for every labelling."""
    found = []
    for head, weight in enumerate(weights.double()):
        q, r = torch.linalg.qr(weight)
        second = r @ sums.second[head] @ r.T
        ridge = RIDGE * second.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
        second.diagonal().add_(ridge)
        found.append(torch.linalg.solve(second, r @ sums.labelled[:, head].T).T @ q.T)
    return torch.stack(found, 1)


def subspace(sums: HeadSums, weights: Float[Tensor, "heads hidden width"], rank: int) -> Float[Tensor, "hidden rank"]:
    """The leading eigenvectors of the covariance of the heads' contributions, pooled over the heads of a layer."""
    mean = sums.first / sums.num
    covariance = sums.second - sums.num * mean[:, :, None] * mean[:, None, :]
    w = weights.double()
    pooled = torch.einsum("hcd,hde,hbe->cb", w, covariance, w)
    return torch.linalg.eigh(pooled).eigenvectors[:, -rank:]


def linear_mean(
    sums: HeadSums, weights: Float[Tensor, "heads hidden width"], bias: Float[Tensor, " hidden"] | None
) -> Float[Tensor, " hidden"]:
    """The mean over linear steps of the projection's output, Σ_h W_h o_h + bias."""
    linear = (sums.first + sums.labelled[0]) / 2 / (sums.num - sums.num_checking)
    mean = torch.einsum("hcd,hd->c", weights.double(), linear)
    return mean if bias is None else mean + bias.double()


def directions(
    sums: HeadSums, weights: Float[Tensor, "heads hidden width"], basis: Float[Tensor, "hidden rank"] | None
) -> Float[Tensor, "heads hidden"]:
    """Mean of checking steps minus mean of linear ones, of every head, in the subspace and at unit length.

    Args:
        sums: whose first labelling is the true one, with steps of both kinds.
        weights: W_h.
        basis: of `subspace`; None for the whole space.

    Returns:
        Unit vectors; zero where a head makes no difference at all.
    """
    linear, checking = (sums.first + sums.labelled[0]) / 2, (sums.first - sums.labelled[0]) / 2
    difference = checking / sums.num_checking - linear / (sums.num - sums.num_checking)
    return unit(torch.einsum("hcd,hd->hc", weights.double(), difference), basis)


def unit(
    vectors: Float[Tensor, "heads hidden"], basis: Float[Tensor, "hidden rank"] | None = None
) -> Float[Tensor, "heads hidden"]:
    """Vectors at unit length, cut to a subspace; zero stays zero."""
    kept = vectors if basis is None else vectors @ basis @ basis.T
    length = kept.norm(dim=1, keepdim=True)
    return torch.where(length > 0, kept / torch.where(length > 0, length, 1.0), kept)


def right(
    outputs: Float[Tensor, "steps heads width"],
    labels: Float[Tensor, "labels steps"],
    inner: Float[Tensor, "labels heads width"],
) -> Int[Tensor, "labels heads"]:
    """How many steps the probes call right: the sign of w·a = (W_hᵀ w)·o against y.

    Args:
        outputs: o of steps that no probe was fitted on.
        labels: their labels, +1 or -1, for the true and each permuted labelling.
        inner: W_hᵀ w of the probe of each labelling.
    """
    score = torch.einsum("nhd,khd->khn", outputs.double(), inner)
    return (torch.where(score < 0, -1, 1) == labels[:, None, :]).sum(2)


def shifted(labels: Float[Tensor, " steps"], shifts: Int[Tensor, " permutations"]) -> Float[Tensor, "labels steps"]:
    """The labels, and then the labels shifted round by so many steps."""
    place = torch.arange(len(labels), device=labels.device)
    return torch.cat([labels[None], labels[(place[None] + shifts[:, None]) % max(len(labels), 1)]])


def chance_level(accuracies: Float[Tensor, "permutations heads"], confidence: float = 0.95) -> float:
    """What the best of all heads reaches on permuted labels, but for 1 - confidence of the permutations.

    Against the best head, not each against its own: of 336 heads some beat their own level by luck.
    """
    return float(torch.quantile(accuracies.double().amax(1), confidence))
