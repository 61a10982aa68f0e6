"""What the estimators refuse, in sentences that scikit-learn's users can catch as ValueError."""

from __future__ import annotations

import numpy as np

from burnish.core.errors import MissingExtraError, SettingsError

try:
    import sklearn  # noqa: F401
except ImportError:
    raise MissingExtraError("scikit-learn", "linear", "burnish.linear_model") from None


class ParameterError(SettingsError, ValueError):
    """A parameter of an estimator is impossible."""


def check_number(
    name: str, value: float | None, *, low: float = 0.0, high: float = np.inf, open_: bool = False
) -> None:
    """Refuses what is not a number between two bounds; None is left alone."""
    if value is None:
        return
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    inside = is_number and (low < value < high if open_ else low <= value <= high) and np.isfinite(value)
    if not inside:
        between = f"between {low:g} and {high:g}" if np.isfinite(high) else f"{low:g} or larger"
        raise ParameterError(f"{name} is {value!r}, but must be a number {between}")


def check_count(name: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1):
        raise ParameterError(f"{name} is {value!r}, but must be a whole number, 1 or larger, or None for no limit")


def refuse_weights(estimator: object, unsupported: dict[str, object]) -> None:
    """`sample_weight` and whatever else fit is given that it cannot use."""
    for key, value in unsupported.items():
        if value is None:
            continue
        name = type(estimator).__name__
        if key == "sample_weight":
            raise ParameterError(
                f"{name} takes no sample_weight: its constraint bounds every residual or correlation alike, "
                "so a weight has no meaning",
                fix="leave it out, or use L1QuantileRegressor or SparseSVC, whose losses are sums over samples",
            )
        raise TypeError(f"{name}.fit() got an unexpected keyword argument {key!r}")
