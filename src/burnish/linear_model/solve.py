"""From a parametric program to a `SolutionPath`: the loop over breakpoints with progress and limits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from burnish.core.progress import Progress
from burnish.linear_model.maths.operators import Array, Indices
from burnish.linear_model.maths.problems import Problem
from burnish.linear_model.maths.simplex import Point, Trace, follow
from burnish.linear_model.path import SolutionPath


@dataclass(frozen=True)
class PathLimits:
    """Where a path may end before it is complete.

    Attributes:
        lambda_min: the smallest lambda of interest.
        lambda_max: the largest, of a path that begins at 0.
        max_iter: steps of the simplex method at most.
        max_nonzeros: size of the solution at most.
    """

    lambda_min: float = 0.0
    lambda_max: float = np.inf
    max_iter: int | None = None
    max_nonzeros: int | None = None


def solve(problem: Problem, num_features: int, limits: PathLimits, *, progress: Progress | None = None) -> SolutionPath:
    """The path of one problem of `maths.problems`.

    Args:
        problem: from there.
        num_features: of X.
        limits: where to stop.
        progress: where to show the number of breakpoints.
    """
    trace = Trace()
    bars = progress or Progress(enabled=False)
    first, last = (0.0, -limits.lambda_max) if problem.upward else (np.inf, limits.lambda_min)
    last /= problem.parameter_unit
    points: list[Point] = []
    with bars.task("following the path", total=None, unit="breakpoints") as task:
        for point in follow(
            problem.program,
            problem.start,
            trace,
            first=first,
            last=last,
            max_iter=limits.max_iter,
            max_nonzeros=limits.max_nonzeros,
        ):
            if points and problem.is_over(point):
                trace.stopped_by = "complete"
                break
            points.append(point)
            task.advance()
    if problem.upward:
        points.reverse()
    solutions = [problem.solution(point) for point in points]
    coefs = _stacked([(indices, values) for indices, values, _ in solutions], num_features)
    reached = trace.stopped_by == "limit"
    return SolutionPath(
        lambdas=np.abs([point.parameter for point in points]) * problem.parameter_unit,
        coefs=coefs,
        intercepts=np.array([intercept for _, _, intercept in solutions]),
        values=np.array([problem.value(point) for point in points]),
        df=np.diff(coefs.indptr),
        duals=_stacked([problem.certificate(point) for point in points], problem.num_constraints),
        gaps=np.array([point.gap for point in points]) * problem.objective_unit,
        violations=np.array([point.violation for point in points]),
        stopped_by=("lambda_max" if problem.upward else "lambda_min") if reached else trace.stopped_by,
        num_pivots=trace.num_pivots,
        between=problem.between,
        upward=problem.upward,
    )


def _stacked(entries: list[tuple[Indices, Array]], size: int) -> sp.csr_array:
    """Sparse rows, one a breakpoint."""
    counts = [len(indices) for indices, _ in entries]
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    indices = np.concatenate([indices for indices, _ in entries] or [np.empty(0, dtype=np.intp)])
    values = np.concatenate([values for _, values in entries] or [np.empty(0)])
    result = sp.csr_array((values, indices, starts), shape=(len(entries), size))
    result.sort_indices()
    return result
