"""Importance of the hidden neurons of an expert and of groups of attention heads.

A neuron j of an expert with gate, up and down matrices computes, for a token t routed to it,

    a_tj = act(w_gate,j · x_t) (w_up,j · x_t),    and adds   g_te a_tj W_down[:, j]   to the layer's output,

with the routing weight g_te. First-order scores ask how a loss L would change if the neuron went: its part of the
Taylor expansion at token t is a_tj ∂L/∂a_tj, where ∂L/∂a = (∂L/∂y) W_down and y = a W_downᵀ is the expert's own output,
before g_te multiplies it. Summed over tokens this equals Σ_k W_down[k, j] ∂L/∂W_down[k, j] exactly, and also
Σ_k W_up[j, k] ∂L/∂W_up[j, k]; adding those would count one quantity twice.

Every score is additive over blocks of tokens: `terms` gives a block's sums, `finish` turns the total into scores.

Sources: SlimMoE (2025, arXiv:2506.18349) for first-order scores of expert neurons; Importance Estimation for Neural
Network Pruning (2019, arXiv:1906.10771) for their Taylor forms; Wanda (2023, arXiv:2306.11695). `energy` is ours: it is
the exact squared error that removing one neuron makes in the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def saliency(
    activations: Float[Tensor, "tokens width"],
    output_gradients: Float[Tensor, "tokens out"],
    weight: Float[Tensor, "out width"],
) -> Float[Tensor, "tokens width"]:
    """a_tj ∂L/∂a_tj of what a matrix multiplies: the first-order loss change, sign reversed, if input j were zero.

    Args:
        activations: inputs of the matrix (down_proj, or o_proj for attention groups).
        output_gradients: ∂L/∂y of its outputs y = a Wᵀ.
        weight: W.
    """
    return activations * (output_gradients @ weight)


def group_columns(values: Float[Tensor, "tokens width"], num_groups: int) -> Float[Tensor, "tokens num_groups"]:
    """Sums over equal runs of columns: the saliency of a group of heads is that of its part of o_proj's input."""
    return values.unflatten(1, (num_groups, -1)).sum(2)


def output_energy(
    activations: Float[Tensor, "tokens width"], weight: Float[Tensor, "out width"], num_groups: int
) -> Float[Tensor, "tokens num_groups"]:
    """‖a_t,G W[:, G]ᵀ‖² for every token and every group G of consecutive columns: what each adds to the output."""
    parts = activations.unflatten(1, (num_groups, -1))
    blocks = weight.unflatten(1, (num_groups, -1))
    return torch.einsum("tgi,ogi->tgo", parts, blocks).square().sum(2)


@dataclass(frozen=True)
class Score:
    """One score.

    Attributes:
        needs: `gradients` of a loss, `activations` only, or `weights` alone.
        terms: (saliency, or activations where no gradient is needed; routing weights (tokens, 1)) -> sums over tokens.
        finish: (sums, norms of the columns of W_down) -> scores.
    """

    needs: str
    terms: Callable[[Tensor, Tensor], Tensor] | None = None
    finish: Callable[[Tensor, Tensor], Tensor] = lambda sums, column_norms: sums


SCORES: dict[str, Score] = {
    # Σ_t (a ∂L/∂a)²: diagonal of the empirical Fisher information in a mask on the neurons.
    "fisher": Score("gradients", lambda change, routing: change.square().sum(0)),
    # Σ_t |a ∂L/∂a|
    "taylor": Score("gradients", lambda change, routing: change.abs().sum(0)),
    # |Σ_t a ∂L/∂a|
    "taylor_total": Score("gradients", lambda change, routing: change.sum(0), lambda sums, norms: sums.abs()),
    # Σ_t (g a)² ‖W_down[:, j]‖²
    "energy": Score(
        "activations", lambda a, routing: (routing * a).square().sum(0), lambda sums, norms: sums * norms.square()
    ),
    # sqrt(Σ_t a²)
    "act_l2": Score("activations", lambda a, routing: a.square().sum(0), lambda sums, norms: sums.sqrt()),
    # sqrt(Σ_t a²) ‖W_down[:, j]‖
    "wanda": Score("activations", lambda a, routing: a.square().sum(0), lambda sums, norms: sums.sqrt() * norms),
    "magnitude": Score("weights"),
    "random": Score("weights"),
}
"""Scores of neurons by name; higher is kept. `magnitude` and `random` see no text."""


def magnitude(
    inward: Sequence[Float[Tensor, "width hidden"]], down: Float[Tensor, "hidden width"]
) -> Float[Tensor, " width"]:
    """sqrt(‖w_gate,j‖² + ‖w_up,j‖² + ‖W_down[:, j]‖²): the size of everything that belongs to a neuron.

    Args:
        inward: gate and up, or up alone.
        down: the other way.
    """
    return sum((matrix.square().sum(1) for matrix in inward), down.square().sum(0)).sqrt()
