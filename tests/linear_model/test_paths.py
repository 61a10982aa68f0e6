"""Every breakpoint and every midpoint is optimal: against HiGHS, closed forms and the path's own certificates."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from burnish.linear_model.maths import problems
from burnish.linear_model.maths.problems import Problem
from burnish.linear_model.path import SolutionPath
from burnish.linear_model.solve import PathLimits, solve

HIGHS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


def data(kind: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples and targets of a shape or degeneracy that simplex methods stumble over."""
    rng = np.random.default_rng(seed)
    num_samples, num_features = {"wide": (10, 25), "tall": (30, 8)}.get(kind, (15, 10))
    X = rng.normal(size=(num_samples, num_features))
    y = X[:, :3] @ np.array([2.0, -1.0, 1.0]) + 0.3 * rng.normal(size=num_samples)
    if kind == "duplicates":
        X[:, 5:] = X[:, :5] * np.array([1, -1, 1, -1, 1])
    if kind == "zeros in y":
        y[::2] = 0.0
    if kind == "integers":
        X, y = rng.integers(-1, 2, size=X.shape).astype(float), rng.integers(-2, 3, size=num_samples).astype(float)
    if kind == "constant column":
        X[:, 0] = 1.0
    return X, y


KINDS = ("wide", "tall", "duplicates", "zeros in y", "integers", "constant column")


def primal_optimum(name: str, X: np.ndarray, y: np.ndarray, lmbda: float) -> float | None:
    """The problem as its definition says it, solved by HiGHS; None where it has no solution."""
    n, d = X.shape
    if name in ("dantzig", "compressed sensing", "clime"):
        M, target = {
            "dantzig": (X.T @ X, X.T @ y),
            "compressed sensing": (X, y),
            "clime": (X.T @ X / n, np.eye(d)[1]),
        }[name]
        A = np.block([[M, -M], [-M, M]])
        bounds = np.concatenate([target, -target]) + lmbda
        result = linprog(np.ones(2 * d), A_ub=A, b_ub=bounds, bounds=(0, None), method="highs", options=HIGHS)
    elif name == "quantile":  # b+, b-, r+, r-
        cost = np.concatenate([np.full(2 * d, lmbda), np.full(n, 0.3), np.full(n, 0.7)])
        A = np.hstack([X, -X, np.eye(n), -np.eye(n)])
        result = linprog(cost, A_eq=A, b_eq=y, bounds=(0, None), method="highs", options=HIGHS)
    else:  # b+, b-, b0+, b0-, hinge
        s = np.where(y > np.median(y), 1.0, -1.0)[:, None]
        cost = np.concatenate([np.zeros(2 * d + 2), np.ones(n)])
        norm = np.concatenate([np.ones(2 * d), np.zeros(2 + n)])
        A = np.vstack([np.hstack([-s * X, s * X, -s, s, -np.eye(n)]), norm])
        bounds = np.append(-np.ones(n), lmbda)
        result = linprog(cost, A_ub=A, b_ub=bounds, bounds=(0, None), method="highs", options=HIGHS)
    return result.fun if result.status == 0 else None


def problem(name: str, X: np.ndarray, y: np.ndarray) -> Problem:
    weights = np.ones(len(y))
    return {
        "dantzig": lambda: problems.dantzig(X, y),
        "compressed sensing": lambda: problems.compressed_sensing(X, y),
        "clime": lambda: problems.clime_column(X.T @ X / len(X), 1),
        "quantile": lambda: problems.quantile(X, y, 0.3, weights, intercept=False),
        "svm": lambda: problems.support_vectors(X, np.where(y > np.median(y), 1.0, -1.0), weights),
    }[name]()


def objective(name: str, X: np.ndarray, y: np.ndarray, lmbda: float, path: SolutionPath) -> float:
    """The problem's own objective of the path's coefficients, whatever the path says it is."""
    coef, intercept = path.at(lmbda)
    if name == "quantile":
        residual = y - X @ coef
        return float(np.maximum(0.3 * residual, -0.7 * residual).sum() + lmbda * np.abs(coef).sum())
    if name == "svm":
        signs = np.where(y > np.median(y), 1.0, -1.0)
        return float(np.maximum(1 - signs * (X @ coef + intercept), 0).sum())
    return float(np.abs(coef).sum())


