"""The subproblem of one round: a near-stationary point of the augmented Lagrangian, by PStorm with restarts.

    repeat   g <- gradient on all data;  stop where ||x - prox(x - g / L)|| L <= accuracy
             PStorm from g, `restart` steps on small batches
    at last  x <- prox(x - g / L)

The last step is the paper's post-processing: after it a small mapping means a small distance from stationarity. That
every run of PStorm starts from an exact gradient is ours: steps of 1 / L with b = 0 then keep the accuracy that the
published schedule (b None) reaches only after many more steps. A run after which the mapping is no smaller halves the
steps, and one that has made it much larger is undone: batches may be rougher than all data together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.optim.constrained.lagrangian import Lagrangian, Whole
from burnish.optim.constrained.pstorm import PStorm
from burnish.optim.maths.augmented import force

WORSE = 2.0
"""Growth of the mapping over one run of PStorm from which on the run is undone."""
BOLDER = 1.1
"""What steps grow by after a run that has made the mapping smaller, up to their first size."""


@dataclass(frozen=True)
class Inner:
    """How a subproblem is solved.

    Attributes:
        steps: of PStorm, at most.
        restart: of PStorm between two gradients on all data.
        estimator: where values of constraints come from, "stochastic" (batches) or "exact" (all data).
        b: of PStorm.
        proximal: keywords of PStorm for h.
    """

    steps: int
    restart: int
    estimator: Literal["stochastic", "exact"]
    b: float | None
    proximal: dict[str, Any]


@dataclass(frozen=True)
class Solved:
    """Where a subproblem ended.

    Attributes:
        whole: at the point before the last proximal step.
        mapping: its prox-gradient mapping.
        accurate: whether that is small enough.
        size: of the last proximal step.
        steps: of PStorm.
        caution: what its step size was multiplied with in the end, at most 1.
    """

    whole: Whole
    mapping: float
    accurate: bool
    size: float
    steps: int
    caution: float


def solve(
    problem: Lagrangian,
    multipliers: Tensor,
    penalty: float,
    accuracy: Callable[[Whole, float], float],
    lr: Callable[[Whole], tuple[float, float]],
    how: Inner,
    generator: torch.Generator,
    *,
    caution: float = 1.0,
    watch: Callable[[int], None] | None = None,
) -> Solved:
    """Moves the parameters to a near-stationary point.

    Args:
        problem: what is minimised.
        multipliers, penalty: y and beta.
        accuracy: (at the first point, its mapping) -> the largest mapping to end with.
        lr: at the first point -> (the step size of PStorm, that of the proximal step).
        how: see there.
        generator: of batches.
        caution: of the subproblem before.
        watch: is given the samples so far before every run of PStorm.
    """
    pull = problem.pulled(multipliers, penalty)
    whole = problem.whole(pull)
    step, size = lr(whole)
    mapping = problem.mapping(whole.gradients, size)
    wanted = accuracy(whole, mapping)
    slack = torch.zeros_like(multipliers)
    with_slack = how.estimator == "stochastic" and bool(problem.inequality.any())
    groups: list[dict[str, Any]] = [{"params": problem.params, **how.proximal}]
    if with_slack:
        groups.append({"params": [slack], "proximal": "box", "low": 0.0})
    optimizer = PStorm(groups, lr=step, b=how.b)
    done = 0
    while mapping > wanted and done < how.steps:
        if watch is not None:
            watch(problem.samples)
        if with_slack:
            slack.copy_(_best_slack(whole.violation, multipliers, penalty, problem.inequality))
        for group in optimizer.param_groups:
            group["lr"] = step * caution
        kept = whole, mapping, [parameter.detach().clone() for parameter in problem.params]
        optimizer.restart()
        optimizer.step(lambda whole=whole: _put_gradients(problem, whole, slack if with_slack else None))
        count = min(how.restart, how.steps - done)
        for _ in range(count - 1):
            batches = _Batches(problem, how.estimator, generator)
            optimizer.step(lambda: batches.gradients(multipliers, penalty, slack if with_slack else None))  # noqa: B023
        done += count
        whole = problem.whole(pull)
        mapping = problem.mapping(whole.gradients, size)
        caution = min(1.0, caution * BOLDER) if mapping < kept[1] else caution / 2
        if mapping > WORSE * kept[1]:
            whole, mapping, point = kept
            problem.put(point)
    problem.put(problem.moved(whole.gradients, size))
    return Solved(whole, mapping, mapping <= wanted, size, done, caution)


def _best_slack(violation: Tensor, multipliers: Tensor, penalty: float, inequality: Tensor) -> Tensor:
    best = (-violation - multipliers / penalty).clamp_min(0)
    return torch.where(inequality, best, torch.zeros_like(best))


def _put_gradients(problem: Lagrangian, whole: Whole, slack: Tensor | None) -> None:
    for parameter, gradient in zip(problem.params, whole.gradients, strict=True):
        parameter.grad = gradient.clone()
    if slack is not None:
        slack.grad = torch.where(problem.inequality, whole.pull, torch.zeros_like(whole.pull))


class _Batches:
    """The batches of one step, drawn once, so that both points of a step see the same.

    The objective, the gradients of the constraints and their values have a batch each: a product of two estimates on
    one batch would be biased.
    """

    def __init__(self, problem: Lagrangian, estimator: str, generator: torch.Generator) -> None:
        self.problem = problem
        constraints = problem.constraints
        self.objective = problem.objective.data.draw(generator)
        self.slopes = [constraint.data.draw(generator) for constraint in constraints]
        exact = estimator == "exact"
        self.values = [c.data.tensors if exact else c.data.draw(generator) for c in constraints]
        self.read = problem.objective.data.drawn() + sum(
            c.data.drawn() + (c.data.size if exact else c.data.drawn()) for c in constraints
        )

    def gradients(self, multipliers: Tensor, penalty: float, slack: Tensor | None) -> Tensor:
        """Puts the estimate at the present point into `.grad`; the objective's value."""
        problem = self.problem
        problem.samples += self.read
        loss = problem.value(self.objective)
        with torch.no_grad():
            violation = problem.violation(self.values)
            if slack is None:
                pull = force(violation, multipliers, penalty, problem.inequality)
            else:
                pull = multipliers + penalty * (violation + slack)
                slack.grad = torch.where(problem.inequality, pull, torch.zeros_like(pull))
        (loss + pull @ problem.violation(self.slopes)).backward()
        return loss.detach()
