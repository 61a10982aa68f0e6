"""Cooper's primal-dual gradients on a problem of `stoc_ialm.py`, in an environment of its own.

    python cooper_passes.py PROBLEM.npz

Simultaneous updates of parameters and multipliers by stochastic gradients, both with steps that fall as those of the
benchmark's own primal-dual side do. Prints, for every setting and seed asked for, the passes until both marks hold. In
the search a setting is given up where the best one before it had got there; its score is that number then.
"""

from __future__ import annotations

import json
import math
import sys

import cooper
import numpy as np
import torch
from torch.nn.functional import softplus


class Problem(cooper.ConstrainedMinimizationProblem):
    """Mean softplus(-rows w) under the bound of its kind."""

    def __init__(self, kind: str, w: torch.Tensor) -> None:
        super().__init__()
        self.kind, self.w = kind, w
        count = 1 if kind == "neyman-pearson" else 2
        multiplier = cooper.multipliers.DenseMultiplier(num_constraints=count)
        self.constraint = cooper.Constraint(
            constraint_type=cooper.ConstraintType.INEQUALITY,
            formulation_type=cooper.formulations.Lagrangian,
            multiplier=multiplier.double(),
        )

    def violation(self, parts: list[torch.Tensor]) -> torch.Tensor:
        if self.kind == "neyman-pearson":
            return softplus(parts[0] @ self.w).mean()[None] - 0.1
        difference = (parts[0] @ self.w).mean() - (parts[1] @ self.w).mean()
        return torch.stack([difference - 0.2, -difference - 0.2])

    def compute_cmp_state(self, rows: torch.Tensor, parts: list[torch.Tensor]) -> cooper.CMPState:
        state = cooper.ConstraintState(violation=self.violation(parts))
        return cooper.CMPState(loss=softplus(-(rows @ self.w)).mean(), observed_constraints={self.constraint: state})


def passes(facts: dict, settings: dict, seed: int, budget: float) -> float:
    draws, batch = np.random.default_rng(seed), settings["batch"]
    rows, parts = torch.tensor(facts["rows"]), [torch.tensor(part) for part in facts["parts"]]
    size = len(rows) + sum(map(len, parts))
    w = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    problem = Problem(facts["kind"], w)
    primal = torch.optim.SGD([w], lr=settings["lr"])
    dual = torch.optim.SGD(problem.dual_parameters(), lr=settings["lr"] * settings["dual_lr"], maximize=True)
    both = cooper.optim.SimultaneousOptimizer(cmp=problem, primal_optimizers=primal, dual_optimizers=dual)
    read = done = 0
    while read < budget * size:
        falls = 1 / math.sqrt(1 + read / size / 10)
        primal.param_groups[0]["lr"] = settings["lr"] * falls
        dual.param_groups[0]["lr"] = settings["lr"] * settings["dual_lr"] * falls
        batches = [part[torch.tensor(draws.integers(len(part), size=batch))] for part in (rows, *parts)]
        both.roll(compute_cmp_state_kwargs={"rows": batches[0], "parts": batches[1:]})
        with torch.no_grad():
            w *= min(1.0, facts["radius"] / max(float(w.norm()), 1e-30))
            read += batch * (1 + len(parts))
            if read // size > done:
                done = read // size
                objective = float(softplus(-(rows @ w)).mean())
                near = abs(objective - facts["optimum"]) <= facts["share"] * facts["optimum"]
                if near and float(problem.violation(parts).max()) <= facts["violation"]:
                    return read / size
    return float(budget)


def main(file: str) -> None:
    torch.set_num_threads(1)
    with np.load(file) as kept:
        facts = json.loads(str(kept["facts"])) | {"rows": kept["rows"]}
        facts["parts"] = [kept[f"part{number}"] for number in range(facts["num_parts"])]
    budget, tried = float(facts["budget"]), []
    for option in facts["options"]:
        least = min([score for score, _ in tried], default=budget)
        tried.append((passes(facts, option, facts["tuning"], least), option))
    best = min(tried, key=lambda pair: pair[0])[1]
    found = [passes(facts, best, seed, budget) for seed in facts["seeds"]]
    scores = [{"settings": option, "score": score} for score, option in tried]
    print(json.dumps({"settings": best, "tried": scores, "passes": found, "cooper": cooper.__version__}))


if __name__ == "__main__":
    main(sys.argv[1])
