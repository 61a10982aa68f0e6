"""Stoc-iALM: the stochastic inexact augmented Lagrangian method.

    for k = 0, 1, ...:
        x    <- point whose prox-gradient mapping of f + h + augmented terms at (y, beta) is <= eps_k, by PStorm from x
        x    <- one proximal step with the gradient of all data
        y    <- y + w_k c(x), cut off at 0 for inequalities
        stop where stationarity, violation and complementarity on all data are within the tolerance
        beta <- sigma beta, where the point was accurate and the multipliers alone lower the violation too slowly

Batches of the objective, of the constraints' gradients and of their values are independent. With `estimator="exact"`
values of the constraints are of all data, for which inequalities need no slack.

The paper (arXiv:2212.09513) has no public code; the structure is its own, formulas are reconstructed, see
`burnish.optim.maths.augmented`. Ours: eps_k falls with the rounds to the tolerance; the penalty waits for accurate
points (a larger one makes an inaccurate point less accurate still) and for need; steps follow a measured smoothness;
and a violation that is near-stationary itself is called infeasible.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.core.store import Store
from burnish.optim.constrained.constraints import Constraint, Objective
from burnish.optim.constrained.inner import Inner, solve
from burnish.optim.constrained.lagrangian import Lagrangian, Whole
from burnish.optim.maths.augmented import (
    bounded_step,
    complementarity,
    largest_violation,
    moved_multipliers,
    residual,
)

Status = Literal["converged", "infeasible", "max_rounds"]
ENOUGH = 0.5
"""Of the violation of the round before: at or below it the penalty stays, since larger ones only slow steps down."""
PATIENCE = 3
"""Rounds in which a violation may stay as it is, before the problem may be called infeasible."""
STALLED = 0.9
"""Of the violation that many rounds before: what it must fall below."""
FLAT = 0.05
"""Mapping of ||violation||^2 / 2 per unit of violation, relative to the steepest: at or below it, no step helps."""


@dataclass(frozen=True)
class MinimizeSettings:
    """How `constrained_minimize` goes about it; see there."""

    lr: float | None = None
    steps: int = 10_000
    restart: int = 100
    rounds: int = 30
    penalty: float = 3.0
    growth: float = 3.0
    multiplier_step: Literal["bounded", "classical"] = "classical"
    estimator: Literal["stochastic", "exact"] = "stochastic"
    tolerance: float = 1e-3
    b: float | None = 0.0
    proximal: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("lr", 0), ("penalty", 0), ("growth", 1), ("tolerance", 0)):
            value = getattr(self, name)
            if value is not None and not low < value < math.inf:
                raise SettingsError(f"{name} is {value}, but must be a finite number above {low}")
        for name in ("steps", "restart", "rounds"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}, but must be 1 or larger")
        for name, known in (("multiplier_step", ("bounded", "classical")), ("estimator", ("stochastic", "exact"))):
            if getattr(self, name) not in known:
                raise SettingsError(f"{name} is {getattr(self, name)!r}, but must be {' or '.join(known)}")

    def accuracy(self, number: int, first: float) -> float:
        """eps_k: from a tenth of the first mapping down to the tolerance."""
        return max(self.tolerance, 0.1 * first * self.growth**-number)


@dataclass(frozen=True)
class ConstrainedResult:
    """What came out; the parameters hold the solution.

    Attributes:
        status: "converged", "infeasible" (the violation cannot be lowered from here) or "max_rounds".
        multipliers: shape (constraints,): by how much the objective would fall per unit that a bound is raised.
        rows: of every round {round, penalty, objective, violation, stationarity, complementarity, multipliers,
            accurate, steps, samples}; stationarity is that of f + h + multipliers c, over max(1, ||multipliers||);
            samples are evaluations so far, of values and gradients, whole passes included.
    """

    status: Status
    multipliers: Tensor
    rows: list[dict[str, Any]]


def constrained_minimize(
    objective: Objective | Callable[[], Tensor],
    constraints: Sequence[Constraint],
    params: Iterable[Tensor],
    *,
    work_dir: Path | None = None,
    log: Callable[[dict[str, Any]], None] | None = None,
    watch: Callable[[int], None] | None = None,
    **settings: Any,
) -> ConstrainedResult:
    """min f(x) + h(x) under expectation constraints; parameters are changed in place.

    Args:
        objective: f, with its data; a plain function is taken as exact.
        constraints: at least one; all inequalities or equalities in one vector, in order.
        params: x.
        work_dir: keeps the state of every round, and goes on from it when called again.
        log: is given the row of every round.
        watch: is given the number of samples evaluated so far before every run of PStorm, to measure on the way.
        **settings: lr (of PStorm while the penalty is the first; None measures the smoothness L and takes 1 / L, or
            1 / (8 L) for the published schedule), steps (of PStorm, a round, at most), restart (steps between two
            gradients on all data), rounds, penalty (beta_0), growth (sigma), multiplier_step ("classical",
            w_k = beta_k, or "bounded", the paper's), estimator ("stochastic", or "exact" for values of constraints on
            all data), tolerance (of stationarity, violation and complementarity), b (momentum, None for the published
            schedule), proximal (keywords of PStorm for h), seed.

    Raises:
        SettingsError: an impossible setting.
        CheckpointError: work_dir is of another problem or other settings.
        NumericalError: the objective or a constraint is not finite.

    Source: Li, Chen, Liu, Lu, Xu, 2022 (arXiv:2212.09513).
    """
    if not isinstance(objective, Objective):
        objective = Objective(objective)
    if not constraints:
        raise SettingsError("there are no constraints", fix="use PStorm, or any optimizer")
    given = list(params)
    if not given:
        raise SettingsError("there are no parameters to change", fix="pass the tensors of x")
    run = _Run(objective, list(constraints), given, _settings(settings))
    store = None if work_dir is None else Store(work_dir)
    if store is not None:
        run.restore(store)
    while run.status is None:
        row = run.round(watch)
        if store is not None:
            run.keep(store)
        if log is not None:
            log(row)
    return ConstrainedResult(
        run.status, torch.tensor(run.rows[-1]["multipliers"], dtype=run.multipliers.dtype), run.rows
    )


def _settings(given: dict[str, Any]) -> MinimizeSettings:
    known = list(MinimizeSettings.__dataclass_fields__)
    for name in given:
        if name not in known:
            raise SettingsError(f"there is no setting {name!r}", fix=f"the settings are {', '.join(known)}")
    return MinimizeSettings(**given)


class _Run:
    """The state between rounds."""

    def __init__(
        self, objective: Objective, constraints: list[Constraint], params: list[Tensor], settings: MinimizeSettings
    ) -> None:
        self.settings = settings
        self.problem = Lagrangian(objective, constraints, params, settings.proximal)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.first = [parameter.detach().clone() for parameter in params]
        self.multipliers = torch.zeros(len(self.problem.inequality), dtype=params[0].dtype, device=params[0].device)
        self.facts = _Facts(penalty=settings.penalty)
        self.rows: list[dict[str, Any]] = []
        self.status: Status | None = None

    def round(self, watch: Callable[[int], None] | None) -> dict[str, Any]:
        """One outer step; its row."""
        settings, problem, facts, number = self.settings, self.problem, self.facts, len(self.rows)
        penalty = facts.penalty
        how = Inner(settings.steps, settings.restart, settings.estimator, settings.b, settings.proximal)

        def accuracy(whole: Whole, mapping: float) -> float:
            if facts.first_mapping is None:
                facts.first_mapping = mapping / _scale(whole.pull)
            return settings.accuracy(number, facts.first_mapping) * _scale(self.multipliers)

        solved = solve(
            problem,
            self.multipliers,
            penalty,
            accuracy,
            self._sizes,
            how,
            self.generator,
            caution=facts.caution,
            watch=watch,
        )
        facts.caution = solved.caution
        # The next round starts from this point, whose gradient is needed there at another penalty.
        certified = problem.whole(problem.pulled(self.multipliers, penalty))
        violation, pull = certified.violation, certified.pull
        infeasible = residual(violation, self.multipliers, penalty, problem.inequality)
        share = penalty
        if settings.multiplier_step == "bounded":
            size = float(torch.linalg.vector_norm(infeasible))
            facts.first_size = size if facts.first_size is None else facts.first_size
            share = settings.penalty * bounded_step(number, size, facts.first_size)
        self.multipliers = moved_multipliers(violation, self.multipliers, share, problem.inequality)
        row = {
            "round": number,
            "penalty": penalty,
            "objective": certified.objective,
            "violation": largest_violation(violation, problem.inequality),
            "stationarity": problem.mapping(certified.gradients, solved.size) / _scale(pull),
            "complementarity": complementarity(violation, pull, problem.inequality) / _scale(pull),
            "multipliers": pull.tolist(),
            "accurate": solved.accurate,
            "steps": solved.steps,
            "samples": problem.samples,
        }
        self.rows.append(row)
        self.status = self._judged(violation, solved.size)
        left = float(infeasible.abs().max())
        if solved.accurate and left > max(ENOUGH * facts.left, settings.tolerance):
            facts.penalty *= settings.growth
        facts.left = left
        return row

    def _sizes(self, whole: Whole) -> tuple[float, float]:
        """The step sizes of PStorm and of proximal steps at the present penalty."""
        settings, penalty = self.settings, self.facts.penalty
        if settings.lr is not None:
            lr = 2 * settings.lr / (1 + penalty / settings.penalty)
            return lr, lr
        slack = settings.estimator == "stochastic" and bool(self.problem.inequality.any())
        largest = self.problem.smoothness(whole, penalty, self.generator, slack=slack)
        size = 1 / max(largest, 1e-12)
        return (size / 8 if settings.b is None else size), size

    def _judged(self, violation: Tensor, size: float) -> Status | None:
        row, tolerance = self.rows[-1], self.settings.tolerance
        if max(row["violation"], row["stationarity"], row["complementarity"]) <= tolerance:
            return "converged"
        if row["violation"] > tolerance:
            slope = self._slope_of_violation(violation, size)
            self.facts.steepest = max(self.facts.steepest, slope)
            stalled = len(self.rows) > PATIENCE and row["violation"] > STALLED * self.rows[-1 - PATIENCE]["violation"]
            if stalled and slope <= FLAT * self.facts.steepest:
                return "infeasible"
        return "max_rounds" if len(self.rows) >= self.settings.rounds else None

    def _slope_of_violation(self, violation: Tensor, size: float) -> float:
        """How fast a proximal step lowers ||violation||^2 / 2, per unit of violation."""
        problem = self.problem
        broken = torch.where(problem.inequality, violation.clamp_min(0), violation)
        with torch.enable_grad():
            values = problem.violation([constraint.data.tensors for constraint in problem.constraints])
            gradients = torch.autograd.grad(broken @ values, problem.params, allow_unused=True)
        problem.samples += sum(constraint.data.size for constraint in problem.constraints)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(problem.params, gradients, strict=True)]
        return problem.mapping(filled, size) / float(torch.linalg.vector_norm(broken))

    # -- kept between rounds -----------------------------------------------------------------------------------------

    def _key(self) -> dict[str, Any]:
        from burnish.core.checkpoint.identity import tensors_digest

        data = [self.problem.objective.data, *(constraint.data for constraint in self.problem.constraints)]
        named = [(f"{number}.{place}", t) for number, some in enumerate(data) for place, t in enumerate(some.tensors)]
        settings = asdict(self.settings)
        settings.pop("rounds")
        return {
            "settings": json.loads(json.dumps(settings)),
            "constraints": [[constraint.name, constraint.sense] for constraint in self.problem.constraints],
            "batches": [some.batch_size for some in data],
            "data": tensors_digest(named),
            "start": tensors_digest([(str(number), tensor) for number, tensor in enumerate(self.first)]),
        }

    def keep(self, store: Store) -> None:
        from safetensors.torch import save_file

        tensors = {f"param.{number}": p.detach().contiguous() for number, p in enumerate(self.problem.params)}
        tensors |= {"multipliers": self.multipliers, "generator": self.generator.get_state()}
        tensors |= {f"direction.{number}": d for number, d in enumerate(self.problem.direction)}
        facts = {"rows": self.rows, "facts": asdict(self.facts), "status": self.status, "samples": self.problem.samples}
        with store.writing("state", self._key()) as path:
            save_file(tensors, path / "state.safetensors")
            (path / "rows.json").write_text(json.dumps(facts))

    def restore(self, store: Store) -> None:
        from safetensors.torch import load_file

        path = store.find("state", self._key())
        if path is None:
            return
        tensors = load_file(path / "state.safetensors")
        self.problem.put([tensors[f"param.{number}"] for number in range(len(self.problem.params))])
        self.problem.direction = [tensors[name] for name in sorted(tensors) if name.startswith("direction.")]
        self.multipliers = tensors["multipliers"].to(self.multipliers.device)
        self.generator.set_state(tensors["generator"])
        kept = json.loads((path / "rows.json").read_text())
        self.rows, self.problem.samples, self.facts = kept["rows"], kept["samples"], _Facts(**kept["facts"])
        self.status = kept["status"]
        if self.status == "max_rounds" and len(self.rows) < self.settings.rounds:
            self.status = None


@dataclass
class _Facts:
    """Numbers that rounds hand on.

    Attributes:
        penalty: beta of the next round.
        first_mapping: at the start.
        first_size: ||c|| after the first round.
        left: what the round before left of the violation.
        steepest: the largest slope of the violation seen.
        caution: what the step sizes of the round before were multiplied with in the end.
    """

    penalty: float
    first_mapping: float | None = None
    first_size: float | None = None
    left: float = 0.0
    steepest: float = 0.0
    caution: float = 1.0


def _scale(multipliers: Tensor) -> float:
    return max(1.0, float(torch.linalg.vector_norm(multipliers)))