def largest_violation(name: str, X: np.ndarray, y: np.ndarray, lmbda: float, path: SolutionPath) -> float:
    coef, _ = path.at(lmbda)
    if name == "dantzig":
        return float(np.abs(X.T @ (y - X @ coef)).max() - lmbda)
    if name == "compressed sensing":
        return float(np.abs(y - X @ coef).max() - lmbda)
    if name == "clime":
        return float(np.abs(X.T @ X @ coef / len(X) - np.eye(X.shape[1])[1]).max() - lmbda)
    return float(np.abs(coef).sum() - lmbda) if name == "svm" else 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["dantzig", "compressed sensing", "clime", "quantile", "svm"])
def test_breakpoints_and_midpoints_are_what_highs_finds(name: str, kind: str) -> None:
    X, y = data(kind)
    path = solve(problem(name, X, y), X.shape[1], PathLimits())
    assert path.is_whole
    lambdas = np.concatenate([path.lambdas, (path.lambdas[1:] + path.lambdas[:-1]) / 2])
    compared = 0
    for lmbda in lambdas:
        expected = primal_optimum(name, X, y, lmbda)
        if expected is None:  # at the very end of a path HiGHS may call the problem infeasible
            continue
        compared += 1
        scale = max(1.0, abs(expected))
        assert abs(objective(name, X, y, lmbda, path) - expected) <= 1e-8 * scale, lmbda
        assert largest_violation(name, X, y, lmbda, path) <= 1e-9 * max(1.0, np.abs(X.T @ y).max())
    assert compared >= len(lambdas) - 1


@pytest.mark.parametrize("name", ["dantzig", "compressed sensing", "clime", "quantile", "svm"])
def test_a_path_carries_its_certificates(name: str) -> None:
    X, y = data("wide", seed=3)
    path = solve(problem(name, X, y), X.shape[1], PathLimits())
    assert path.gaps.max() <= 1e-8
    assert path.violations.max() <= 1e-9
    assert (np.diff(path.lambdas) < 0).all()
    for number, lmbda in enumerate(path.lambdas):
        assert path.values[number] == pytest.approx(objective(name, X, y, lmbda, path), rel=1e-9, abs=1e-9)


def test_the_dual_of_the_dantzig_selector_proves_its_optimality() -> None:
    X, y = data("wide", seed=1)
    path = solve(problems.dantzig(X, y), X.shape[1], PathLimits())
    for number, lmbda in enumerate(path.lambdas):
        mu = path.duals[[number]].toarray()[0]
        assert np.abs(X.T @ (X @ mu)).max() <= 1 + 1e-9  # feasible
        bound = (X.T @ y) @ mu - lmbda * np.abs(mu).sum()  # no b can be below
        assert path.values[number] - bound <= 1e-8


SMALL_PROBLEMS = given(
    seed=st.integers(0, 2**31),
    num_samples=st.integers(2, 8),
    num_features=st.integers(1, 8),
    integers=st.booleans(),
    duplicate=st.booleans(),
)


@SMALL_PROBLEMS
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_no_small_problem_cycles_or_ends_at_a_wrong_basis(**drawn: Any) -> None:
    check_small_problem(**drawn)


# The same problems in every run; they follow from the text of the function.
@pytest.mark.long
@SMALL_PROBLEMS
@settings(max_examples=2000, deadline=None, derandomize=True)
def test_no_small_problem_of_2000_cycles(**drawn: Any) -> None:
    check_small_problem(**drawn)


def test_rounding_in_the_slack_of_an_equal_row_is_no_breakpoint() -> None:
    """The slack of a column that is there twice is zero; its rounding once led from one basis to another and back."""
    check_small_problem(seed=88630, num_samples=7, num_features=8, integers=False, duplicate=True)


