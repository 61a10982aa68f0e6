"""`parametric_simplex`: the path of a program that the user writes down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from burnish.linear_model.maths.operators import Array, Indices, Matrix
from burnish.linear_model.maths.simplex import Basis, Program, Trace, follow
from burnish.linear_model.settings import ParameterError, check_count, check_number


@dataclass(frozen=True)
class ParametricSolution:
    """The path of a general program.

    Attributes:
        lambdas: breakpoints, decreasing, shape (num_breakpoints,); the last is `lambda_min` where the path got there.
        x: solutions, sparse, shape (num_breakpoints, n). Between breakpoints: the interpolation where only the bounds
            move (cbar = 0), the row of the smaller breakpoint where only the costs do (bbar = 0).
        duals: multipliers of A x = b + lambda bbar, shape (num_breakpoints, m).
        values: (c + lambda cbar)^T x.
        gaps: |primal - dual objective|.
        violations: the largest violation of a sign or constraint, relative to the data.
        stopped_by: "complete", "limit" (lambda_min), "max_iter", "infeasible", "unbounded" or a numerical reason.
        num_pivots: steps.
    """

    lambdas: Array
    x: sp.csr_array
    duals: Array
    values: Array
    gaps: Array
    violations: Array
    stopped_by: str
    num_pivots: int


def parametric_simplex(
    A: Any,
    b: Any,
    bbar: Any,
    c: Any,
    cbar: Any,
    *,
    basis: Any = None,
    lambda_min: float = 0.0,
    max_iter: int | None = None,
) -> ParametricSolution:
    """max (c + lambda cbar)^T x subject to A x = b + lambda bbar, x >= 0, for every lambda >= lambda_min.

    Args:
        A: m rows and n columns, dense or scipy.sparse.
        b, bbar: shape (m,).
        c, cbar: shape (n,).
        basis: m columns that are an optimal basis for every large lambda; None takes the slack columns of A (unit
            vectors).
        lambda_min: where the path ends.
        max_iter: steps at most; None for no limit.

    Raises:
        ParameterError: shapes or values are impossible, or the basis is not optimal for large lambda.

    Source: Gass and Saaty, 1955; Vanderbei, Linear Programming, the parametric self-dual simplex method.
    """
    check_number("lambda_min", lambda_min)
    check_count("max_iter", max_iter)
    A = sp.csc_array(A, dtype=np.float64) if sp.issparse(A) else np.asarray(A, dtype=np.float64)
    if A.ndim != 2:
        raise ParameterError(f"A has {A.ndim} dimensions, but must have 2")
    num_rows, num_columns = A.shape
    bounds = np.column_stack([_vector("b", b, num_rows), _vector("bbar", bbar, num_rows)])
    costs = np.column_stack([_vector("c", c, num_columns), _vector("cbar", cbar, num_columns)])
    if not np.isfinite(A.data if sp.issparse(A) else A).all():
        raise ParameterError("A holds values that are not finite")
    chosen: Any = _slack_columns(A) if basis is None else _checked_basis(basis, num_rows, num_columns)
    inverse = None
    if basis is not None:
        square = A[:, chosen].toarray() if sp.issparse(A) else A[:, chosen]
        if np.linalg.matrix_rank(square) < num_rows:
            raise ParameterError("basis names columns of A that are not independent", fix="choose others")
        inverse = np.linalg.inv(square)
        A, bounds = inverse @ A, inverse @ bounds
    rest = np.setdiff1d(np.arange(num_columns), chosen)
    own = costs[chosen]  # of the slacks, taken out of the others' costs
    reduced = costs[rest] - A[:, rest].T @ own
    program = Program(Matrix(A[:, rest]), bounds, reduced, np.full(len(rest), np.inf))
    trace = Trace()
    points = []
    _check_start(bounds, reduced)
    for point in follow(program, Basis.of_slacks(), trace, last=lambda_min, max_iter=max_iter):
        points.append(point)
    lambdas = np.array([point.parameter for point in points])
    solutions = sp.lil_array((len(points), num_columns))
    duals = np.zeros((len(points), num_rows))
    values = np.empty(len(points))
    for number, point in enumerate(points):
        where = np.array([1.0, point.parameter])
        solutions[number, rest[point.columns]] = point.values
        x = np.zeros(len(rest))
        x[point.columns] = point.values
        solutions[number, chosen] = np.maximum(bounds @ where - A[:, rest] @ x, 0.0)
        duals[number, point.rows] = point.multipliers
        duals[number] += own @ where
        values[number] = point.objective + own @ where @ (bounds @ where)
    if inverse is not None:
        duals = duals @ inverse
    return ParametricSolution(
        lambdas=lambdas,
        x=sp.csr_array(solutions),
        duals=duals,
        values=values,
        gaps=np.array([point.gap for point in points]),
        violations=np.array([point.violation for point in points]),
        stopped_by=trace.stopped_by,
        num_pivots=trace.num_pivots,
    )


def _vector(name: str, values: Any, size: int) -> Array:
    vector = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(vector) != size:
        raise ParameterError(f"{name} has {len(vector)} entries, but A asks for {size}")
    if not np.isfinite(vector).all():
        raise ParameterError(f"{name} holds values that are not finite")
    return vector


def _slack_columns(A: Any) -> Indices:
    """For every row a column of A that is its unit vector."""
    columns = sp.csc_array(A)
    counts = np.diff(columns.indptr)
    found = np.full(A.shape[0], -1)
    for column in np.flatnonzero(counts == 1):
        start = columns.indptr[column]
        if columns.data[start] == 1.0:
            found[columns.indices[start]] = column
    if (found < 0).any():
        raise ParameterError(
            f"row {int(np.flatnonzero(found < 0)[0])} of A has no slack column (a unit vector) to start from",
            fix="append slacks, or pass basis",
        )
    return found


def _checked_basis(basis: Any, num_rows: int, num_columns: int) -> Indices:
    chosen = np.asarray(basis, dtype=np.intp).reshape(-1)
    if len(np.unique(chosen)) != num_rows or chosen.min() < 0 or chosen.max() >= num_columns:
        raise ParameterError(f"basis must name {num_rows} different columns of A, 0 to {num_columns - 1}")
    return chosen


def _check_start(bounds: Array, reduced: Array) -> None:
    """The basis must stay optimal however large lambda is."""
    for what, values in (("bounds", bounds), ("costs", -reduced)):
        wrong = (values[:, 1] < 0) | ((values[:, 1] == 0) & (values[:, 0] < 0))
        if wrong.any():
            raise ParameterError(
                "the starting basis is not optimal for large lambda "
                f"(entry {int(np.flatnonzero(wrong)[0])} of the {what})",
                fix="pass a basis that is, or choose bbar > 0 and cbar < 0 where the start is not optimal",
            )
