"""A dictionary under which vectors of one kind are sums of a few atoms: learned by gradient behind the pursuit.

    loss = mean |x - D y(x)|^2,   y(x) by orthogonal matching pursuit, no gradient through it

    gradient of atom j:  g_j = -2 mean over x of y_j(x) (x - D y(x)),   then   g_j - <g_j, d_j> d_j
    d_j <- d_j - step of Adam,   then   d_j / |d_j|

Atoms have unit length throughout. The learning rate falls by a half cosine to zero.

Source: Lexico: Extreme KV Cache Compression via Sparse Coding over Universal Dictionaries, 2024, arXiv:2412.08890.
There atoms begin at random; here they begin as vectors of the data, as in K-SVD (Aharon, Elad and Bruckstein, 2006).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from burnish.quantize.maths.pursuit import combine, pursue


def first_atoms(
    vectors: Float[Tensor, "vectors dim"], num_atoms: int, generator: torch.Generator
) -> Float[Tensor, "atoms dim"]:
    """Unit atoms to begin with: vectors drawn from the data, and random directions where it has too few.

    A vector without length gives a random direction too.
    """
    drawn = vectors[torch.randperm(len(vectors), generator=generator)[:num_atoms].to(vectors.device)]
    noise = torch.randn(num_atoms, vectors.shape[1], generator=generator).to(vectors)
    usable = drawn.norm(dim=1, keepdim=True) > 0
    noise[: len(drawn)] = torch.where(usable, drawn, noise[: len(drawn)])
    return functional.normalize(noise, dim=1)


def learn_dictionary(
    vectors: Float[Tensor, "vectors dim"],
    num_atoms: int,
    sparsity: int,
    generator: torch.Generator,
    *,
    epochs: int,
    batch: int,
    lr: float,
) -> Float[Tensor, "atoms dim"]:
    """Atoms, a row each, learned on vectors.

    Args:
        vectors: what is to be coded.
        num_atoms: of the dictionary.
        sparsity: atoms of a vector while learning.
        generator: of the first atoms and of the order of vectors.
        epochs: times that every vector is seen.
        batch: vectors of a step.
        lr: learning rate of the first step.
    """
    atoms = first_atoms(vectors, num_atoms, generator)
    optimizer = torch.optim.Adam([atoms], lr=lr)
    steps_an_epoch = math.ceil(len(vectors) / batch)
    for epoch in range(epochs):
        order = torch.randperm(len(vectors), generator=generator).to(vectors.device)
        for number, places in enumerate(order.split(batch)):
            done = (epoch * steps_an_epoch + number) / (epochs * steps_an_epoch)
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * done)) / 2
            atoms.grad = tangent_gradient(vectors[places], atoms, sparsity)
            optimizer.step()
            atoms.div_(atoms.norm(dim=1, keepdim=True))
    return atoms


def tangent_gradient(
    vectors: Float[Tensor, "vectors dim"], atoms: Float[Tensor, "atoms dim"], sparsity: int
) -> Float[Tensor, "atoms dim"]:
    """Of the mean squared error with the codes held fixed, less its part along each atom."""
    chosen, coefficients = pursue(vectors, atoms, sparsity)
    error = vectors - combine(chosen, coefficients, atoms)
    pushes = coefficients[:, :, None] * error[:, None, :]
    gradient = torch.zeros_like(atoms).index_add_(0, chosen.flatten(), pushes.flatten(0, 1))
    gradient *= -2 / len(vectors)
    return gradient - (gradient * atoms).sum(dim=1, keepdim=True) * atoms
