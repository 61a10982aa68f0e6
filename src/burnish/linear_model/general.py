"""`parametric_simplex`: the path of a program that the user writes down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from burnish.linear_model.maths.operators import Array, Indices, Matrix
from burnish.linear_model.maths.simplex import Basis, Point, Program, Trace, follow
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
    form = _SlackForm(A, b, bbar, c, cbar, basis)
    trace = Trace()
    points = list(follow(form.program, Basis.of_slacks(), trace, last=lambda_min, max_iter=max_iter))
    solutions = [form.solution(point) for point in points]
    return ParametricSolution(
        lambdas=np.array([point.parameter for point in points]),
        x=sp.csr_array(np.array([x for x, _ in solutions]).reshape(len(points), form.num_columns)),
        duals=np.array([dual for _, dual in solutions]).reshape(len(points), form.num_rows),
        values=np.array([form.value(point) for point in points]),
        gaps=np.array([point.gap for point in points]),
        violations=np.array([point.violation for point in points]),
        stopped_by=trace.stopped_by,
        num_pivots=trace.num_pivots,
    )


class _SlackForm:
    """The program with its starting basis as slacks: B^-1 A without them, their costs taken out of the others'."""

    def __init__(self, A: Any, b: Any, bbar: Any, c: Any, cbar: Any, basis: Any) -> None:
        matrix: Any = sp.csc_array(A, dtype=np.float64) if sp.issparse(A) else np.asarray(A, dtype=np.float64)
        if matrix.ndim != 2:
            raise ParameterError(f"A has {matrix.ndim} dimensions, but must have 2")
        if not np.isfinite(matrix.data if sp.issparse(matrix) else matrix).all():
            raise ParameterError("A holds values that are not finite")
        self.num_rows, self.num_columns = matrix.shape
        bounds = np.column_stack([_vector("b", b, self.num_rows), _vector("bbar", bbar, self.num_rows)])
        costs = np.column_stack([_vector("c", c, self.num_columns), _vector("cbar", cbar, self.num_columns)])
        self._inverse: Any = None
        if basis is None:
            self._slacks = _slack_columns(matrix)
        else:
            self._slacks = _checked_basis(basis, self.num_rows, self.num_columns)
            square = matrix[:, self._slacks].toarray() if sp.issparse(matrix) else matrix[:, self._slacks]
            if np.linalg.matrix_rank(square) < self.num_rows:
                raise ParameterError("basis names columns of A that are not independent", fix="choose others")
            self._inverse = np.linalg.inv(square)
            matrix, bounds = self._inverse @ matrix, self._inverse @ bounds
        self._rest = np.setdiff1d(np.arange(self.num_columns), self._slacks)
        self._matrix, self._own = matrix[:, self._rest], costs[self._slacks]
        reduced = costs[self._rest] - self._matrix.T @ self._own
        _check_start(bounds, reduced)
        self.program = Program(Matrix(self._matrix), bounds, reduced, np.full(len(self._rest), np.inf))

    def solution(self, point: Point) -> tuple[Array, Array]:
        """x and the multipliers of A x = b + lambda bbar."""
        where = np.array([1.0, point.parameter])
        x, dual = np.zeros(self.num_columns), self._own @ where
        x[self._rest[point.columns]] = point.values
        x[self._slacks] = np.maximum(self.program.bounds @ where - self._matrix @ x[self._rest], 0.0)
        dual[point.rows] += point.multipliers
        return x, dual if self._inverse is None else dual @ self._inverse

    def value(self, point: Point) -> float:
        where = np.array([1.0, point.parameter])
        return float(point.objective + self._own @ where @ (self.program.bounds @ where))


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
