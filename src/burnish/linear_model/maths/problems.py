"""Five l1 problems as parametric programs, and what their solutions mean.

| problem | at lambda | the program that is followed |
| --- | --- | --- |
| Dantzig selector | min ‖b‖₁ with ‖Xᵀ(y − X b)‖∞ ≤ λ | itself, b = b⁺ − b⁻ |
| compressed sensing | min ‖b‖₁ with ‖y − X b‖∞ ≤ λ | itself |
| column j of CLIME | min ‖b‖₁ with ‖Σ b − e_j‖∞ ≤ λ | itself |
| quantile regression | min Σ w ρ_τ(y − X b) + λ ‖b‖₁ | its dual: max yᵀu, ‖Xᵀu‖∞ ≤ λ, w(τ − 1) ≤ u ≤ wτ |
| sparse SVM | min Σ w hinge(1 − y(x b + b₀)) with ‖b‖₁ ≤ λ | its dual, from λ = 0 upward |

ρ_τ(r) = τ max(r, 0) + (1 − τ) max(−r, 0). There is no 1/n, no intercept unless asked for (the SVM has one), and X is
used as it is. In each program the active block has the size of the sparse solution, which is why the last two are
followed in their duals, whose multipliers are b: there a sample with its loss at a bound is a column at a bound, and
only samples exactly on the fit are in the block.

Source: Parametric Simplex Method for Sparse Learning, Pang, Liu, Vanderbei, Zhao, NIPS 2017; Dantzig selector: Candes,
Tao, 2007; CLIME: Cai, Liu, Luo, 2011 (arXiv:1102.2233); l1 quantile regression: Belloni, Chernozhukov, 2011
(arXiv:0904.2931); l1-norm support vector machine: Zhu, Rosset, Hastie, Tibshirani, 2003.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp

from burnish.linear_model.maths.operators import Array, Design, Gram, Indices, Margins, Matrix, Mirrored, Operator
from burnish.linear_model.maths.simplex import Basis, Point, Program


@dataclass(frozen=True)
class Problem:
    """A program, where its path starts, and how its points are read.

    Attributes:
        program, start: for `simplex.follow`.
        solution: (indices, values) of b and the intercept at a point.
        value: the problem's objective at a point.
        certificate: (indices, values) of the multipliers of the problem's constraints at a point.
        num_constraints: how many there are.
        upward: the program's parameter is -lambda, so that the path begins at lambda = 0.
        between: coefficients between two breakpoints, see `SolutionPath`.
    """

    program: Program
    start: Basis
    solution: Callable[[Point], tuple[Indices, Array, float]]
    value: Callable[[Point], float]
    certificate: Callable[[Point], tuple[Indices, Array]]
    num_constraints: int
    upward: bool = False
    between: Literal["linear", "constant"] = "linear"


def dantzig(design: Design, target: Array) -> Problem:
    return _smallest_norm(Gram(design), np.asarray(design.T @ target))


def compressed_sensing(design: Design, target: Array) -> Problem:
    return _smallest_norm(Matrix(design), target)


def clime_column(covariance: Matrix, column: int) -> Problem:
    target = np.zeros(covariance.shape[0])
    target[column] = 1.0
    return _smallest_norm(covariance, target)


def _smallest_norm(half: Operator, target: Array) -> Problem:
    """min ‖b‖₁ with ‖target − M b‖∞ ≤ λ."""
    matrix = Mirrored(half, columns=True)
    num_rows, num_columns = matrix.shape
    size = num_columns // 2
    bounds = np.column_stack([np.concatenate([target, -target]), np.ones(num_rows)])
    costs = np.column_stack([np.full(num_columns, -1.0), np.zeros(num_columns)])

    def solution(point: Point) -> tuple[Indices, Array, float]:
        return *_signed(point.columns, point.values, size), 0.0

    return Problem(
        program=Program(matrix, bounds, costs, np.full(num_columns, np.inf)),
        start=Basis.of_slacks(),
        solution=solution,
        value=lambda point: -point.objective,
        certificate=lambda point: _signed(point.rows, -point.multipliers, num_rows // 2),
        num_constraints=num_rows // 2,
    )


def quantile(design: Design, target: Array, tau: float, weights: Array, *, intercept: bool) -> Problem:
    """The dual with v = u + (1 − τ) w, so that 0 ≤ v ≤ w.

    An intercept is one more column of X whose multiplier has no price: its row must hold with equality from the start,
    so the samples with the largest y are counted until it does.
    """
    num_samples, size = design.shape
    offset = (1 - tau) * weights
    below = np.asarray(design.T @ offset)
    limits = np.column_stack([below, np.ones(size)]), np.column_stack([-below, np.ones(size)])
    start = Basis.of_slacks(np.flatnonzero(target > 0))
    if intercept:
        one = np.ones((num_samples, 1))
        design = sp.csr_array(sp.hstack([design, one])) if sp.issparse(design) else np.hstack([design, one])
        total = np.array([[offset.sum(), 0.0]])
        limits = np.vstack([limits[0], total]), np.vstack([limits[1], -total])
        order = np.argsort(-target, kind="stable")
        order = order[weights[order] > 0]
        partial = min(int(np.searchsorted(np.cumsum(weights[order]), offset.sum())), len(order) - 1)
        # Its multiplier is the target of that sample, so the sign says which copy of the row is active.
        row = size if target[order[partial]] >= 0 else 2 * size + 1
        start = Basis(np.array([row]), order[[partial]], order[:partial])
    rows = design.shape[1]
    costs = np.column_stack([target, np.zeros(num_samples)])
    shift = float(offset @ target)

    def solution(point: Point) -> tuple[Indices, Array, float]:
        indices, values = _signed(point.rows, point.multipliers, rows)
        feature = indices < size
        return indices[feature], values[feature], float(values[~feature].sum())

    return Problem(
        program=Program(Mirrored(Matrix(design.T), columns=False), np.vstack(limits), costs, weights),
        start=start,
        solution=solution,
        value=lambda point: point.objective - shift,
        certificate=lambda point: (point.columns, point.values),
        num_constraints=num_samples,
        between="constant",
    )


def support_vectors(design: Design, signs: Array, weights: Array) -> Problem:
    """The dual, max Σ a − λ v with |Zᵀa| ≤ v, yᵀa = 0, 0 ≤ a ≤ w; its parameter is −λ, so that going down raises λ.

    At λ = 0 nothing is learned: the lighter class is counted in full and of the other as much as balances it.
    """
    num_samples, num_features = design.shape
    matrix = Margins(design, signs)
    bounds = np.zeros((2 * num_features + 2, 2))
    costs = np.zeros((num_samples + 1, 2))
    costs[:num_samples, 0] = 1.0
    costs[num_samples, 1] = 1.0  # −λ v with the parameter −λ
    upper = np.append(weights, np.inf)

    positive = weights[signs > 0].sum() >= weights[signs < 0].sum()
    heavy = np.flatnonzero((signs > 0) == positive)
    light = np.flatnonzero((signs > 0) != positive)
    counted = np.cumsum(weights[heavy])
    partial = int(np.searchsorted(counted, weights[light].sum()))
    at_upper = np.concatenate([light, heavy[:partial]])
    alpha = np.zeros(num_samples)
    alpha[at_upper] = weights[at_upper]
    alpha[heavy[partial]] = weights[light].sum() - alpha[heavy].sum()
    correlation = np.asarray(design.T @ (signs * alpha))
    steepest = int(np.abs(correlation).argmax())
    rows = np.array(
        [
            steepest if correlation[steepest] >= 0 else num_features + steepest,
            2 * num_features if positive else 2 * num_features + 1,
        ]
    )

    def solution(point: Point) -> tuple[Indices, Array, float]:
        feature = point.rows < 2 * num_features
        balance = np.where(point.rows[~feature] == 2 * num_features, 1.0, -1.0)
        coefficients = _signed(point.rows[feature], point.multipliers[feature], num_features)
        return *coefficients, float(balance @ point.multipliers[~feature])

    return Problem(
        program=Program(matrix, bounds, costs, upper),
        start=Basis(rows, np.array([num_samples, heavy[partial]]), at_upper),
        solution=solution,
        value=lambda point: point.objective,
        certificate=lambda point: (point.columns, point.values),
        num_constraints=num_samples + 1,
        upward=True,
    )


def _signed(indices: Indices, values: Array, size: int) -> tuple[Indices, Array]:
    """Entries of a signed vector from those of its positive and negative parts, zeros left out, in order."""
    inner = np.where(indices >= size, indices - size, indices)
    signed = np.where(indices >= size, -values, values)
    kept = np.flatnonzero(signed)
    kept = kept[np.argsort(inner[kept], kind="stable")]
    return inner[kept], signed[kept]
