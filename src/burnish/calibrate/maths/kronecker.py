"""Kronecker factors of the Fisher matrix of one weight, from its inputs and output gradients.

For a linear layer y = x W^T and one sequence let X (tokens, in) be its inputs and G (tokens, out) the gradient, with
respect to its outputs, of the summed cross-entropy to labels drawn from the model itself. Then vec(G^T X) is the
gradient with respect to W, and F = E[vec vec^T] is both the Fisher matrix and the Hessian of KL(original || perturbed).
It is approximated by H_O (x) H_I, up to a scale that no method here depends on.

* Sketch B keeps the dependence between the tokens of a sequence: with Gw = G^T X,
      H_I = mean_s Gw^T H_O Gw,      H_O = mean_s Gw H_I Gw^T,      both from the identity on the other side.
* Sketch A takes tokens as independent:
      H_I = mean_t (g_t H_O g_t^T) x_t^T x_t,      H_O = mean_t (x_t H_I x_t^T) g_t^T g_t.
* The activation covariance, mean_t x_t^T x_t, is the input side of one-sided methods.

All functions return sums over what they are given; sums of parts add up, and padding counts for nothing where the rows
of X and G are zero. Only lower triangles are filled (`symmetric` completes them), which nearly halves the work.

Source: Model-Preserving Adaptive Rounding (2025, arXiv:2505.22988), section on Hessian sketches. The published program
forms Gw; here the products with a (tokens x tokens) matrix in the middle are used where they are smaller.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 384
"""Side of the blocks in which a lower triangle is computed."""


def lower_product(
    left: Float[Tensor, "rows n"], right: Float[Tensor, "rows n"], into: Float[Tensor, "n n"] | None = None
) -> Float[Tensor, "n n"]:
    """The lower triangle (and a little more) of left^T right, which must be symmetric; added to `into` in place."""
    size = left.shape[-1]
    result = left.new_zeros(size, size) if into is None else into
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        result[start:stop, :stop].addmm_(left[:, start:stop].mT, right[:, :stop])
    return result


def symmetric(lower: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """The symmetric matrix with this lower triangle."""
    return lower.tril() + lower.tril(-1).mT


def covariance_sum(
    inputs: Float[Tensor, "rows in"], into: Float[Tensor, "in in"] | None = None
) -> Float[Tensor, "in in"]:
    """Σ_t x_t^T x_t, lower triangle."""
    return lower_product(inputs, inputs, into)


def sketch_a_sums(
    inputs: Float[Tensor, "rows in"],
    gradients: Float[Tensor, "rows out"],
    *,
    input_factor: Float[Tensor, "in in"] | None = None,
    output_factor: Float[Tensor, "out out"] | None = None,
    into: tuple[Float[Tensor, "in in"], Float[Tensor, "out out"]] | None = None,
) -> tuple[Float[Tensor, "in in"], Float[Tensor, "out out"]]:
    """Σ_t (g_t H_O g_t^T) x_t^T x_t and Σ_t (x_t H_I x_t^T) g_t^T g_t, lower triangles.

    Args:
        inputs, gradients: of any number of tokens.
        input_factor, output_factor: the other side's factor of the round before; None is the identity.
        into: sums to add to in place.
    """
    input_sum, output_sum = into or (None, None)
    weights_of_inputs = _quadratic(gradients, output_factor).sqrt()
    weights_of_gradients = _quadratic(inputs, input_factor).sqrt()
    scaled_inputs, scaled_gradients = weights_of_inputs * inputs, weights_of_gradients * gradients
    return (
        lower_product(scaled_inputs, scaled_inputs, input_sum),
        lower_product(scaled_gradients, scaled_gradients, output_sum),
    )


def sketch_b_sums(
    inputs: Float[Tensor, "sequences tokens in"],
    gradients: Float[Tensor, "sequences tokens out"],
    *,
    input_factor: Float[Tensor, "in in"] | None = None,
    output_factor: Float[Tensor, "out out"] | None = None,
    into: tuple[Float[Tensor, "in in"], Float[Tensor, "out out"]] | None = None,
) -> tuple[Float[Tensor, "in in"], Float[Tensor, "out out"]]:
    """Σ_s Gw^T H_O Gw and Σ_s Gw H_I Gw^T with Gw = G^T X of each sequence, lower triangles.

    Args:
        inputs, gradients: whole sequences, padded with rows of zeros.
        input_factor, output_factor: the other side's factor of the round before; None is the identity.
        into: sums to add to in place.
    """
    input_sum, output_sum = into or (None, None)
    num_tokens, num_in = inputs.shape[1:]
    num_out = gradients.shape[2]
    per_token_with_middle = 2 * num_tokens * (num_in + num_out) + num_in**2 + num_out**2
    per_token_direct = num_in * num_out + num_in * num_out * (num_in + num_out) / num_tokens
    if per_token_direct < per_token_with_middle:
        weight_gradients = gradients.mT @ inputs
        left = weight_gradients if output_factor is None else output_factor @ weight_gradients
        right = weight_gradients if input_factor is None else weight_gradients @ input_factor
        return (
            lower_product(weight_gradients.flatten(0, 1), left.flatten(0, 1), input_sum),
            lower_product(weight_gradients.mT.flatten(0, 1), right.mT.flatten(0, 1), output_sum),
        )
    between_gradients = (gradients if output_factor is None else gradients @ output_factor) @ gradients.mT
    between_inputs = (inputs if input_factor is None else inputs @ input_factor) @ inputs.mT
    return (
        lower_product(inputs.flatten(0, 1), (between_gradients @ inputs).flatten(0, 1), input_sum),
        lower_product(gradients.flatten(0, 1), (between_inputs @ gradients).flatten(0, 1), output_sum),
    )


def by_sequence(
    rows: Float[Tensor, "rows features"], sequence: Tensor, num_sequences: int
) -> Float[Tensor, "sequences tokens features"]:
    """Rows gathered into their sequences, padded with zero rows to the longest.

    Args:
        rows: in any order.
        sequence: number of the sequence of each row, (rows,), int64.
        num_sequences: how many there are; those without rows are all zeros.
    """
    counts = torch.bincount(sequence, minlength=num_sequences)
    order = sequence.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(rows), device=rows.device) - starts[sequence[order]]
    padded = rows.new_zeros((num_sequences, int(counts.max()), rows.shape[1]))
    padded[sequence[order], place] = rows[order]
    return padded


def _quadratic(rows: Float[Tensor, "rows n"], factor: Float[Tensor, "n n"] | None) -> Float[Tensor, "rows 1"]:
    """r H r^T of every row."""
    moved = rows if factor is None else rows @ factor
    return (moved * rows).sum(dim=1, keepdim=True).clamp_(min=0)


def pack_triangle(lower: Float[Tensor, "n n"]) -> Float[Tensor, " packed"]:
    """The n(n+1)/2 numbers of a lower triangle, row by row."""
    size = len(lower)
    if lower.is_cuda:  # a launch per row would take longer than the sums themselves
        return lower[torch.ones_like(lower, dtype=torch.bool).tril_()]
    packed = lower.new_empty(size * (size + 1) // 2)
    for row, numbers in enumerate(packed.split(list(range(1, size + 1)))):  # index tensors would be four times as large
        numbers.copy_(lower[row, : row + 1])
    return packed


def unpack_triangle(packed: Float[Tensor, " packed"]) -> Float[Tensor, "n n"]:
    """The symmetric matrix behind `pack_triangle`."""
    size = int((2 * len(packed)) ** 0.5)
    matrix = packed.new_empty(size, size)
    for row, numbers in enumerate(packed.split(list(range(1, size + 1)))):
        matrix[row, : row + 1] = numbers
        matrix[: row + 1, row] = numbers
    return matrix
