"""Orthogonal matching pursuit of many vectors at once: each as a few atoms of one dictionary.

    r_0 = x,  S_0 = {}
    S_t = S_{t-1} + argmax over atoms j not in S_{t-1} of |<r_{t-1}, d_j>|
    y_t = argmin |x - sum_{j in S_t} y_j d_j|^2,    r_t = x - D_{S_t} y_t

An orthonormal basis q_1 .. q_t of the chosen atoms is kept by Gram and Schmidt, twice for accuracy, so that

    r_t = r_{t-1} - <q_t, r_{t-1}> q_t    and    y solves R y = Q x,   with d_{S_t} = R^T Q.

Vectors of a head have 64 or 128 numbers and a dictionary has 1,000 or 4,000 atoms: correlations with a residual are one
product with the dictionary, which is cheaper than to keep them up to date through the Gram matrix of the atoms, as
batched pursuit for longer vectors does (Rubinstein, Zibulevsky and Elad, Efficient implementation of the K-SVD
algorithm, 2008). The result is the same.

Source: Pati, Rezaiifar and Krishnaprasad, Orthogonal matching pursuit, 1993; of caches Lexico, 2024, arXiv:2412.08890.
Suffixes: B vectors, D numbers of a vector, N atoms, S chosen atoms.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

DEPENDENT = 1e-6
"""Length that is left of a unit atom outside the span of those chosen before, below which it says nothing new."""


def pursue(
    vectors_BD: Float[Tensor, "vectors dim"],
    dictionary_ND: Float[Tensor, "atoms dim"],
    sparsity: int,
    tolerance: float = 0.0,
) -> tuple[Int[Tensor, "vectors sparsity"], Float[Tensor, "vectors sparsity"]]:
    """(atoms in the order of their choice, their coefficients) of every vector.

    Args:
        vectors_BD: x, a row each.
        dictionary_ND: atoms, of unit length.
        sparsity: atoms of a vector; at most as many as there are.
        tolerance: no atom is added where |r| <= tolerance |x|; the coefficients of atoms not added are zero.
    """
    num, places = len(vectors_BD), torch.arange(len(vectors_BD), device=vectors_BD.device)
    residual_BD, basis_BSD = vectors_BD.clone(), vectors_BD.new_zeros(num, sparsity, vectors_BD.shape[1])
    triangle_BSS = torch.eye(sparsity, dtype=vectors_BD.dtype, device=vectors_BD.device).repeat(num, 1, 1)
    projected_BS = vectors_BD.new_zeros(num, sparsity)
    atoms_BS = torch.zeros(num, sparsity, dtype=torch.long, device=vectors_BD.device)
    enough_B = tolerance * vectors_BD.norm(dim=1)
    for step in range(sparsity):
        left_BN = (residual_BD @ dictionary_ND.T).abs_()
        left_BN.scatter_(1, atoms_BS[:, :step], -1.0)
        chosen_B = left_BN.argmax(dim=1)
        atoms_BS[:, step] = chosen_B
        atom_BD, earlier_BSD = dictionary_ND[chosen_B], basis_BSD[:, :step]
        for _ in range(2):
            along_BS = torch.einsum("bsd,bd->bs", earlier_BSD, atom_BD)
            atom_BD = atom_BD - torch.einsum("bs,bsd->bd", along_BS, earlier_BSD)
            triangle_BSS[:, :step, step] += along_BS
        length_B = atom_BD.norm(dim=1)
        new_B = (length_B > DEPENDENT) & (residual_BD.norm(dim=1) > enough_B)
        unit_BD = torch.where(new_B[:, None], atom_BD / length_B.clamp_min(DEPENDENT)[:, None], 0.0)
        basis_BSD[:, step] = unit_BD
        triangle_BSS[places, step, step] = torch.where(new_B, length_B, 1.0)
        projected_BS[:, step] = (unit_BD * residual_BD).sum(dim=1)
        residual_BD = residual_BD - projected_BS[:, step, None] * unit_BD
    return atoms_BS, _solve_upper(triangle_BSS, projected_BS)


def combine(
    atoms_BS: Int[Tensor, "vectors sparsity"],
    coefficients_BS: Float[Tensor, "vectors sparsity"],
    dictionary_ND: Float[Tensor, "atoms dim"],
) -> Float[Tensor, "vectors dim"]:
    """Sums of the chosen atoms times their coefficients."""
    return torch.einsum("bs,bsd->bd", coefficients_BS, dictionary_ND[atoms_BS])


def _solve_upper(
    triangle_BSS: Float[Tensor, "vectors sparsity sparsity"], right_BS: Float[Tensor, "vectors sparsity"]
) -> Float[Tensor, "vectors sparsity"]:
    """Of R y = b with R upper triangular, from the last row on; a call of LAPACK for every vector costs more."""
    solution_BS = right_BS.clone()
    for row in reversed(range(right_BS.shape[1])):
        known_B = (triangle_BSS[:, row, row + 1 :] * solution_BS[:, row + 1 :]).sum(dim=1)
        solution_BS[:, row] = (right_BS[:, row] - known_B) / triangle_BSS[:, row, row]
    return solution_BS
