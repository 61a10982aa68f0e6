"""What does a whole path cost, beside pyprimal, single solutions by HiGHS, scikit-learn, and skglm?

    python benchmarks/primal.py [--peer PYTHON of benchmarks/env/primal.txt] [--rounds 3]

Gaussian designs of n = 200 samples with 2 % (at most 20) nonzero coefficients and unit noise, one for each seed. Each
side runs in turn on one thread and is charged CPU seconds, so that a busy machine disturbs all alike. HiGHS is given
the better of two formulations: the dense constraint X^T X, and one with the residuals as variables. Objectives are
compared wherever two sides solved the same problem. Nothing is tuned.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from experiment import SMOKE, Command, record, table
from scipy.optimize import linprog

from burnish.linear_model import CLIME, CompressedSensing, DantzigSelector, L1QuantileRegressor, SolutionPath

HERE = Path(__file__).resolve().parent
SEEDS = (0,) if SMOKE else (0, 1, 2)
NUM_SAMPLES = 200
NUM_NONZEROS = 100


def design(num_features: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(NUM_SAMPLES, num_features))
    y = X[:, : min(max(num_features // 50, 2), 20)].sum(axis=1) + rng.normal(size=NUM_SAMPLES)
    return X, y


def seconds_of(work: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    started = time.process_time()
    result = work(*arguments)
    return time.process_time() - started, result


def path_of(estimator: Any, X: np.ndarray, y: np.ndarray) -> SolutionPath:
    return estimator.set_params(lmbda=1e12).fit(X, y).path_


def highs_dense(X: np.ndarray, y: np.ndarray, lmbda: float) -> float:
    """The Dantzig selector with X^T X as its constraint matrix."""
    Q, g = X.T @ X, X.T @ y
    d = len(g)
    A = np.block([[Q, -Q], [-Q, Q]])
    result = linprog(np.ones(2 * d), A_ub=A, b_ub=np.concatenate([g, -g]) + lmbda, bounds=(0, None), method="highs")
    assert result.status == 0, result.message
    return float(result.fun)


def highs_residuals(X: np.ndarray, y: np.ndarray, lmbda: float) -> float:
    """The same with r = y - X b as variables, so that X stands there twice instead of X^T X four times."""
    n, d = X.shape
    A_eq = np.hstack([X, -X, np.eye(n)])
    A_ub = np.vstack([np.hstack([np.zeros((d, 2 * d)), X.T]), np.hstack([np.zeros((d, 2 * d)), -X.T])])
    cost = np.concatenate([np.ones(2 * d), np.zeros(n)])
    bounds = [(0, None)] * (2 * d) + [(None, None)] * n
    result = linprog(cost, A_ub=A_ub, b_ub=np.full(2 * d, lmbda), A_eq=A_eq, b_eq=y, bounds=bounds, method="highs")
    assert result.status == 0, result.message
    return float(result.fun)


Row = dict[str, Any]


def each_seed(row_of: Callable[[int], Row]) -> list[Row]:
    """A row for every seed, said as soon as it is there."""
    rows = []
    for seed in SEEDS:
        rows.append({"seed": seed} | row_of(seed))
        print(rows[-1], flush=True)
    return rows


def long_paths(*sizes: int) -> list[Row]:
    """Paths to 100 nonzeros of three estimators."""

    def row(estimator: Any, size: int, seed: int) -> Row:
        taken, path = seconds_of(path_of, estimator(max_nonzeros=NUM_NONZEROS), *design(size, seed))
        found = {"estimator": estimator.__name__, "features": size, "seconds": taken}
        found |= {"breakpoints": len(path.lambdas), "nonzeros": int(path.df.max())}
        return found | {"largest_gap": float(path.gaps.max()), "largest_violation": float(path.violations.max())}

    return [
        one
        for estimator in (DantzigSelector, CompressedSensing, L1QuantileRegressor)
        for size in sizes
        for one in each_seed(partial(row, estimator, size))
    ]


def memory(num_features: int) -> dict[str, Any]:
    """Peak of what is allocated beside X, against the d x d matrix that is not built."""
    X, y = design(num_features, 0)
    tracemalloc.start()
    path = path_of(DantzigSelector(max_nonzeros=NUM_NONZEROS), X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"features": num_features, "peak_bytes": peak, "design_bytes": X.nbytes, "breakpoints": len(path.lambdas)}


def against_highs(num_features: int, num_lambdas: int, seed: int) -> Row:
    """All breakpoints against one lambda and several, the same lambdas for both."""
    X, y = design(num_features, seed)
    ours, path = seconds_of(path_of, DantzigSelector(max_nonzeros=NUM_NONZEROS), X, y)
    last, one = float(path.lambdas[-1]), {}
    for name, solve in (("dense", highs_dense), ("residuals", highs_residuals)):
        one[name], value = seconds_of(solve, X, y, last)
        assert abs(value - path.values[-1]) <= 1e-6 * value, (name, value, path.values[-1])
    solve = highs_dense if one["dense"] <= one["residuals"] else highs_residuals
    lambdas = np.geomspace(path.lambdas[0] * 0.99, last, num_lambdas)
    several, values = seconds_of(lambda: [solve(X, y, lmbda) for lmbda in lambdas])
    apart = max(
        abs(value - np.abs(path.at(lmbda)[0]).sum()) / max(1, value)
        for value, lmbda in zip(values, lambdas, strict=True)
    )
    return {"ours": ours, "one": one, "several": several, "largest_difference": float(apart)}


def against_pyprimal(peer: str, num_features: int, rounds: int, seed: int) -> Row:
    """Down to the same last lambda, in turn."""
    X, y = design(num_features, seed)
    last = 0.2 * float(np.sqrt(NUM_SAMPLES * np.log(num_features)))  # a tenth of the usual choice
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "problem.npz"
        np.savez(file, X=X, y=y)
        command = [peer, str(HERE / "peers" / "pyprimal_paths.py"), str(file), str(last), str(rounds)]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    runs = [seconds_of(path_of, DantzigSelector(lambda_min=last), X, y) for _ in range(rounds)]
    path = runs[-1][1]
    value = float(np.abs(path.at(max(theirs["last_lambda"], last))[0]).sum())
    found = {"ours": [taken for taken, _ in runs], "pyprimal": theirs}
    return found | {"breakpoints": len(path.lambdas), "our_value": value}


def against_scikit_learn(num_features: int, seed: int) -> Row:
    """The median at one lambda, where our time is that of the path down to it."""
    from sklearn.linear_model import QuantileRegressor

    X, y = design(num_features, seed)
    lmbda = float(path_of(L1QuantileRegressor(max_iter=1), X, y).lambdas[0]) / 5
    ours, mine = seconds_of(L1QuantileRegressor(0.5, lmbda, lambda_min=lmbda).fit, X, y)
    alone = QuantileRegressor(quantile=0.5, alpha=lmbda / NUM_SAMPLES, fit_intercept=False)
    theirs, other = seconds_of(alone.fit, X, y)
    objectives = [
        float(0.5 * np.abs(y - X @ model.coef_).sum() + lmbda * np.abs(model.coef_).sum()) for model in (mine, other)
    ]
    return {"ours": ours, "scikit_learn": theirs, "objectives": objectives}


def against_skglm(peer: str, num_features: int, seed: int) -> Row:
    """The median at the same lambda; theirs is compiled before, and stops at an accuracy of 1e-8."""
    X, y = design(num_features, seed)
    lmbda = float(path_of(L1QuantileRegressor(max_iter=1), X, y).lambdas[0]) / 5
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "problem.npz"
        np.savez(file, X=X, y=y)
        command = [peer, str(HERE / "peers" / "skglm_median.py"), str(file), str(lmbda)]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ours, mine = seconds_of(L1QuantileRegressor(0.5, lmbda, lambda_min=lmbda).fit, X, y)
    value = float(0.5 * np.abs(y - X @ mine.coef_).sum() + lmbda * np.abs(mine.coef_).sum())
    return {"ours": ours, "skglm": theirs, "our_objective": value}


def clime(num_features: int) -> dict[str, Any]:
    """All columns of a chain's precision matrix, on one process and on two."""
    rng = np.random.default_rng(0)
    chain = np.eye(num_features) + 0.4 * (np.eye(num_features, k=1) + np.eye(num_features, k=-1))
    X = rng.multivariate_normal(np.zeros(num_features), np.linalg.inv(chain), size=2 * num_features)
    found = {}
    for jobs in (1, 2):
        started = time.monotonic()
        model = CLIME(0.1, n_jobs=jobs).fit(X)
        found[str(jobs)] = time.monotonic() - started
    support = np.abs(model.precision_) > 0.1
    return {"features": num_features, "wall_seconds": found, "support_right": float((support == (chain != 0)).mean())}


