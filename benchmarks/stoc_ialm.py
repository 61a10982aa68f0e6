"""How many passes over the data until the bound holds to 1e-3 and the objective is within 1 % of the optimum?

    python benchmarks/stoc_ialm.py [--peer PYTHON of benchmarks/env/stoc_ialm.txt]

Stoc-iALM in two forms (rounds solved to an accuracy with measured step sizes; one run of PStorm a round with a given
one) against the same rounds with plain stochastic gradients inside, a quadratic penalty with stochastic gradients,
primal-dual stochastic gradients, written out here and as Cooper takes them (its simultaneous optimizer), and against
itself on all data (deterministic). Two convex problems with the optimum of SLSQP. Every side has as many
settings tried on a seed of its own, and is then run on five others. A pass is as many evaluations of a sample (value
or gradient, either point of a PStorm step) as there are samples. The baselines are looked at after every pass, ours
before every restart; the first time that both hold counts, for all. What was measured before with the same settings
is kept.
"""

from __future__ import annotations

import itertools
import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from experiment import SMOKE, Command, cell, over_seeds, record, search, table
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.datasets import load_breast_cancer
from torch.nn import functional as F

from burnish.core.statistics import paired_interval
from burnish.optim.constrained import Constraint, Objective, Sampled, constrained_minimize
from burnish.optim.constrained.constraints import _Pairs

BUDGET = 30 if SMOKE else 300
"""Passes after which a side gives up; that many are counted for it then."""
TUNING, REPORTING = (10,), tuple(range(5))
VIOLATION, SHARE = 1e-3, 0.01


class Reached(Exception):
    """Both hold; nothing more is asked of a run."""