def check_small_problem(seed: int, num_samples: int, num_features: int, integers: bool, duplicate: bool) -> None:
    """Certificates of every breakpoint of all five problems; many pivots would be a cycle."""
    rng = np.random.default_rng(seed)
    shape = (num_samples, num_features)
    X = rng.integers(-1, 2, size=shape).astype(float) if integers else rng.normal(size=shape)
    if duplicate and num_features > 1:
        X[:, -1] = X[:, 0] * rng.choice([1.0, -1.0])
    y = rng.integers(-2, 3, size=num_samples).astype(float)
    signs = np.where(np.arange(num_samples) == 0, 1.0, np.where(np.arange(num_samples) == 1, -1.0, np.sign(y + 0.5)))
    weights = rng.integers(1, 3, size=num_samples).astype(float)
    for each in (
        problems.dantzig(X, y),
        problems.compressed_sensing(X, y),
        problems.clime_column(X.T @ X, 0),
        problems.quantile(X, y, 0.5, weights, intercept=False),
        problems.quantile(X, y, 0.3, weights, intercept=True),
        problems.support_vectors(X, signs, weights),
    ):
        path = solve(each, num_features, PathLimits(max_iter=1000))
        assert path.stopped_by in ("complete", "infeasible"), path.stopped_by
        assert path.gaps.max(initial=0) <= 1e-8
        # Near a singular X coefficients grow into the thousands, and the rounding of a constraint with them.
        assert path.violations.max(initial=0) <= 1e-8 * max(1.0, np.abs(path.values).max(initial=0))


@pytest.mark.parametrize("name", ["dantzig", "compressed sensing", "clime", "quantile", "svm"])
@pytest.mark.parametrize(("of_X", "of_y"), [(1e-8, 1.0), (1e8, 1.0), (1.0, 1e-10), (1.0, 1e10), (1e-6, 1e-6)])
def test_units_of_the_data_change_nothing_but_units(name: str, of_X: float, of_y: float) -> None:
    """Tolerances were absolute, so that a design in small units had no solution, or another one, without a word."""
    X, y = data("wide", seed=2)
    plain = solve(problem(name, X, y), X.shape[1], PathLimits())
    scaled = solve(problem(name, of_X * X, of_y * y), X.shape[1], PathLimits())
    of_coefs = {"clime": of_X**-2, "svm": 1 / of_X}.get(name, of_y / of_X)
    of_lambda = {"dantzig": of_X * of_y, "compressed sensing": of_y, "quantile": of_X, "svm": 1 / of_X, "clime": 1.0}[
        name
    ]
    of_dual = {"dantzig": of_X**-2, "compressed sensing": 1 / of_X, "clime": of_X**-2}.get(name, 1.0)
    assert scaled.stopped_by == plain.stopped_by
    np.testing.assert_allclose(scaled.lambdas, of_lambda * plain.lambdas, rtol=1e-8, atol=1e-10 * of_lambda)
    np.testing.assert_allclose(scaled.coefs.toarray(), of_coefs * plain.coefs.toarray(), atol=1e-9 * of_coefs)
    samples = slice(0, len(y) if name == "svm" else None)  # the price of the norm has the unit of X
    ours, theirs = (path.duals.toarray()[:, samples] for path in (scaled, plain))
    np.testing.assert_allclose(ours, of_dual * theirs, atol=1e-8 * of_dual)
    of_value = {"quantile": of_y, "svm": 1.0}.get(name, of_coefs)
    np.testing.assert_allclose(scaled.values, of_value * plain.values, rtol=1e-9, atol=1e-9 * of_value)
    assert scaled.gaps.max() <= 1e-8 * of_value


def test_with_orthonormal_columns_the_dantzig_selector_is_soft_thresholding() -> None:
    rng = np.random.default_rng(5)
    X, _ = np.linalg.qr(rng.normal(size=(20, 6)))
    y = rng.normal(size=20)
    correlation = X.T @ y
    path = solve(problems.dantzig(X, y), 6, PathLimits())
    assert path.lambdas[0] == pytest.approx(np.abs(correlation).max())
    for lmbda in np.linspace(0, path.lambdas[0] * 1.1, 40):
        expected = np.sign(correlation) * np.maximum(np.abs(correlation) - lmbda, 0)
        np.testing.assert_allclose(path.at(lmbda)[0], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("dantzig", lambda X, y: np.abs(X.T @ y).max()),
        ("compressed sensing", lambda X, y: np.abs(y).max()),
        ("clime", lambda X, y: 1.0),
        ("quantile", lambda X, y: np.abs(X.T @ (0.3 - (y < 0))).max()),
    ],
)
def test_the_first_breakpoint_has_a_closed_form(name: str, first: object) -> None:
    X, y = data("wide", seed=2)
    path = solve(problem(name, X, y), X.shape[1], PathLimits())
    assert path.lambdas[0] == pytest.approx(first(X, y), rel=1e-12)  # type: ignore[operator]
    assert path.df[0] == 0


