"""Expectations to minimise and to bound: a function of a batch, and the data that batches are drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from burnish.core.errors import DataError, SettingsError

Sense = Literal["<=", "=="]
Score = Callable[[Tensor], Tensor]
"""Features, shape (samples, features), to scores, shape (samples,)."""


class Sampled:
    """Tensors of equal first dimension, drawn from with replacement.

    Args:
        *tensors: one row a sample.
        batch_size: rows of a batch; None takes everything every time, without drawing.
    """

    def __init__(self, *tensors: Tensor, batch_size: int | None = None) -> None:
        sizes = {len(tensor) for tensor in tensors}
        if len(sizes) > 1:
            raise DataError(f"the tensors of one data set have {' and '.join(map(str, sorted(sizes)))} rows")
        if sizes == {0}:
            raise DataError("a data set of a constrained problem is empty")
        if batch_size is not None and batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size}, but must be 1 or larger")
        self.tensors, self.batch_size = tensors, batch_size
        self.size = sizes.pop() if sizes else 1

    def draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A batch."""
        if self.batch_size is None or not self.tensors:
            return self.tensors
        rows = torch.randint(self.size, (self.batch_size,), generator=generator)
        return tuple(tensor[rows.to(tensor.device)] for tensor in self.tensors)

    def drawn(self) -> int:
        """Samples that `draw` reads."""
        return self.size if self.batch_size is None else self.batch_size


@dataclass(frozen=True)
class Objective:
    """f(x) = E value(batch).

    Attributes:
        value: the mean over a batch, a tensor of one element with a gradient.
        data: where batches come from; the default is a function without data.
    """

    value: Callable[..., Tensor]
    data: Sampled = field(default_factory=Sampled)


@dataclass(frozen=True)
class Constraint:
    """E violation(batch) <= 0 or == 0, one or several at once.

    Attributes:
        violation: the mean over a batch, a tensor with a gradient, linear in the batch's samples.
        sense: "<=" or "==".
        data: where batches come from.
        name: for the log.
    """

    violation: Callable[..., Tensor]
    sense: Sense = "<="
    data: Sampled = field(default_factory=Sampled)
    name: str = "constraint"

    def __post_init__(self) -> None:
        if self.sense not in ("<=", "=="):
            raise SettingsError(f"the sense of {self.name} is {self.sense!r}, but must be '<=' or '=='")


@dataclass(frozen=True)
class ConstrainedProblem:
    """What `constrained_minimize` is given."""

    objective: Objective
    constraints: tuple[Constraint, ...]


@dataclass(frozen=True)
class NeymanPearson:
    """The fewest missed positives while the mean loss of negatives stays at or below a level.

    Attributes:
        level: of the mean logistic loss log(1 + exp(score)) of negatives.
    """

    level: float

    def __post_init__(self) -> None:
        if not 0 < self.level < math.inf:
            raise SettingsError(f"level is {self.level}, but a mean loss is above 0")

    def problem(
        self, score: Score, features: Tensor, labels: Tensor, *, batch_size: int | None = None
    ) -> ConstrainedProblem:
        """Minimises the mean logistic loss of positives (labels above 0) under the bound on negatives.

        Raises:
            DataError: there are no positives, or no negatives.
        """
        positive = labels > 0
        for name, chosen in (("positives", positive), ("negatives", ~positive)):
            if not chosen.any():
                raise DataError(f"there are no {name} among {len(labels)} samples, so there is nothing to weigh")
        return ConstrainedProblem(
            Objective(lambda rows: F.softplus(-score(rows)).mean(), Sampled(features[positive], batch_size=batch_size)),
            (
                Constraint(
                    lambda rows: F.softplus(score(rows)).mean() - self.level,
                    data=Sampled(features[~positive], batch_size=batch_size),
                    name="loss of negatives",
                ),
            ),
        )


@dataclass(frozen=True)
class DemographicParity:
    """|mean score of group 1 - mean score of group 0| <= kappa.

    Attributes:
        kappa: the largest difference.
    """

    kappa: float

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < math.inf:
            raise SettingsError(f"kappa is {self.kappa}, but must be 0 or larger")

    def constraint(
        self, score: Score, features: Tensor, groups: Tensor | None, *, batch_size: int | None = None
    ) -> Constraint:
        """Two inequalities over pairs of one sample of each group.

        Args:
            score: features to scores.
            features: of all samples.
            groups: above 0 for group 1.
            batch_size: pairs a batch; None takes both groups whole.

        Raises:
            DataError: the groups are missing, or one is empty.
        """
        if groups is None or len(groups) != len(features):
            raise DataError("demographic parity needs the group of every sample", fix="pass groups, one value a sample")
        one, zero = features[groups > 0], features[groups <= 0]
        if not len(one) or not len(zero):
            raise DataError(f"all {len(features)} samples are in one group, so there is no difference to bound")
        return Constraint(
            lambda ours, theirs: self._difference(score, ours, theirs),
            data=_Pairs(one, zero, batch_size=batch_size),
            name="difference of the groups",
        )

    def _difference(self, score: Score, ours: Tensor, theirs: Tensor) -> Tensor:
        difference = score(ours).mean() - score(theirs).mean()
        return torch.stack([difference - self.kappa, -difference - self.kappa])


class _Pairs(Sampled):
    """Rows of two groups of different sizes, drawn independently."""

    def __init__(self, one: Tensor, other: Tensor, *, batch_size: int | None) -> None:
        super().__init__(one, batch_size=batch_size)
        self._parts = (Sampled(one, batch_size=batch_size), Sampled(other, batch_size=batch_size))
        self.tensors, self.size = (one, other), len(one) + len(other)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(tensor for part in self._parts for tensor in part.draw(generator))

    def drawn(self) -> int:
        return sum(part.drawn() for part in self._parts)


@dataclass(frozen=True)
class LossBound:
    """The mean loss on some data stays at or below a level.

    Attributes:
        data: what is not to be lost.
        level: the largest mean loss.
    """

    data: Sampled
    level: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.level):
            raise SettingsError(f"level is {self.level}, but must be a finite number")

    def constraint(self, loss: Callable[..., Any], *, name: str = "loss bound") -> Constraint:
        """Of the mean `loss(*batch)`."""
        return Constraint(lambda *batch: loss(*batch) - self.level, data=self.data, name=name)