@dataclass
class Problem:
    """min mean softplus(-rows w) s.t. every bound <= 0, ||w|| <= radius.

    Attributes:
        kind: "neyman-pearson" or "parity".
        rows: of the objective, signed.
        parts: data of the constraint, one array a group of samples.
        bounds: parts of a batch, w -> (values, gradients).
        torch_bounds: the same on tensors, without gradients.
    """

    kind: str
    rows: np.ndarray
    parts: tuple[np.ndarray, ...]
    bounds: Callable[..., tuple[np.ndarray, np.ndarray]]
    torch_bounds: Callable[..., torch.Tensor]
    radius: float
    optimum: float = math.nan
    multipliers: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        return len(self.rows) + sum(map(len, self.parts))

    def objective(self, w: np.ndarray, rows: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        rows = self.rows if rows is None else rows
        scores = rows @ w
        return float(np.logaddexp(0, -scores).mean()), -rows.T @ expit(-scores) / len(rows)

    def solve(self) -> None:
        """Fills in the optimum of SLSQP."""
        count = len(self.bounds(*self.parts, np.zeros(self.rows.shape[1]))[0])
        pieces = [
            {
                "type": "ineq",
                "fun": lambda w, i=i: -self.bounds(*self.parts, w)[0][i],
                "jac": lambda w, i=i: -self.bounds(*self.parts, w)[1][i],
            }
            for i in range(count)
        ]
        pieces.append({"type": "ineq", "fun": lambda w: self.radius**2 - w @ w, "jac": lambda w: -2 * w})
        found = minimize(
            self.objective,
            np.zeros(self.rows.shape[1]),
            jac=True,
            constraints=pieces,
            method="SLSQP",
            options={"ftol": 1e-12, "maxiter": 1000},
        )
        assert found.success, found.message
        self.optimum = float(found.fun)

    def reached(self, w: np.ndarray) -> bool:
        values, _ = self.bounds(*self.parts, w)
        return values.max() <= VIOLATION and abs(self.objective(w)[0] - self.optimum) <= SHARE * self.optimum

    def inside(self, w: np.ndarray) -> np.ndarray:
        return w * min(1.0, self.radius / max(float(np.linalg.norm(w)), 1e-30))


def breast_cancer() -> Problem:
    """Neyman-Pearson: tumours missed, with the loss on healthy tissue at most 0.1."""
    features, benign = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    rows = np.c_[features, np.ones(len(features))]

    def bounds(negatives: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = negatives @ w
        return np.array([np.logaddexp(0, scores).mean() - 0.1]), (negatives.T @ expit(scores) / len(scores))[None]

    tumours, healthy = rows[benign == 0], rows[benign == 1]
    return Problem(
        "neyman-pearson", tumours, (healthy,), bounds, lambda n, w: F.softplus(n @ w).mean()[None] - 0.1, 2.0
    )


def fairness() -> Problem:
    """Demographic parity: two groups of 300 or so whose mean scores differ by at most 0.2."""
    draws, size = np.random.default_rng(0), 100 if SMOKE else 600
    groups = draws.integers(0, 2, size)
    rows = draws.normal(size=(size, 10)) + 0.8 * groups[:, None] * (np.arange(10) < 3)
    labels = (rows @ np.linspace(1, -1, 10) + draws.normal(size=size) > 0.3) * 2.0 - 1
    rows = np.c_[rows, np.ones(size)]

    def bounds(one: np.ndarray, zero: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        slope = one.mean(0) - zero.mean(0)
        return np.array([slope @ w - 0.2, -slope @ w - 0.2]), np.stack([slope, -slope])

    def on_tensors(one: torch.Tensor, zero: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        difference = (one @ w).mean() - (zero @ w).mean()
        return torch.stack([difference - 0.2, -difference - 0.2])

    parts = (rows[groups == 1], rows[groups == 0])
    return Problem("parity", labels[:, None] * rows, parts, bounds, on_tensors, 5.0)


# -- the sides: (problem, settings, seed) -> passes ----------------------------------------------------------------


def rounds(problem: Problem, settings: dict[str, Any], seed: int) -> float:
    """`constrained_minimize` with these settings."""
    w = torch.zeros(problem.rows.shape[1], dtype=torch.float64, requires_grad=True)
    batch = settings["batch"]
    parts = [torch.tensor(part) for part in problem.parts]
    data = Sampled(*parts, batch_size=batch) if len(parts) == 1 else _Pairs(*parts, batch_size=batch)
    objective = Objective(
        lambda rows: F.softplus(-(rows @ w)).mean(), Sampled(torch.tensor(problem.rows), batch_size=batch)
    )
    passes = [float(BUDGET)]

    def watch(samples: int) -> None:
        here = problem.reached(w.detach().numpy())
        if here or samples > BUDGET * problem.size:
            passes[0] = min(samples / problem.size, BUDGET)
            raise Reached

    constraint = Constraint(lambda *rows: problem.torch_bounds(*rows, w), data=data)
    options = {name: value for name, value in settings.items() if name != "batch"}
    try:
        constrained_minimize(
            objective,
            [constraint],
            [w],
            proximal={"proximal": "ball", "radius": problem.radius},
            seed=seed,
            watch=watch,
            **options,
        )
    except Reached:
        return passes[0]
    return float(BUDGET)


def gradients(problem: Problem, settings: dict[str, Any], seed: int, *, dual: bool) -> float:
    """Stochastic gradients on f + y c (dual) or f + penalty / 2 max(0, c)^2, with steps lr / sqrt(1 + passes)."""
    draws, batch = np.random.default_rng(seed), settings["batch"]
    w, multipliers = np.zeros(problem.rows.shape[1]), 0.0
    read = done = 0
    while read < BUDGET * problem.size:
        lr = settings["lr"] / math.sqrt(1 + read / problem.size / 10)
        rows = problem.rows[draws.integers(len(problem.rows), size=batch)]
        parts = [part[draws.integers(len(part), size=batch)] for part in problem.parts]
        _, slope = problem.objective(w, rows)
        values, slopes = problem.bounds(*parts, w)
        pull = multipliers if dual else settings["penalty"] * np.maximum(values, 0)
        w = problem.inside(w - lr * (slope + np.broadcast_to(pull, values.shape) @ slopes))
        if dual:
            multipliers = np.maximum(0, multipliers + settings["dual_lr"] * lr * values)
        read += batch * (1 + len(parts))
        if read // problem.size > done:
            done = read // problem.size
            if problem.reached(w):
                return read / problem.size
    return float(BUDGET)


def cooper(peer: str, problem: Problem) -> dict[str, Any]:
    """Cooper's side, with the search of the primal-dual one."""
    facts = {"kind": problem.kind, "num_parts": len(problem.parts), "radius": problem.radius, "budget": BUDGET}
    facts |= {"optimum": problem.optimum, "share": SHARE, "violation": VIOLATION}
    facts |= {"options": SIDES[PRIMAL_DUAL][1][: 2 if SMOKE else None], "tuning": TUNING[0], "seeds": REPORTING}
    parts = {f"part{number}": part for number, part in enumerate(problem.parts)}
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / "problem.npz"
        np.savez(file, allow_pickle=False, rows=problem.rows, facts=json.dumps(facts), **parts)
        script = Path(__file__).parent / "peers" / "cooper_passes.py"
        done = subprocess.run([peer, str(script), str(file)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def grid(**options: tuple[Any, ...]) -> list[dict[str, Any]]:
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


OURS = "Stoc-iALM, one run a round"
"""Of our two forms the one that the tuning seed prefers on both problems."""
PRIMAL_DUAL, COOPER = "primal-dual stochastic gradients", "Cooper, primal-dual"
Side = tuple[Callable[[Problem, dict[str, Any], int], float], list[dict[str, Any]]]
SIDES: dict[str, Side] = {
    "Stoc-iALM": (rounds, grid(batch=(2, 8), restart=(50, 150), penalty=(3.0, 10.0))),
    OURS: (
        lambda problem, settings, seed: rounds(problem, settings | {"steps": settings["restart"]}, seed),
        grid(batch=(2,), restart=(50,), rounds=(200,), lr=(0.03, 0.1, 0.3, 1.0), penalty=(1.0, 3.0)),
    ),
    "the same rounds, stochastic gradients inside": (
        rounds,
        grid(batch=(2, 8), restart=(50, 150), penalty=(3.0, 10.0), b=(1.0,)),
    ),
    "penalty, stochastic gradients": (
        lambda *a: gradients(*a, dual=False),
        grid(batch=(8, 32), lr=(0.03, 0.1), penalty=(30.0, 300.0)),
    ),
    PRIMAL_DUAL: (
        lambda *a: gradients(*a, dual=True),
        grid(batch=(8, 32), lr=(0.03, 0.3), dual_lr=(0.3, 3.0)),
    ),
    "the same rounds on all data": (rounds, grid(batch=(None,), restart=(5, 20), penalty=(1.0, 3.0, 10.0, 30.0))),
}


def measure(problem: Problem, before: dict[str, Any], peer: str | None, keep: Callable[[dict[str, Any]], None]) -> None:
    """Every side that was not measured before with these settings, each kept as soon as it is known."""
    problem.solve()
    found: dict[str, Any] = {"optimum": problem.optimum, "samples": problem.size, "sides": {}}
    for name, (side, options) in SIDES.items():
        options = options[:2] if SMOKE else options
        one = before.get("sides", {}).get(name, {})
        if [tried["settings"] for tried in one.get("tried", [])] != options:
            best, tried = search(options, lambda option, side=side: sum(side(problem, option, s) for s in TUNING))
            passes = [side(problem, best, seed) for seed in (REPORTING[:2] if SMOKE else REPORTING)]
            one = {"settings": best, "tried": tried, "passes": passes}
            print(name, best, passes, flush=True)
        found["sides"][name] = one
        keep(found | {"sides": before.get("sides", {}) | found["sides"]})
    if peer:
        found["sides"][COOPER] = cooper(peer, problem)
        print(COOPER, found["sides"][COOPER]["passes"], flush=True)
        keep(found)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown}."""
    lines = []
    for name, found in results["problems"].items():
        ours = found["sides"][OURS]["passes"]
        for side, one in found["sides"].items():
            difference = paired_interval(np.asarray(one["passes"]), np.asarray(ours))
            failed = sum(value >= results["budget"] for value in one["passes"])
            more = "" if side == OURS else cell(difference, ".0f")
            lines.append(
                (name, side, cell(over_seeds(one["passes"]), ".0f"), more, f"{failed} of {len(one['passes'])}")
            )
    head = f"problem | method | passes (95 %): | more than {OURS}, paired (95 %): | seeds that did not get there:"
    return {"passes": table(head, lines)}


def main() -> None:
    command = Command(__file__, __doc__)
    command.add_argument("--peer", help="Python of an environment with cooper-optim")
    arguments = command.read()
    torch.set_num_threads(1)
    problems = {"breast cancer, Neyman-Pearson": breast_cancer(), "demographic parity": fairness()}
    content = json.loads(arguments.out.read_text())["problems"] if arguments.out.is_file() else {}
    facts = {"budget": BUDGET, "tuning_seeds": TUNING, "seeds": REPORTING}

    def keep(name: str, found: dict[str, Any]) -> None:
        order = [*SIDES, COOPER]
        found["sides"] = {side: found["sides"][side] for side in order if side in found["sides"]}
        content[name] = found
        new = {"problems": content} | facts
        record(arguments.out, __doc__, new, note="no times are measured", libraries=("scikit-learn",))

    for name, problem in problems.items():
        measure(problem, content.get(name, {}), arguments.peer, lambda found, name=name: keep(name, found))


if __name__ == "__main__":
    main()
