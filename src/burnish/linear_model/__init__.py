"""Sparse linear models with the whole solution path (PRIMAL), as scikit-learn estimators.

    from burnish.linear_model import DantzigSelector

    model = DantzigSelector(max_nonzeros=50).fit(X, y)   # lambda by cross-validation
    model.path_.lambdas, model.path_.coefs, model.path_.gaps
    model.coef_at(0.5 * model.path_.lambdas[0])
    model.plot_path()

numpy, scipy and scikit-learn only; torch is never imported.
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.linear_model.clime import CLIME
    from burnish.linear_model.estimators import CompressedSensing, DantzigSelector, L1QuantileRegressor, SparseSVC
    from burnish.linear_model.general import parametric_simplex
    from burnish.linear_model.path import SolutionPath

_PUBLIC = {
    "CLIME": ".clime",
    "CompressedSensing": ".estimators",
    "DantzigSelector": ".estimators",
    "L1QuantileRegressor": ".estimators",
    "SolutionPath": ".path",
    "SparseSVC": ".estimators",
    "parametric_simplex": ".general",
}

__all__ = [
    "CLIME",
    "CompressedSensing",
    "DantzigSelector",
    "L1QuantileRegressor",
    "SolutionPath",
    "SparseSVC",
    "parametric_simplex",
]

__getattr__, __dir__ = lazy(__name__, _PUBLIC)
