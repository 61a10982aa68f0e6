"""Training under expectation constraints (Stoc-iALM): the best model whose losses elsewhere stay within bounds.

    from burnish.optim.constrained import NeymanPearson, constrained_minimize

    problem = NeymanPearson(level=0.2).problem(score, X, y, batch_size=64)
    result = constrained_minimize(problem.objective, problem.constraints, model.parameters(), lr=0.05)
    result.status, result.multipliers, result.rows[-1]["violation"]

The words are those of Cooper (constraint, violation, multiplier, penalty coefficient). Its classes are not used: its
augmented Lagrangian squares the violation of one batch, which is the bias that this method removes.
"""

from burnish.optim.constrained.constraints import (
    ConstrainedProblem,
    Constraint,
    DemographicParity,
    LossBound,
    NeymanPearson,
    Objective,
    Sampled,
)
from burnish.optim.constrained.minimize import ConstrainedResult, constrained_minimize
from burnish.optim.constrained.pstorm import PStorm

__all__ = [
    "ConstrainedProblem",
    "ConstrainedResult",
    "Constraint",
    "DemographicParity",
    "LossBound",
    "NeymanPearson",
    "Objective",
    "PStorm",
    "Sampled",
    "constrained_minimize",
]