def main() -> None:
    parser = Command(__file__, __doc__)
    parser.add_argument("--peer", help="Python of an environment with pyprimal and skglm")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.read()
    content: dict[str, Any] = {
        "paths": long_paths(*((300,) if SMOKE else (1_000, 20_000))),
        "memory": memory(1_000 if SMOKE else 20_000),
        "highs": each_seed(partial(against_highs, *((150, 3) if SMOKE else (1_000, 20)))),
        "scikit_learn": each_seed(partial(against_scikit_learn, 100 if SMOKE else 1_000)),
        "clime": clime(20 if SMOKE else 200),
    }
    if arguments.peer:  # without it what was measured stays
        found = each_seed(partial(against_pyprimal, arguments.peer, 50 if SMOKE else 200, arguments.rounds))
        content["pyprimal"] = found
        content["skglm"] = each_seed(partial(against_skglm, arguments.peer, 60 if SMOKE else 300))
    record(arguments.out, __doc__, content, note="one thread", libraries=["scikit-learn"])


def spread(values: list[float]) -> str:
    """Median, and lowest to highest."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    paths = []
    for name in dict.fromkeys(row["estimator"] for row in results["paths"]):
        for size in dict.fromkeys(row["features"] for row in results["paths"]):
            rows = [row for row in results["paths"] if (row["estimator"], row["features"]) == (name, size)]
            breakpoints, seconds = (spread([row[key] for row in rows]) for key in ("breakpoints", "seconds"))
            gap = max(row["largest_gap"] for row in rows)
            paths.append([name, f"{size:,}", breakpoints, seconds, f"{gap:.0e}"])
    highs, fit = results["highs"], results["scikit_learn"]
    fastest, ours = [min(row["one"].values()) for row in highs], [row["ours"] for row in highs]
    one = "scikit-learn's QuantileRegressor, one lambda, d = 1,000 (ours: the path to it)"
    peers = [
        versus("HiGHS, one lambda, d = 1,000 (ours: all breakpoints)", fastest, ours),
        versus("HiGHS, 20 lambdas", [row["several"] for row in highs], ours),
        versus(one, [row["scikit_learn"] for row in fit], [row["ours"] for row in fit]),
    ]
    if "pyprimal" in results:
        theirs = [statistics.median(row["pyprimal"]["seconds"]) for row in results["pyprimal"]]
        mine = [statistics.median(row["ours"]) for row in results["pyprimal"]]
        peers.append(versus("pyprimal, d = 200, path to the same lambda", theirs, mine))
    if "skglm" in results:
        theirs, mine = [row["skglm"]["seconds"] for row in results["skglm"]], [row["ours"] for row in results["skglm"]]
        above = max(row["skglm"]["objective"] / row["our_objective"] - 1 for row in results["skglm"])
        name = f"skglm, median at one lambda, d = 300 (its objective up to {above:.0e} higher; ours: the path to it)"
        peers.append(versus(name, theirs, mine))
    head = "path to 100 nonzeros, n = 200 | features | breakpoints | CPU s, median (range of seeds) | largest gap"
    return {"paths": table(head, paths), "peers": table("other program | its CPU s | ours | ratio", peers)}


def versus(name: str, theirs: list[float], ours: list[float]) -> list[str]:
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return [name, spread(theirs), spread(ours), spread(ratios)]


if __name__ == "__main__":
    main()
