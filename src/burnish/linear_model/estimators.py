"""The estimators: what scikit-learn's users call, over the paths of `maths.problems`.

Every estimator follows the path once and keeps it as `path_`; `coef_` is its point at `lambda_`. Without `lmbda` it is
chosen by cross-validation: the path of every fold costs as much as one solution, so all lambdas are compared at once.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import check_cv
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from burnish.core.progress import Progress
from burnish.linear_model.maths import problems
from burnish.linear_model.maths.operators import Array
from burnish.linear_model.path import SolutionPath
from burnish.linear_model.settings import ParameterError, check_count, check_number, refuse_weights
from burnish.linear_model.solve import PathLimits, solve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_CANDIDATES = 100
"""Values of lambda that cross-validation compares, evenly spaced on a log scale."""
SMALLEST_CANDIDATE = 1e-3
"""The smallest of them, as a share of the largest, where the path goes on below."""


class _PathEstimator(BaseEstimator):
    """What the four estimators share: limits, scaling, the choice of lambda, the path's answers."""

    lmbda: float | None
    cv: Any
    max_iter: int | None
    max_nonzeros: int | None
    standardize: bool
    verbose: bool
    lambda_grows_with_samples: ClassVar[bool]
    """Whether the problem's sums make lambda proportional to the number of samples."""

    def _follow(self, X: Any, y: Array, weights: Array, limits: PathLimits, progress: Progress | None) -> SolutionPath:
        raise NotImplementedError

    def _losses(self, scores: Array, y: Array) -> Array:
        """The loss of every sample that cross-validation averages."""
        raise NotImplementedError

    def _limits(self) -> PathLimits:
        """Where the path may end; refuses impossible parameters."""
        raise NotImplementedError

    def _fit(self, X: Any, y: Array, weights: Array) -> Self:
        limits = self._limits()
        scaling = _Scaling(X, y, scale=self.standardize, centre=self._centres())
        progress = Progress(enabled=bool(self.verbose))
        path = self._follow(scaling.design(X), scaling.target(y), weights, limits, progress)
        _warn(path)
        if self.lmbda is None:
            self._choose(X, y, weights, limits, path)
        else:
            self.lambda_ = float(self.lmbda)
        self.path_ = scaling.undone(path)
        self.coef_, self.intercept_ = self.path_.at(self.lambda_)
        self.n_iter_ = max(path.num_pivots, 1)
        return self

    def _centres(self) -> bool:
        """Whether X and y are centred before the path is followed."""
        return False

    def _choose(self, X: Any, y: Array, weights: Array, limits: PathLimits, path: SolutionPath) -> None:
        """lambda with the smallest mean loss over samples that a fold's path did not see."""
        largest, smallest = float(path.lambdas.max()), float(path.lambdas.min())
        smallest = max(smallest, SMALLEST_CANDIDATE * largest)
        candidates = np.geomspace(largest, smallest, NUM_CANDIDATES) if 0 < smallest < largest else np.array([largest])
        losses, counted = np.zeros(len(candidates)), 0.0
        splitter: Any = check_cv(self.cv, y, classifier=isinstance(self, ClassifierMixin))
        for fitted, held_out in splitter.split(X, y):
            scaling = _Scaling(X[fitted], y[fitted], scale=self.standardize, centre=self._centres())
            share = weights[fitted].sum() / weights.sum() if self.lambda_grows_with_samples else 1.0
            own = replace(limits, lambda_min=max(limits.lambda_min, smallest) * share)
            fold = self._follow(scaling.design(X[fitted]), scaling.target(y[fitted]), weights[fitted], own, None)
            fold = scaling.undone(fold)
            for number, candidate in enumerate(candidates):
                asked = float(np.clip(candidate * share, fold.lambdas.min(), fold.lambdas.max()))
                coef, intercept = fold.at(asked)
                scores = X[held_out] @ coef + intercept
                losses[number] += weights[held_out] @ self._losses(scores, y[held_out])
            counted += weights[held_out].sum()
        self.cv_lambdas_, self.cv_losses_ = candidates, losses / counted
        self.lambda_ = float(candidates[losses.argmin()])

    # -- what a fitted estimator answers -----------------------------------------------------------------------------

    def coef_at(self, lmbda: float) -> Array:
        """Coefficients at one lambda, shape (num_features,), from the path.

        Raises:
            SettingsError: below the end of the path.
        """
        check_is_fitted(self)
        return self.path_.at(lmbda)[0]

    def plot_path(self, ax: Axes | None = None) -> Axes:
        """Draws coefficients over lambda with the chosen one marked; needs matplotlib."""
        check_is_fitted(self)
        axes: Any = self.path_.plot(ax, names=getattr(self, "feature_names_in_", None))
        axes.axvline(self.lambda_, color="0.6", linestyle=":", linewidth=1)
        return axes

    def _scores(self, X: Any) -> Array:
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=np.float64, reset=False)
        return X @ self.coef_ + self.intercept_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = not self._centres()
        return tags


