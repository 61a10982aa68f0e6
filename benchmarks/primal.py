"""What does a whole path cost, beside pyprimal, single solutions by HiGHS, and scikit-learn?

    python benchmarks/primal.py [--peer PYTHON of benchmarks/env/primal.txt] [--rounds 3] [--smoke]

Gaussian designs of n = 200 samples with 2 % (at most 20) nonzero coefficients and unit noise, one for each seed. Each
side runs in turn on one thread and is charged CPU seconds, so that a busy machine disturbs all alike. HiGHS is given
the better of two formulations: the dense constraint X^T X, and one with the residuals as variables. Objectives are
compared wherever two sides solved the same problem. Nothing is tuned.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy.optimize import linprog

from burnish.linear_model import CLIME, CompressedSensing, DantzigSelector, L1QuantileRegressor, SolutionPath

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "primal.json"
NUM_SAMPLES = 200
NUM_NONZEROS = 100


def design(num_features: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(NUM_SAMPLES, num_features))
    y = X[:, : min(max(num_features // 50, 2), 20)].sum(axis=1) + rng.normal(size=NUM_SAMPLES)
    return X, y


def seconds_of(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
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


def long_paths(sizes: list[int], seeds: list[int]) -> list[dict[str, Any]]:
    """Paths to 100 nonzeros of three estimators."""
    rows = []
    for estimator in (DantzigSelector, CompressedSensing, L1QuantileRegressor):
        for size in sizes:
            for seed in seeds:
                X, y = design(size, seed)
                taken, path = seconds_of(lambda e=estimator, X=X, y=y: path_of(e(max_nonzeros=NUM_NONZEROS), X, y))
                rows.append(
                    {
                        "estimator": estimator.__name__,
                        "features": size,
                        "seed": seed,
                        "seconds": taken,
                        "breakpoints": len(path.lambdas),
                        "nonzeros": int(path.df.max()),
                        "largest_gap": float(path.gaps.max()),
                        "largest_violation": float(path.violations.max()),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def memory(num_features: int) -> dict[str, Any]:
    """Peak of what is allocated beside X, against the d x d matrix that is not built."""
    X, y = design(num_features, 0)
    tracemalloc.start()
    path = path_of(DantzigSelector(max_nonzeros=NUM_NONZEROS), X, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"features": num_features, "peak_bytes": peak, "design_bytes": X.nbytes, "breakpoints": len(path.lambdas)}


def against_highs(num_features: int, seeds: list[int], num_lambdas: int) -> list[dict[str, Any]]:
    """All breakpoints against one lambda and several, the same lambdas for both."""
    rows = []
    for seed in seeds:
        X, y = design(num_features, seed)
        ours, path = seconds_of(lambda X=X, y=y: path_of(DantzigSelector(max_nonzeros=NUM_NONZEROS), X, y))
        last = float(path.lambdas[-1])
        one = {}
        for name, solve in (("dense", highs_dense), ("residuals", highs_residuals)):
            taken, value = seconds_of(lambda solve=solve, X=X, y=y, last=last: solve(X, y, last))
            one[name] = taken
            assert abs(value - path.values[-1]) <= 1e-6 * value, (name, value, path.values[-1])
        solve = highs_dense if one["dense"] <= one["residuals"] else highs_residuals
        lambdas = np.geomspace(path.lambdas[0] * 0.99, last, num_lambdas)
        several, values = seconds_of(lambda s=solve, X=X, y=y, ls=lambdas: [s(X, y, lmbda) for lmbda in ls])
        apart = max(
            abs(value - np.abs(path.at(lmbda)[0]).sum()) / max(1, value)
            for value, lmbda in zip(values, lambdas, strict=True)
        )
        rows.append({"seed": seed, "ours": ours, "one": one, "several": several, "largest_difference": float(apart)})
        print(rows[-1], flush=True)
    return rows


def against_pyprimal(peer: str, num_features: int, seeds: list[int], rounds: int) -> list[dict[str, Any]]:
    """Down to the same last lambda, in turn."""
    rows = []
    for seed in seeds:
        X, y = design(num_features, seed)
        last = 0.2 * float(np.sqrt(NUM_SAMPLES * np.log(num_features)))  # a tenth of the usual choice
        ours = []
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "problem.npz"
            np.savez(file, X=X, y=y)
            command = [peer, str(HERE / "peers" / "pyprimal_paths.py"), str(file), str(last), str(rounds)]
            theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(rounds):
            taken, path = seconds_of(lambda X=X, y=y, last=last: path_of(DantzigSelector(lambda_min=last), X, y))
            ours.append(taken)
        value = float(np.abs(path.at(max(theirs["last_lambda"], last))[0]).sum())
        rows.append(
            {"seed": seed, "ours": ours, "pyprimal": theirs, "breakpoints": len(path.lambdas), "our_value": value}
        )
        print(rows[-1], flush=True)
    return rows


def against_scikit_learn(num_features: int, seeds: list[int]) -> list[dict[str, Any]]:
    """The median at one lambda, where our time is that of the path down to it."""
    from sklearn.linear_model import QuantileRegressor

    rows = []
    for seed in seeds:
        X, y = design(num_features, seed)
        first = float(path_of(L1QuantileRegressor(max_iter=1), X, y).lambdas[0])
        lmbda = first / 5
        ours, mine = seconds_of(lambda X=X, y=y, at=lmbda: L1QuantileRegressor(0.5, at, lambda_min=at).fit(X, y))
        alone = QuantileRegressor(quantile=0.5, alpha=lmbda / NUM_SAMPLES, fit_intercept=False)
        theirs, other = seconds_of(lambda X=X, y=y, alone=alone: alone.fit(X, y))
        objectives = [
            float(0.5 * np.abs(y - X @ model.coef_).sum() + lmbda * np.abs(model.coef_).sum())
            for model in (mine, other)
        ]
        rows.append({"seed": seed, "ours": ours, "scikit_learn": theirs, "objectives": objectives})
        print(rows[-1], flush=True)
    return rows


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
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", help="Python of an environment with pyprimal")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="smallest sizes, nothing written")
    arguments = parser.parse_args()
    small = arguments.smoke
    seeds = [0] if small else [0, 1, 2]
    results = {
        "question": (__doc__ or "").splitlines()[0],
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, one thread",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
        "slices": {"tuning": [], "reporting": []},
        "paths": long_paths([300] if small else [1_000, 20_000], seeds),
        "memory": memory(1_000 if small else 20_000),
        "highs": against_highs(150 if small else 1_000, seeds, 3 if small else 20),
        "scikit_learn": against_scikit_learn(100 if small else 1_000, seeds),
        "clime": clime(20 if small else 200),
    }
    if arguments.peer:
        results["pyprimal"] = against_pyprimal(arguments.peer, 50 if small else 200, seeds, arguments.rounds)
    elif RESULTS.is_file():
        results["pyprimal"] = json.loads(RESULTS.read_text())["pyprimal"]
    if not small:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def spread(values: list[float]) -> str:
    """Median, and lowest to highest."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    lines = [
        "| path to 100 nonzeros, n = 200 | features | breakpoints | CPU s, median (range of seeds) | largest gap |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["estimator"] for row in results["paths"]):
        for size in dict.fromkeys(row["features"] for row in results["paths"]):
            rows = [row for row in results["paths"] if (row["estimator"], row["features"]) == (name, size)]
            breakpoints = spread([row["breakpoints"] for row in rows])
            gap = max(row["largest_gap"] for row in rows)
            lines.append(f"| {name} | {size:,} | {breakpoints} | {spread([r['seconds'] for r in rows])} | {gap:.0e} |")
    highs = results["highs"]
    fastest = [min(row["one"].values()) for row in highs]
    peers = [
        "| other program | its CPU s | ours | ratio |",
        "| --- | --- | --- | --- |",
        versus("HiGHS, one lambda, d = 1,000 (ours: all breakpoints)", fastest, [row["ours"] for row in highs]),
        versus("HiGHS, 20 lambdas", [row["several"] for row in highs], [row["ours"] for row in highs]),
        versus(
            "scikit-learn's QuantileRegressor, one lambda, d = 1,000 (ours: the path to it)",
            [row["scikit_learn"] for row in results["scikit_learn"]],
            [row["ours"] for row in results["scikit_learn"]],
        ),
    ]
    if "pyprimal" in results:
        peers.append(
            versus(
                "pyprimal, d = 200, path to the same lambda",
                [statistics.median(row["pyprimal"]["seconds"]) for row in results["pyprimal"]],
                [statistics.median(row["ours"]) for row in results["pyprimal"]],
            )
        )
    return {"paths": "\n".join(lines), "peers": "\n".join(peers)}


def versus(name: str, theirs: list[float], ours: list[float]) -> str:
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"| {name} | {spread(theirs)} | {spread(ours)} | {spread(ratios)} |"


if __name__ == "__main__":
    main()
