"""CLIME: a sparse inverse covariance, one l1 program a column.

    column j:  min ||b||_1  subject to  ||S b - e_j||_inf <= lambda

The columns are independent paths, followed in parallel; the estimate takes of (i, j) and (j, i) the smaller one.

Source: A Constrained l1 Minimization Approach to Sparse Precision Matrix Estimation, Cai, Liu, Luo, 2011
(arXiv:1102.2233).
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from joblib import Parallel, delayed
from sklearn.covariance import EmpiricalCovariance, empirical_covariance, log_likelihood
from sklearn.model_selection import check_cv
from sklearn.utils.validation import check_is_fitted, validate_data

from burnish.linear_model.maths import problems
from burnish.linear_model.maths.operators import Array
from burnish.linear_model.path import SolutionPath
from burnish.linear_model.settings import check_count, check_number
from burnish.linear_model.solve import PathLimits, solve

NUM_CANDIDATES = 30


class CLIME(EmpiricalCovariance):
    """A sparse precision matrix with the path of every column.

    Args:
        lmbda: the bound of `precision_`; None chooses by cross-validation of the Gaussian likelihood.
        cv: folds, or a splitter, for that choice.
        lambda_min: where paths end; None takes lmbda where it is given, else a hundredth of the largest covariance.
        max_iter: steps a column at most; None for no limit.
        n_jobs: processes for the columns, as in joblib.
        assume_centered: whether the mean is known to be zero.

    Attributes:
        precision_: shape (num_features, num_features), symmetric. It may be indefinite where lambda is small.
        covariance_: the empirical covariance that was inverted.
        path_: the `SolutionPath` of every column; its values are ||b||_1.
        lambda_: the chosen bound.
        cv_lambdas_, cv_losses_: what cross-validation compared (negative log-likelihood a sample), where it did.
    """

    def __init__(
        self,
        lmbda: float | None = None,
        *,
        cv: Any = 5,
        lambda_min: float | None = None,
        max_iter: int | None = None,
        n_jobs: int | None = None,
        assume_centered: bool = False,
    ) -> None:
        super().__init__(assume_centered=assume_centered)
        self.lmbda = lmbda
        self.cv = cv
        self.lambda_min = lambda_min
        self.max_iter = max_iter
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> Self:
        """Follows the path of every column of the covariance of X, shape (num_samples, num_features)."""
        check_number("lmbda", self.lmbda)
        check_number("lambda_min", self.lambda_min)
        check_count("max_iter", self.max_iter)
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2, ensure_min_features=1)
        covariance = empirical_covariance(X, assume_centered=self.assume_centered)
        if self.lambda_min is not None:
            smallest = float(self.lambda_min)
        elif self.lmbda is not None:
            smallest = float(self.lmbda)
        else:
            smallest = 0.01
        limits = PathLimits(lambda_min=smallest, max_iter=self.max_iter)
        self.location_ = np.zeros(X.shape[1]) if self.assume_centered else X.mean(axis=0)
        self.covariance_ = covariance
        self.path_ = self._columns(covariance, limits)
        if self.lmbda is None:
            self._choose(X, limits)
        else:
            self.lambda_ = float(self.lmbda)
        self.precision_ = self.precision_at(self.lambda_)
        return self

    def _columns(self, covariance: Array, limits: PathLimits) -> list[SolutionPath]:
        size = len(covariance)
        paths: Any = Parallel(n_jobs=self.n_jobs)(delayed(_column)(covariance, j, limits) for j in range(size))
        return list(paths)

    def _choose(self, X: Array, limits: PathLimits) -> None:
        lowest = max(limits.lambda_min, max(float(path.lambdas[-1]) for path in self.path_))
        candidates = np.geomspace(1.0, max(lowest, 1e-3), NUM_CANDIDATES)
        losses = np.zeros(NUM_CANDIDATES)
        splitter: Any = check_cv(self.cv)
        for fitted, held_out in splitter.split(X):
            covariance = empirical_covariance(X[fitted], assume_centered=self.assume_centered)
            mean = 0.0 if self.assume_centered else X[fitted].mean(axis=0)
            unseen = empirical_covariance(X[held_out] - mean, assume_centered=True)
            paths = self._columns(covariance, limits)
            for number, candidate in enumerate(candidates):
                precision = _symmetric(paths, float(candidate))
                definite = np.linalg.eigvalsh(precision)[0] > 0
                loss = -log_likelihood(unseen, precision) if definite else np.inf
                losses[number] += len(held_out) * loss
        self.cv_lambdas_, self.cv_losses_ = candidates, losses / len(X)
        self.lambda_ = float(candidates[losses.argmin()])

    def precision_at(self, lmbda: float) -> Array:
        """The symmetric estimate at one lambda.

        Raises:
            ParameterError: below the end of a column's path.
        """
        check_is_fitted(self, "path_")
        largest = max(float(path.lambdas[-1]) for path in self.path_)
        if lmbda < largest:
            next(path for path in self.path_ if float(path.lambdas[-1]) == largest).at(lmbda)
        return _symmetric(self.path_, lmbda)

    def get_precision(self) -> Array:
        """The sparse estimate (scikit-learn's covariance estimators share this name)."""
        check_is_fitted(self, "precision_")
        return self.precision_


def _column(covariance: Array, column: int, limits: PathLimits) -> SolutionPath:
    return solve(problems.clime_column(covariance, column), len(covariance), limits)


def _symmetric(paths: list[SolutionPath], lmbda: float) -> Array:
    """Of (i, j) and (j, i) the smaller one; a column whose path ends above lambda counts as at its end."""
    columns = np.column_stack([path.at(max(lmbda, float(path.lambdas[-1])))[0] for path in paths])
    return np.where(np.abs(columns) <= np.abs(columns.T), columns, columns.T)