class _Regressor(RegressorMixin, _PathEstimator):
    lambda_min: float | None

    def _limits(self) -> PathLimits:
        check_number("lmbda", self.lmbda)
        check_number("lambda_min", self.lambda_min)
        check_count("max_iter", self.max_iter)
        check_count("max_nonzeros", self.max_nonzeros)
        if self.lmbda is not None and self.lambda_min is not None and self.lambda_min > self.lmbda:
            raise ParameterError(
                f"lambda_min is {self.lambda_min:g} and lmbda {self.lmbda:g}, so the path would end before lmbda",
                fix="lower lambda_min or leave it out",
            )
        smallest = self.lambda_min if self.lambda_min is not None else 0.0
        return PathLimits(lambda_min=float(smallest), max_iter=self.max_iter, max_nonzeros=self.max_nonzeros)

    def predict(self, X: Any) -> Array:
        """X b + intercept, shape (num_samples,)."""
        return self._scores(X)

    def _checked(self, X: Any, y: Any) -> tuple[Any, Array]:
        X, y = validate_data(
            self, X, y, accept_sparse=["csr", "csc"], dtype=np.float64, y_numeric=True, ensure_min_samples=2
        )
        return (X.tocsr() if sp.issparse(X) else X), np.asarray(y, dtype=np.float64)


class DantzigSelector(_Regressor):
    """min ||b||_1 subject to ||X^T (y - X b)||_inf <= lambda, for every lambda at once.

    X and y are used as they are: no 1/n, no centring, no scaling unless asked for.

    Args:
        lmbda: the bound of `coef_`; None chooses by cross-validation.
        cv: folds, or a splitter of scikit-learn, for that choice.
        lambda_min: where the path ends; None for the whole path.
        max_iter: steps of the simplex method at most; None for no limit.
        max_nonzeros: ends the path once more coefficients are in it.
        fit_intercept: centres X and y, which is an intercept without a penalty; not for sparse X.
        standardize: scales columns to unit standard deviation; coefficients are given for X as it was.
        verbose: shows progress on long paths.

    Attributes:
        path_: the `SolutionPath`; its values are ||b||_1 (of scaled coefficients where standardize is set).
        lambda_, coef_, intercept_: the chosen point.
        cv_lambdas_, cv_losses_: what cross-validation compared, where it did.

    Source: Candes and Tao, The Dantzig selector, 2007; path: Pang, Liu, Vanderbei, Zhao, NIPS 2017.
    """

    lambda_grows_with_samples = True

    def __init__(
        self,
        lmbda: float | None = None,
        *,
        cv: Any = 5,
        lambda_min: float | None = None,
        max_iter: int | None = None,
        max_nonzeros: int | None = None,
        fit_intercept: bool = False,
        standardize: bool = False,
        verbose: bool = False,
    ) -> None:
        self.lmbda = lmbda
        self.cv = cv
        self.lambda_min = lambda_min
        self.max_iter = max_iter
        self.max_nonzeros = max_nonzeros
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.verbose = verbose

    def fit(self, X: Any, y: Any, **unsupported: Any) -> Self:
        """Follows the path of (X, y), X dense or scipy.sparse.

        Raises:
            ParameterError: an impossible parameter, or lmbda below the end of the path.
            ValueError: NaN, inf, or shapes that do not fit.
        """
        refuse_weights(self, unsupported)
        X, y = self._checked(X, y)
        return self._fit(X, y, np.ones(len(y)))

    def _follow(self, X: Any, y: Array, weights: Array, limits: PathLimits, progress: Progress | None) -> SolutionPath:
        return solve(self._problem(X, y), X.shape[1], limits, progress=progress)

    def _centres(self) -> bool:
        return bool(self.fit_intercept)

    def _problem(self, X: Any, y: Array) -> problems.Problem:
        return problems.dantzig(X, y)

    def _losses(self, scores: Array, y: Array) -> Array:
        return (y - scores) ** 2


