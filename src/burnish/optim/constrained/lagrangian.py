"""The augmented Lagrangian of a problem on its data: gradients on all of it, gradients on batches, its smoothness.

    smooth part at (x, s)    f(x) + sum_i y_i (c_i(x) + s_i) + beta/2 (c_i(x) + s_i)^2,   s = 0 for equalities

With all data the best slack is known, s = max(0, -c - y / beta), and the weight of an inequality's gradient becomes
max(0, y + beta c). On batches the slack is a variable of its own, so that the estimate stays unbiased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from burnish.core.errors import NumericalError
from burnish.optim.constrained.constraints import Constraint, Objective
from burnish.optim.maths.augmented import force
from burnish.optim.maths.storm import proximal_map

DIFFERENCE = 1e-4
"""Length of the step over which two gradients are compared, relative to the size of the point."""
GUESSES = 10
"""Gradients that the first estimate of the smoothness takes; later ones start where it ended and take two."""


@dataclass(frozen=True)
class Whole:
    """On all data, at one point.

    Attributes:
        objective: f.
        violation: c, shape (constraints,).
        pull: the weights of the constraints' gradients, shape (constraints,).
        gradients: of the smooth part, one tensor a parameter.
    """

    objective: float
    violation: Tensor
    pull: Tensor
    gradients: list[Tensor]


class Lagrangian:
    """The problem, and how many samples have been evaluated.

    Args:
        objective, constraints, params: as `constrained_minimize` takes them.
        proximal: keywords of `PStorm` for h.
    """

    def __init__(
        self,
        objective: Objective,
        constraints: Sequence[Constraint],
        params: list[Tensor],
        proximal: dict[str, Any],
    ) -> None:
        self.objective, self.constraints, self.params = objective, constraints, params
        options = dict(proximal)
        self._proximal = proximal_map(options.pop("proximal", "none"), **options)
        self.samples = 0
        with torch.no_grad():
            sizes = [self._one(constraint, constraint.data.tensors).numel() for constraint in constraints]
        senses = [constraint.sense == "<=" for constraint in constraints]
        self.inequality = torch.repeat_interleave(torch.tensor(senses), torch.tensor(sizes)).to(params[0].device)
        self.direction: list[Tensor] = []

    @staticmethod
    def _one(constraint: Constraint, batch: tuple[Tensor, ...]) -> Tensor:
        return constraint.violation(*batch).reshape(-1)

    def violation(self, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """c, from one batch of each constraint.

        Raises:
            NumericalError: a value is not finite.
        """
        parts = [self._one(constraint, batch) for constraint, batch in zip(self.constraints, batches, strict=True)]
        for constraint, part in zip(self.constraints, parts, strict=True):
            if not torch.isfinite(part).all():
                raise NumericalError(f"the {constraint.name} is not finite", fix="lower lr, or look at the data")
        return torch.cat(parts)

    def value(self, batch: tuple[Tensor, ...]) -> Tensor:
        """f on a batch.

        Raises:
            NumericalError: it is not finite.
        """
        value = self.objective.value(*batch)
        if not torch.isfinite(value):
            raise NumericalError("the objective is not finite", fix="lower lr, or look at the data")
        return value

    @property
    def size(self) -> int:
        """Samples of one pass over all data."""
        return self.objective.data.size + sum(constraint.data.size for constraint in self.constraints)

    def whole(self, pull: Callable[[Tensor], Tensor]) -> Whole:
        """f, c and the gradient of f + pull(c) c, where pull(c) is held fixed, on all data."""
        self.samples += self.size
        with torch.enable_grad():
            value = self.value(self.objective.data.tensors)
            violation = self.violation([constraint.data.tensors for constraint in self.constraints])
            weights = pull(violation.detach())
            gradients = torch.autograd.grad(value + weights @ violation, self.params, allow_unused=True)
        filled = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self.params, gradients, strict=True)
        ]
        return Whole(float(value.detach()), violation.detach(), weights, filled)

    def pulled(self, multipliers: Tensor, penalty: float) -> Callable[[Tensor], Tensor]:
        """c -> y + beta c, cut off at 0 for inequalities."""
        return lambda violation: force(violation, multipliers, penalty, self.inequality)

    # -- proximal steps ----------------------------------------------------------------------------------------------

    def moved(self, gradients: list[Tensor], size: float) -> list[Tensor]:
        """prox(x - size g)."""
        return [
            self._proximal(parameter.detach() - size * gradient, size)
            for parameter, gradient in zip(self.params, gradients, strict=True)
        ]

    def mapping(self, gradients: list[Tensor], size: float) -> float:
        """||x - prox(x - size g)|| / size: the size of the gradient where there is no h."""
        moved = self.moved(gradients, size)
        return _norm([(p.detach() - there) / size for p, there in zip(self.params, moved, strict=True)])

    @torch.no_grad()
    def put(self, point: Sequence[Tensor]) -> None:
        """x <- point."""
        for parameter, value in zip(self.params, point, strict=True):
            parameter.copy_(value)

    # -- smoothness --------------------------------------------------------------------------------------------------

    def smoothness(self, whole: Whole, penalty: float, generator: torch.Generator, *, slack: bool) -> float:
        """The largest curvature at this point, by power steps on differences of gradients.

        The curvature of f + y c along x is measured, and beta (||J||^2 + 1), that of the penalty along x and slack,
        is added in full where a constraint pulls.

        Args:
            whole: at this point.
            penalty: beta.
            generator: of the first direction.
            slack: whether the slack is a variable too.
        """
        count = 2 if self.direction else GUESSES
        if not self.direction:
            self.direction = [
                torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device) for p in self.params
            ]
        fixed: Callable[[Tensor], Tensor] = lambda _: whole.pull  # noqa: E731 - a function of one expression
        here = [parameter.detach().clone() for parameter in self.params]
        length = DIFFERENCE * max(1.0, _norm(here))
        curvature = 0.0
        for _ in range(count):
            norm = _norm(self.direction)
            if norm == 0:
                break
            self.put([x + length / norm * d for x, d in zip(here, self.direction, strict=True)])
            there = self.whole(fixed).gradients
            self.direction = [(b - a) / length for a, b in zip(whole.gradients, there, strict=True)]
            curvature = _norm(self.direction)
        self.put(here)
        return curvature + penalty * (self._steepness() + slack)

    def _steepness(self) -> float:
        """The sum over constraints of ||gradient||^2, an upper bound of ||J||^2."""
        self.samples += sum(constraint.data.size for constraint in self.constraints)
        total = 0.0
        with torch.enable_grad():
            violation = self.violation([constraint.data.tensors for constraint in self.constraints])
            for value in violation:
                gradients = torch.autograd.grad(value, self.params, retain_graph=True, allow_unused=True)
                total += _norm([gradient for gradient in gradients if gradient is not None]) ** 2
        return total


def _norm(tensors: Sequence[Tensor]) -> float:
    return sum(float(tensor.detach().square().sum()) for tensor in tensors) ** 0.5
