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

Programs are written in units of their own, powers of two near the largest entries of X, y and w, since tolerances of
the simplex method are those of numbers near one: X in millimetres and X in miles have the same path.

Source: Parametric Simplex Method for Sparse Learning, Pang, Liu, Vanderbei, Zhao, NIPS 2017; Dantzig selector: Candes,
Tao, 2007; CLIME: Cai, Liu, Luo, 2011 (arXiv:1102.2233); l1 quantile regression: Belloni, Chernozhukov, 2011
(arXiv:0904.2931); l1-norm support vector machine: Zhu, Rosset, Hastie, Tibshirani, 2003.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.sparse as sp

from burnish.linear_model.maths.operators import Array, Design, Gram, Indices, Margins, Matrix, Mirrored, Operator
from burnish.linear_model.maths.simplex import ROUNDING, Basis, Point, Program


@dataclass(frozen=True)
class Problem:
    """A program, where its path starts, and how its points are read.

    Attributes:
        program, start: for `simplex.follow`.
        solution: (indices, values) of b and the intercept at a point.
        value: the problem's objective at a point.
        certificate: (indices, values) of the multipliers of the problem's constraints at a point.
        num_constraints: how many there are.
        parameter_unit, objective_unit: lambda and the objective are the program's times these.
        upward: the program's parameter is -lambda, so that the path begins at lambda = 0.
        is_over: whether a point lies beyond the last breakpoint that means something.
        between: coefficients between two breakpoints, see `SolutionPath`.
    """

    program: Program
    start: Basis
    solution: Callable[[Point], tuple[Indices, Array, float]]
    value: Callable[[Point], float]
    certificate: Callable[[Point], tuple[Indices, Array]]
    num_constraints: int
    parameter_unit: float = 1.0
    objective_unit: float = 1.0
    upward: bool = False
    is_over: Callable[[Point], bool] = lambda point: False
    between: Literal["linear", "constant"] = "linear"


def unit_of(values: Design) -> float:
    """A power of two near the largest of the absolute values; 1 where all are zero."""
    entries = values.data if sp.issparse(values) else values
    largest = float(np.abs(entries).max(initial=0.0))
    return 2.0 ** round(math.log2(largest)) if largest else 1.0


def dantzig(design: Design, target: Array) -> Problem:
    squares = design.power(2) if sp.issparse(design) else design**2
    unit = unit_of(np.sqrt(np.asarray(squares.sum(axis=0))))  # of a sparse matrix the sum is np.matrix
    design = design / unit
    inner = _smallest_norm(
        Gram(design), np.asarray(design.T @ target), unit
    )  # with lambda / unit in the place of lambda

    def certificate(point: Point) -> tuple[Indices, Array]:
        rows, multipliers = inner.certificate(point)
        return rows, multipliers / unit

    return replace(inner, parameter_unit=inner.parameter_unit * unit, certificate=certificate)


def compressed_sensing(design: Design, target: Array) -> Problem:
    unit = unit_of(design)
    return _smallest_norm(Matrix(design / unit), target, unit)


def clime_column(covariance: Array, column: int) -> Problem:
    target, unit = np.zeros(covariance.shape[0]), unit_of(covariance)
    target[column] = 1.0
    return _smallest_norm(Matrix(covariance / unit), target, unit)


def _smallest_norm(half: Operator, target: Array, unit: float) -> Problem:
    """min ‖b‖₁ with ‖target − M b‖∞ ≤ λ, where M is half times unit."""
    matrix = Mirrored(half, columns=True)
    num_rows, num_columns = matrix.shape
    size, height = num_columns // 2, unit_of(target)
    bounds = np.column_stack([np.concatenate([target, -target]) / height, np.ones(num_rows)])
    costs = np.column_stack([np.full(num_columns, -1.0), np.zeros(num_columns)])

    def solution(point: Point) -> tuple[Indices, Array, float]:
        return *_signed(point.columns, point.values * (height / unit), size), 0.0

    return Problem(
        program=Program(matrix, bounds, costs, np.full(num_columns, np.inf)),
        start=Basis.of_slacks(),
        solution=solution,
        value=lambda point: -point.objective * (height / unit),
        certificate=lambda point: _signed(point.rows, -point.multipliers / unit, num_rows // 2),
        num_constraints=num_rows // 2,
        parameter_unit=height,
        objective_unit=height / unit,
    )


def quantile(design: Design, target: Array, tau: float, weights: Array, *, intercept: bool) -> Problem:
    """The dual with v = u + (1 − τ) w, so that 0 ≤ v ≤ w.

    An intercept is one more column of X whose multiplier has no price: its row must hold with equality from the start,
    so the samples with the largest y are counted until it does.
    """
    num_samples, size = design.shape
    unit, height, load = unit_of(design), unit_of(target), unit_of(weights)
    design, target, weights = design / unit, target / height, weights / load
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
        indices, values = _signed(point.rows, point.multipliers * height, rows)
        feature = indices < size
        return indices[feature], values[feature] / unit, float(values[~feature].sum())

    return Problem(
        program=Program(Mirrored(Matrix(design.T), columns=False), np.vstack(limits), costs, weights),
        start=start,
        solution=solution,
        value=lambda point: (point.objective - shift) * (height * load),
        certificate=lambda point: (point.columns, point.values * load),
        num_constraints=num_samples,
        parameter_unit=unit * load,
        objective_unit=height * load,
        between="constant",
    )


def support_vectors(design: Design, signs: Array, weights: Array) -> Problem:
    """The dual, max Σ a − λ v with |Zᵀa| ≤ v, yᵀa = 0, 0 ≤ a ≤ w; its parameter is −λ, so that going down raises λ.

    At λ = 0 nothing is learned: the lighter class is counted in full and of the other as much as balances it.
    """
    num_samples, num_features = design.shape
    unit, load = unit_of(design), unit_of(weights)
    design, weights = design / unit, weights / load
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
        coefficients = _signed(point.rows[feature], point.multipliers[feature] / unit, num_features)
        return *coefficients, float(balance @ point.multipliers[~feature])

    def certificate(point: Point) -> tuple[Indices, Array]:
        return point.columns, point.values * np.where(point.columns < num_samples, load, load * unit)

    def is_over(point: Point) -> bool:
        """The bound on the norm has no price: coefficients may go on changing, the loss does not."""
        return bool(point.values[point.columns == num_samples].sum() <= ROUNDING * num_samples)

    return Problem(
        program=Program(matrix, bounds, costs, upper),
        start=Basis(rows, np.array([num_samples, heavy[partial]]), at_upper),
        solution=solution,
        value=lambda point: point.objective * load,
        certificate=certificate,
        num_constraints=num_samples + 1,
        parameter_unit=1 / unit,
        objective_unit=load,
        upward=True,
        is_over=is_over,
    )


def _signed(indices: Indices, values: Array, size: int) -> tuple[Indices, Array]:
    """Entries of a signed vector from those of its positive and negative parts, zeros left out, in order."""
    inner = np.where(indices >= size, indices - size, indices)
    signed = np.where(indices >= size, -values, values)
    kept = np.flatnonzero(signed)
    kept = kept[np.argsort(inner[kept], kind="stable")]
    return inner[kept], signed[kept]