class CompressedSensing(DantzigSelector):
    """min ||b||_1 subject to ||y - X b||_inf <= lambda, for every lambda at once.

    Arguments and attributes are those of `DantzigSelector`; lambda bounds the largest residual. With more samples than
    features the path ends at the smallest residual that is possible, and says so.

    Source: Pang, Liu, Vanderbei, Zhao, NIPS 2017.
    """

    lambda_grows_with_samples = False

    def _problem(self, X: Any, y: Array) -> problems.Problem:
        return problems.compressed_sensing(X, y)


class L1QuantileRegressor(_Regressor):
    """min sum_i w_i rho_tau(y_i - x_i b) + lambda ||b||_1, rho_tau(r) = tau max(r, 0) + (1 - tau) max(-r, 0).

    `sklearn.linear_model.QuantileRegressor` has the same solution at alpha = lambda / sum w.

    Args:
        tau: the quantile, between 0 and 1.
        lmbda, cv, lambda_min, max_iter, max_nonzeros, standardize, verbose: see `DantzigSelector`.
        fit_intercept: adds an intercept without a penalty.

    Attributes:
        path_: the `SolutionPath`; its values are the whole objective.
        lambda_, coef_, intercept_, cv_lambdas_, cv_losses_: see `DantzigSelector`; the loss is rho_tau.

    Source: Belloni and Chernozhukov, 2011 (arXiv:0904.2931); path: Pang, Liu, Vanderbei, Zhao, NIPS 2017.
    """

    lambda_grows_with_samples = True

    def __init__(
        self,
        tau: float = 0.5,
        lmbda: float | None = None,
        *,
        cv: Any = 5,
        lambda_min: float | None = None,
        max_iter: int | None = None,
        max_nonzeros: int | None = None,
        fit_intercept: bool = False,
        standardize: bool = False,
        verbose: bool = False,
    ) -> None:
        self.tau = tau
        self.lmbda = lmbda
        self.cv = cv
        self.lambda_min = lambda_min
        self.max_iter = max_iter
        self.max_nonzeros = max_nonzeros
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Follows the path of (X, y), X dense or scipy.sparse; weights multiply each sample's loss."""
        check_number("tau", self.tau, high=1.0, open_=True)
        X, y = self._checked(X, y)
        return self._fit(X, y, _positive_weights(sample_weight, X))

    def _follow(self, X: Any, y: Array, weights: Array, limits: PathLimits, progress: Progress | None) -> SolutionPath:
        problem = problems.quantile(X, y, self.tau, weights, intercept=bool(self.fit_intercept))
        return solve(problem, X.shape[1], limits, progress=progress)

    def _losses(self, scores: Array, y: Array) -> Array:
        residual = y - scores
        return np.maximum(self.tau * residual, (self.tau - 1) * residual)


