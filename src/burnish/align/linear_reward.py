"""A linear reward on fixed features, and its cross-fitted margins: the cheap, honest instrument of the label audit.

The reward of an answer is r(y) = <w, x(y)>, so a pair's margin is <w, d> with d = x(chosen) - x(rejected), and a fit
is convex for every loss of `burnish.align.losses`:

    w = argmin  mean over pairs of f(<w, d>) + l2/2 |w|^2          (L-BFGS in float64, gradient in closed form)

Cross-fitting splits the pairs into folds and scores each fold by the fit on the others, so that no pair is scored by a
reward that has seen its label. All pairs of a group (one prompt) share a fold: their answers are often the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize

from burnish.align.losses import pair_loss

Matrix = Any
"""numpy array or scipy sparse matrix, [pairs, features]."""

MAX_ITERATIONS = 300
LARGEST_GRAM = 4000
"""Pairs beyond which the Gram matrix costs more than it saves."""


def fit_linear_reward(differences: Matrix, loss: str, *, l2: float, **settings: Any) -> np.ndarray:
    """The weights of the reward.

    Args:
        differences: features of the chosen minus features of the rejected answer, [pairs, features].
        loss: a name in `burnish.align.losses.LOSSES`.
        l2: weight of |w|^2 / 2.
        **settings: rho0, tau0, tau_max, lam, as the loss reads them.
    """
    num_pairs, num_features = differences.shape
    transposed = differences.T

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        losses, found = pair_loss(loss, torch.from_numpy(differences @ weights), **settings)  # type: ignore[arg-type]
        gradient = l2 * weights - transposed @ found["weight"].numpy() / num_pairs
        return losses.mean().item() + l2 / 2 * float(weights @ weights), gradient

    found = minimize(
        objective,
        np.zeros(num_features),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "ftol": 1e-10, "gtol": 1e-7},
    )
    return found.x


def folds_of_groups(groups: Sequence[Any], num_folds: int, generator: torch.Generator) -> np.ndarray:
    """A fold per pair; pairs of one group share it, and folds hold nearly equally many groups."""
    names = sorted(set(groups), key=str)
    order = torch.randperm(len(names), generator=generator).tolist()
    fold = {names[index]: place % num_folds for place, index in enumerate(order)}
    return np.array([fold[group] for group in groups])


def cross_fitted_margins(
    differences: Matrix,
    groups: Sequence[Any],
    loss: str,
    *,
    l2: float,
    num_folds: int,
    num_repeats: int,
    generator: torch.Generator,
    covariates: np.ndarray | None = None,
    **settings: Any,
) -> np.ndarray:
    """Margin of every pair under rewards that never saw its group, [repeats, pairs]; each repeat has new folds.

    Covariates [pairs, some] are fitted with the features and left out of the margins: what they explain is no evidence.
    """
    num_pairs, num_features = differences.shape
    margins = np.zeros((num_repeats, num_pairs))
    fitted = differences if covariates is None else _beside(differences, covariates)
    for repeat in range(num_repeats):
        fold = folds_of_groups(groups, num_folds, generator)
        for number in range(num_folds):
            inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            if len(outside):
                weights = fit_linear_reward(fitted[inside], loss, l2=l2, **settings)
                margins[repeat, outside] = differences[outside] @ weights[:num_features]
    return margins


def _beside(differences: Matrix, covariates: np.ndarray) -> Matrix:
    if sparse.issparse(differences):
        return sparse.csr_matrix(sparse.hstack([differences, sparse.csr_matrix(covariates)]))
    return np.hstack([differences, covariates])


def rotated(differences: Matrix) -> np.ndarray:
    """The same pairs in at most as many coordinates as there are pairs: every fit has the same margins, and is cheaper.

    The weights enter a fit through <w, d> and |w| alone, so d may be turned: with the Gram matrix D D^T = U S U^T, the
    rows of U sqrt(S) have the inner products of the rows of D.
    """
    num_pairs, num_features = differences.shape
    if num_features <= num_pairs or num_pairs > LARGEST_GRAM:
        return differences
    gram = differences @ differences.T
    values, vectors = np.linalg.eigh(gram.toarray() if sparse.issparse(gram) else gram)
    kept = values > values[-1] * 1e-12
    return vectors[:, kept] * np.sqrt(values[kept])


def unit_scale(differences: Matrix) -> Matrix:
    """Every feature divided by its root mean square, and all by the root of their number: |d| is about 1 per pair.

    Differences are antisymmetric under exchanging the answers, so nothing is subtracted. Labels are not used.
    """
    if sparse.issparse(differences):
        size = np.sqrt(differences.multiply(differences).sum() / max(1, differences.shape[0]))
        return sparse.csr_matrix(differences / max(size, 1e-12))
    differences = np.asarray(differences, dtype=np.float64)
    size = np.sqrt(np.mean(differences**2, axis=0))
    return differences / np.where(size > 1e-12, size, 1.0) / np.sqrt(differences.shape[1])