def test_the_path_of_the_support_vector_machine_begins_without_features() -> None:
    X, y = data("wide", seed=2)
    path = solve(problem("svm", X, y), X.shape[1], PathLimits())
    assert path.lambdas[-1] == 0
    assert path.df[-1] == 0
    assert path.values[-1] == pytest.approx(2 * min((y > np.median(y)).sum(), (y <= np.median(y)).sum()))


def test_at_zero_the_dantzig_selector_is_least_squares() -> None:
    X, y = data("tall")
    path = solve(problems.dantzig(X, y), X.shape[1], PathLimits())
    np.testing.assert_allclose(path.at(0)[0], np.linalg.lstsq(X, y)[0], atol=1e-9)


def test_the_median_of_a_constant_column() -> None:
    y = np.array([3.0, -1.0, 10.0, 4.0, 0.5])
    path = solve(problems.quantile(np.ones((5, 1)), y, 0.5, np.ones(5), intercept=False), 1, PathLimits())
    assert path.at(0)[0][0] == pytest.approx(np.median(y))


@pytest.mark.parametrize("name", ["dantzig", "compressed sensing", "quantile"])
def test_a_flipped_target_flips_the_coefficients(name: str) -> None:
    X, y = data("wide", seed=4)
    if name == "quantile":
        ours = solve(problems.quantile(X, y, 0.3, np.ones(len(y)), intercept=False), X.shape[1], PathLimits())
        other = solve(problems.quantile(X, -y, 0.7, np.ones(len(y)), intercept=False), X.shape[1], PathLimits())
    else:
        ours, other = (solve(problem(name, X, sign * y), X.shape[1], PathLimits()) for sign in (1, -1))
    np.testing.assert_allclose(ours.lambdas, other.lambdas, rtol=1e-9)
    np.testing.assert_allclose(ours.coefs.toarray(), -other.coefs.toarray(), atol=1e-9)


@pytest.mark.parametrize("name", ["dantzig", "compressed sensing", "quantile", "svm"])
def test_sparse_and_dense_designs_give_the_same_path(name: str) -> None:
    X, y = data("integers", seed=6)
    dense = solve(problem(name, X, y), X.shape[1], PathLimits())
    sparse = solve(problem(name, sp.csr_array(X), y), X.shape[1], PathLimits())  # type: ignore[arg-type]
    np.testing.assert_allclose(sparse.lambdas, dense.lambdas, rtol=1e-10)
    np.testing.assert_allclose(sparse.values, dense.values, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_a_long_path_with_many_updates_of_the_factors_stays_exact() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 400))
    y = X[:, :20].sum(axis=1) + rng.normal(size=120)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = solve(problems.dantzig(X, y), 400, PathLimits())
    assert path.num_pivots > 500
    assert path.df.max() >= 100  # blocks that are updated, not factored anew
    assert path.gaps.max() <= 1e-8
    assert path.violations.max() <= 1e-9


def test_limits_end_a_path_where_they_say() -> None:
    X, y = data("wide")
    whole = solve(problems.dantzig(X, y), X.shape[1], PathLimits())
    middle = (whole.lambdas[3] + whole.lambdas[4]) / 2
    asked = solve(problems.dantzig(X, y), X.shape[1], PathLimits(lambda_min=middle))
    assert (asked.stopped_by, asked.lambdas[-1]) == ("lambda_min", middle)
    np.testing.assert_allclose(asked.at(middle)[0], whole.at(middle)[0], atol=1e-12)
    few = solve(problems.dantzig(X, y), X.shape[1], PathLimits(max_nonzeros=3))
    assert few.stopped_by == "max_nonzeros"
    assert few.df.max() in (3, 4)
    short = solve(problems.dantzig(X, y), X.shape[1], PathLimits(max_iter=2))
    assert (short.stopped_by, short.num_pivots, short.is_whole) == ("max_iter", 2, False)


def test_memory_does_not_grow_with_the_square_of_the_features() -> None:
    import tracemalloc

    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 4000))
    y = X[:, :5].sum(axis=1)
    tracemalloc.start()
    solve(problems.dantzig(X, y), 4000, PathLimits(max_nonzeros=20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.5 * 4000 * 4000 * 8  # X^T X alone would be twice that