class SparseSVC(ClassifierMixin, _PathEstimator):
    """min sum_i w_i max(0, 1 - y_i (x_i b + b0)) subject to ||b||_1 <= lambda, y_i = +-1, b0 free.

    The path begins at lambda = 0, where only the intercept is free, and ends where more norm lowers no loss.

    Args:
        lmbda: the bound on the norm; None chooses by cross-validation of the hinge loss.
        lambda_max: where the path ends; None for the whole path.
        cv, max_iter, max_nonzeros, standardize, verbose: see `DantzigSelector`.

    Attributes:
        path_: the `SolutionPath`; its values are the sums of hinge losses.
        classes_: the two labels; the second is y = +1.
        lambda_, coef_, intercept_, cv_lambdas_, cv_losses_: see `DantzigSelector`.

    Source: Zhu, Rosset, Hastie, Tibshirani, 1-norm support vector machines, 2003; path: Pang, Liu, Vanderbei, Zhao,
    NIPS 2017.
    """

    lambda_grows_with_samples = False

    def __init__(
        self,
        lmbda: float | None = None,
        *,
        cv: Any = 5,
        lambda_max: float | None = None,
        max_iter: int | None = None,
        max_nonzeros: int | None = None,
        standardize: bool = False,
        verbose: bool = False,
    ) -> None:
        self.lmbda = lmbda
        self.cv = cv
        self.lambda_max = lambda_max
        self.max_iter = max_iter
        self.max_nonzeros = max_nonzeros
        self.standardize = standardize
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Follows the path of (X, y), X dense or scipy.sparse; weights multiply each sample's loss.

        Raises:
            ValueError: y has not exactly two classes.
        """
        X, y = validate_data(self, X, y, accept_sparse=["csr", "csc"], dtype=np.float64)
        X = X.tocsr() if sp.issparse(X) else X
        check_classification_targets(y)
        if (kind := type_of_target(y, input_name="y", raise_unknown=True)) != "binary":
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"SparseSVC needs samples of two classes, but y has only one class: {self.classes_[0]!r}")
        signs = np.where(y == self.classes_[1], 1.0, -1.0)
        return self._fit(X, signs, _positive_weights(sample_weight, X))

    def _limits(self) -> PathLimits:
        check_number("lmbda", self.lmbda)
        check_number("lambda_max", self.lambda_max)
        check_count("max_iter", self.max_iter)
        check_count("max_nonzeros", self.max_nonzeros)
        if self.lmbda is not None and self.lambda_max is not None and self.lambda_max < self.lmbda:
            raise ParameterError(
                f"lambda_max is {self.lambda_max:g} and lmbda {self.lmbda:g}, so the path would end before lmbda",
                fix="raise lambda_max or leave it out",
            )
        largest = np.inf if self.lambda_max is None else float(self.lambda_max)
        return PathLimits(lambda_max=largest, max_iter=self.max_iter, max_nonzeros=self.max_nonzeros)

    def _follow(self, X: Any, y: Array, weights: Array, limits: PathLimits, progress: Progress | None) -> SolutionPath:
        return solve(problems.support_vectors(X, y, weights), X.shape[1], limits, progress=progress)

    def _losses(self, scores: Array, y: Array) -> Array:
        return np.maximum(1 - y * scores, 0.0)

    def decision_function(self, X: Any) -> Array:
        """X b + b0, shape (num_samples,); positive for `classes_[1]`."""
        return self._scores(X)

    def predict(self, X: Any) -> Any:
        """Labels, shape (num_samples,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


class _Scaling:
    """Centring and scaling of one data set, and its undoing in a path."""

    def __init__(self, X: Any, y: Array, *, scale: bool, centre: bool) -> None:
        if centre and sp.issparse(X):
            raise ParameterError(
                "fit_intercept centres X, which would make a sparse X dense",
                fix="set fit_intercept=False, or give X as an array",
            )
        size = X.shape[1]
        self.mean = X.mean(axis=0) if centre else np.zeros(size)
        self.offset = float(y.mean()) if centre else 0.0
        self.scale = np.ones(size)
        if scale:
            if sp.issparse(X):
                mean = np.asarray(X.mean(axis=0)).ravel()
                variance = np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2
                deviation = np.sqrt(np.maximum(variance, 0.0))
            else:
                deviation = X.std(axis=0)
            self.scale = np.where(deviation > 1e-12 * max(1.0, deviation.max(initial=0.0)), deviation, 1.0)

    def design(self, X: Any) -> Any:
        if sp.issparse(X):
            return X if np.all(self.scale == 1) else sp.csr_array(X @ sp.diags_array(1 / self.scale))
        return (X - self.mean) / self.scale

    def target(self, y: Array) -> Array:
        return y - self.offset

    def undone(self, path: SolutionPath) -> SolutionPath:
        """Coefficients for X as it was."""
        if np.all(self.scale == 1) and not self.mean.any() and not self.offset:
            return path
        coefs = sp.csr_array(path.coefs @ sp.diags_array(1 / self.scale))
        return replace(path, coefs=coefs, intercepts=path.intercepts + self.offset - coefs @ self.mean)


def _positive_weights(sample_weight: Any, X: Any) -> Array:
    return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)


def _warn(path: SolutionPath) -> None:
    if not path.is_whole and path.stopped_by != "max_nonzeros":
        warnings.warn(
            f"the path stopped at lambda = {path.lambdas[-1]:.6g} after {path.num_pivots} steps: {path.stopped_by}",
            ConvergenceWarning,
            stacklevel=4,
        )
