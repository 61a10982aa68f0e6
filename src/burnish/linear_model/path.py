"""The solution path: every breakpoint of lambda with its coefficients and its certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import scipy.sparse as sp

from burnish.core.errors import MissingExtraError
from burnish.linear_model.maths.operators import Array
from burnish.linear_model.settings import ParameterError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class SolutionPath:
    """Solutions at decreasing values of lambda.

    Between two breakpoints coefficients are the linear interpolation (`between` "linear", where lambda is a bound) or
    those of the smaller breakpoint (`between` "constant", where lambda is a price). Above the first they are those of
    the first.

    Attributes:
        lambdas: breakpoints, decreasing, shape (num_breakpoints,).
        coefs: sparse, shape (num_breakpoints, num_features).
        intercepts: shape (num_breakpoints,); zeros where the problem has none.
        values: the objective of the problem at each breakpoint, see the estimator.
        df: nonzero coefficients at each breakpoint.
        duals: multipliers of the problem's constraints, sparse, a row a breakpoint: the optimality certificate.
        gaps: |primal - dual objective| at each breakpoint, recomputed from solution and multipliers.
        violations: the largest violation of a constraint or of a multiplier's sign, relative to the data.
        stopped_by: "complete", "lambda_min" or "lambda_max" (reached what was asked), "max_iter", "max_nonzeros",
            "infeasible" (no b satisfies the constraint below the last breakpoint), or a numerical reason.
        num_pivots: steps of the simplex method.
        between: how to read the path between breakpoints.
        upward: the path began at lambda = 0, so that its open end is the largest lambda.
    """

    lambdas: Array
    coefs: sp.csr_array
    intercepts: Array
    values: Array
    df: Array
    duals: sp.csr_array
    gaps: Array
    violations: Array
    stopped_by: str
    num_pivots: int
    between: Literal["linear", "constant"]
    upward: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the path holds the solution at every lambda at which there is one, down to what was asked."""
        return self.stopped_by in ("complete", "lambda_min", "lambda_max", "infeasible")

    def at(self, lmbda: float) -> tuple[Array, float]:
        """Coefficients, shape (num_features,), and intercept at one lambda.

        Raises:
            ParameterError: lambda is not a number >= 0, or beyond the end of the path.
        """
        lmbda = float(lmbda)
        if not lmbda >= 0 or not np.isfinite(lmbda):
            raise ParameterError(f"lmbda is {lmbda}, but must be a finite number, 0 or larger")
        end = float(self.lambdas[0] if self.upward else self.lambdas[-1])
        beyond = (lmbda - end) if self.upward else (end - lmbda)
        if self.stopped_by != "complete" and beyond > 1e-9 * max(1.0, end):
            side = "above" if self.upward else "below"
            reasons = {
                "infeasible": f"no coefficients satisfy the constraint {side} it",
                "lambda_min": "the path was asked for down to there; lower lambda_min",
                "lambda_max": "the path was asked for up to there; raise lambda_max",
                "max_iter": "the path was stopped there by max_iter; raise it",
                "max_nonzeros": "the path was stopped there by max_nonzeros; raise it",
            }
            why = reasons.get(self.stopped_by, f"the path was stopped there by a {self.stopped_by}")
            raise ParameterError(f"lmbda is {lmbda:.6g}, but the path ends at {end:.6g}: {why}")
        below = int(np.searchsorted(-self.lambdas, -lmbda, side="left"))  # the first breakpoint at or below lmbda
        below = min(below, len(self.lambdas) - 1)
        if below == 0 or self.lambdas[below] >= lmbda or self.between == "constant":
            return self._row(below), float(self.intercepts[below])
        upper, lower = self.lambdas[below - 1], self.lambdas[below]
        share = (lmbda - lower) / (upper - lower)
        coef = share * self._row(below - 1) + (1 - share) * self._row(below)
        return coef, float(share * self.intercepts[below - 1] + (1 - share) * self.intercepts[below])

    def _row(self, number: int) -> Array:
        return self.coefs[[number]].toarray()[0]

    def plot(self, ax: Axes | None = None, *, names: Any = None, most: int = 12) -> Axes:
        """Coefficients over lambda, the largest ones named.

        Args:
            ax: matplotlib axes; new ones when not given.
            names: of the features.
            most: how many are named in the legend.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise MissingExtraError("matplotlib", "linear", "a picture of the path") from None
        axes: Any = plt.subplots(figsize=(7, 4), layout="constrained")[1] if ax is None else ax
        columns = self.coefs.tocsc()
        active = np.flatnonzero(np.diff(columns.indptr))
        largest = sorted(active, key=lambda j: -np.abs(columns[:, [j]].data).max())
        style = {"drawstyle": "steps-pre"} if self.between == "constant" else {}
        for rank, feature in enumerate(largest):
            label = (str(names[feature]) if names is not None else f"feature {feature}") if rank < most else None
            axes.plot(self.lambdas, columns[:, [feature]].toarray()[:, 0], linewidth=1, label=label, **style)
        axes.set_xlabel("lambda")
        axes.set_ylabel("coefficient")
        axes.invert_xaxis()
        if len(largest) > 0:
            axes.legend(fontsize="small", frameon=False, loc="upper left")
        return axes
