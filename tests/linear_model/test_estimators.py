"""The estimators behave as scikit-learn's do, choose lambda on unseen samples, and refuse in sentences."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import QuantileRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from burnish.core.errors import BurnishError
from burnish.linear_model import CLIME, CompressedSensing, DantzigSelector, L1QuantileRegressor, SparseSVC

REGRESSORS = [DantzigSelector, CompressedSensing, L1QuantileRegressor]


@pytest.mark.slow
@parametrize_with_checks(
    [
        DantzigSelector(),
        DantzigSelector(fit_intercept=True, standardize=True),
        CompressedSensing(),
        L1QuantileRegressor(fit_intercept=True),
        SparseSVC(),
        CLIME(),
    ]
)
def test_scikit_learns_own_checks(estimator: object, check: object) -> None:
    check(estimator)  # type: ignore[operator]


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("lmbda", [0.5, 20.0, 300.0])
def test_quantile_regression_agrees_with_scikit_learn(fit_intercept: bool, lmbda: float) -> None:
    X, y = load_diabetes(return_X_y=True)
    X, y = StandardScaler().fit_transform(X)[:150], y[:150]
    ours = L1QuantileRegressor(0.3, lmbda, fit_intercept=fit_intercept).fit(X, y)
    theirs = QuantileRegressor(quantile=0.3, alpha=lmbda / len(y), fit_intercept=fit_intercept).fit(X, y)

    def objective(model: object) -> float:
        residual = y - model.predict(X)  # type: ignore[attr-defined]
        return np.maximum(0.3 * residual, -0.7 * residual).sum() + lmbda * np.abs(model.coef_).sum()  # type: ignore[attr-defined]

    assert objective(ours) <= objective(theirs) * (1 + 1e-9)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-5, atol=1e-5)


def test_weights_count_as_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 5)), rng.normal(size=20)
    counts = rng.integers(1, 4, size=20)
    repeated = np.repeat(np.arange(20), counts)
    for model in (L1QuantileRegressor(0.3, 1.0), SparseSVC(0.7)):
        target = y if isinstance(model, L1QuantileRegressor) else y > 0
        weighted = model.fit(X, target, sample_weight=counts).path_
        copied = model.fit(X[repeated], target[repeated]).path_
        for lmbda in (0.2, 0.6):
            np.testing.assert_allclose(weighted.at(lmbda)[0], copied.at(lmbda)[0], atol=1e-9)


def test_cross_validation_finds_the_features_that_matter() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 300))
    y = X[:, 3] * 3 - X[:, 70] * 2 + 0.5 * rng.normal(size=100)
    model = DantzigSelector(max_nonzeros=30).fit(X, y)
    assert {3, 70} <= set(np.flatnonzero(model.coef_))
    largest = np.sort(np.abs(model.coef_))
    assert largest[-2] > 5 * largest[-3]
    chosen = model.cv_losses_[np.argmin(np.abs(model.cv_lambdas_ - model.lambda_))]
    assert chosen == model.cv_losses_.min() < 0.5 * model.cv_losses_[0]


def test_an_intercept_is_free_and_standardized_coefficients_are_given_for_the_data_as_they_were() -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(80, 4)) * np.array([1.0, 100.0, 0.01, 1.0]) + 7.0
    y = X[:, 0] + 0.02 * X[:, 1] + 50.0
    model = DantzigSelector(0.0, fit_intercept=True, standardize=True).fit(X, y)
    np.testing.assert_allclose(model.coef_, [1, 0.02, 0, 0], atol=1e-8)
    assert model.intercept_ == pytest.approx(50.0)
    tall = L1QuantileRegressor(0.85, 1e9, fit_intercept=True).fit(X[:41], y[:41])
    assert not tall.coef_.any()
    assert tall.intercept_ == pytest.approx(np.quantile(y[:41], 0.85, method="inverted_cdf"))


@pytest.mark.slow
def test_a_pipeline_a_grid_search_and_a_data_frame() -> None:
    frame, y = load_diabetes(return_X_y=True, as_frame=True)
    search = GridSearchCV(DantzigSelector(fit_intercept=True), {"lmbda": [10.0, 200.0]}, cv=3).fit(frame, y)
    assert list(search.best_estimator_.feature_names_in_) == list(frame.columns)
    assert search.best_score_ > 0.4
    labels = load_breast_cancer()
    model = make_pipeline(StandardScaler(), SparseSVC(3.0)).fit(labels.data, labels.target_names[labels.target])
    assert model.score(labels.data, labels.target_names[labels.target]) > 0.95
    assert set(model.predict(labels.data)) == {"benign", "malignant"}
    assert isinstance(pd.Series(model.named_steps["sparsesvc"].coef_), pd.Series)


def test_sparse_input_is_never_made_dense() -> None:
    rng = np.random.default_rng(0)
    X = sp.random_array((60, 200_000), density=2e-4, rng=rng, format="csr")
    y = rng.normal(size=60)
    largest = float(np.abs(y).max())
    fitted = CompressedSensing(largest, max_nonzeros=10).fit(X, y)  # as a dense program 384 MB, its Gram matrix 320 GB
    assert fitted.path_.df.max() >= 10
    assert DantzigSelector(1e9, max_nonzeros=10).fit(X, y).path_.df.max() >= 10
    with pytest.raises(BurnishError, match="stopped there by max_nonzeros; raise it"):
        CompressedSensing(0.0, max_nonzeros=10).fit(X, y)


@pytest.mark.slow
def test_clime_recovers_a_chain() -> None:
    rng = np.random.default_rng(0)
    size = 12
    precision = np.eye(size) + 0.45 * (np.eye(size, k=1) + np.eye(size, k=-1))
    X = rng.multivariate_normal(np.zeros(size), np.linalg.inv(precision), size=2000)
    model = CLIME(0.08).fit(X)
    assert (model.precision_ == model.precision_.T).all()
    found = np.abs(model.precision_) > 0.1
    assert (found == (precision != 0)).all()
    assert max(path.gaps.max() for path in model.path_) <= 1e-8
    chosen = CLIME().fit(X)
    assert 0 < chosen.lambda_ < 0.5
    assert np.linalg.eigvalsh(chosen.precision_)[0] > 0


@pytest.mark.slow
def test_clime_columns_are_the_same_in_parallel() -> None:
    X = np.random.default_rng(0).normal(size=(40, 8))
    one, two = CLIME(0.2).fit(X), CLIME(0.2, n_jobs=2).fit(X)
    assert (one.precision_ == two.precision_).all()


X, Y = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12.0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: DantzigSelector().fit(X * np.nan, Y), "NaN"),
        (lambda: DantzigSelector().fit(X, Y + np.inf), "infinity"),
        (lambda: DantzigSelector(-1.0).fit(X, Y), "lmbda is -1.0, but must be a number 0 or larger"),
        (lambda: DantzigSelector(float("nan")).fit(X, Y), "lmbda is nan"),
        (lambda: DantzigSelector("small").fit(X, Y), "lmbda is 'small'"),
        (lambda: DantzigSelector(1.0, lambda_min=2.0).fit(X, Y), "the path would end before lmbda"),
        (lambda: DantzigSelector(max_iter=0).fit(X, Y), "max_iter is 0"),
        (lambda: DantzigSelector().fit(X, Y, sample_weight=Y), "takes no sample_weight"),
        (lambda: DantzigSelector(fit_intercept=True).fit(sp.csr_array(X), Y), "would make a sparse X dense"),
        (lambda: DantzigSelector().fit(X, np.array(["a"] * 12)), "could not convert"),
        (lambda: CompressedSensing(0.0).fit(X, Y), "no coefficients satisfy the constraint below it"),
        (lambda: L1QuantileRegressor(1.0).fit(X, Y), "tau is 1.0, but must be a number between 0 and 1"),
        (lambda: L1QuantileRegressor(0.5, 1.0).fit(X, Y, sample_weight=-Y), "[Nn]egative"),
        (lambda: L1QuantileRegressor(0.5, 1.0).fit(X, Y, sample_weight=0 * Y), "at least one non-zero"),
        (lambda: SparseSVC().fit(X, Y), "Only binary classification|Unknown label type"),
        (lambda: SparseSVC().fit(X, np.ones(12)), "only one class"),
        (lambda: SparseSVC(2.0, lambda_max=1.0).fit(X, Y > 5), "raise lambda_max"),
        (lambda: CLIME(-0.1).fit(X), "lmbda is -0.1"),
        (lambda: CLIME(0.5).fit(X).precision_at(0.1), "lower lambda_min"),
        (lambda: DantzigSelector(3.0, lambda_min=3.0).fit(X, Y).coef_at(1.0), "the path ends at 3"),
        (lambda: DantzigSelector(3.0).fit(X, Y).coef_at(float("inf")), "finite number"),
    ],
)
def test_bad_input_gets_a_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]


def test_a_lambda_above_the_first_breakpoint_gives_zeros() -> None:
    assert not DantzigSelector(1e9).fit(X, Y).coef_.any()


def test_a_path_that_stops_early_warns_with_its_reason() -> None:
    largest = float(np.abs(X.T @ Y).max())
    with pytest.warns(ConvergenceWarning, match="after 2 steps: max_iter"):
        DantzigSelector(largest, max_iter=2).fit(X, Y)


def test_a_picture_of_the_path_names_the_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    frame, y = load_diabetes(return_X_y=True, as_frame=True)
    for model in (DantzigSelector(2.0).fit(frame, y), L1QuantileRegressor(0.5, 2.0, fit_intercept=True).fit(frame, y)):
        axes = model.plot_path()
        named = {line.get_label() for line in axes.get_lines()}
        assert {"bmi", "s5"} <= named
        assert axes.get_lines()[-1].get_xdata()[0] == 2.0  # the chosen lambda


def test_constant_and_duplicate_columns_are_no_trouble() -> None:
    doubled = np.column_stack([X, X, np.ones(12), np.zeros(12)])
    for estimator in REGRESSORS:
        model = estimator(lmbda=5.0, standardize=True).fit(doubled, Y)
        assert model.path_.gaps.max() <= 1e-8


def test_importing_needs_no_torch() -> None:
    code = "import sys, burnish.linear_model as lm; lm.DantzigSelector; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
