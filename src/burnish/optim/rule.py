"""What an update rule is, and the one parameter that it steps.

A rule says which options and shapes it takes, which state a parameter has, and how a step is done. The optimizer class
(`burnish.optim.optimizer`) keeps groups, state and saving; several rules work side by side in one of its objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.optim.masters import has_master
from burnish.optim.maths.rounding import stochastic_bfloat16
from burnish.optim.sharding import Sharding


@dataclass
class Item:
    """One parameter in one step; where it is sharded, the tensors are the shards of this process.

    Attributes:
        parameter: the live parameter.
        gradient: its gradient, never written to.
        state: its optimizer state.
        group: its group's options.
        index: its number in the optimizer, for the seed of stochastic rounding.
        sharding: how the parameter is spread over processes; None where it is whole.
    """

    parameter: Tensor
    gradient: Tensor
    state: dict[str, Tensor]
    group: dict[str, Any]
    index: int
    sharding: Sharding | None = None
    _weight: Tensor | None = field(default=None, repr=False)

    @property
    def weight(self) -> Tensor:
        """What to update: the parameter, its float32 master copy, or a float32 copy to be rounded by `commit`."""
        if self._weight is None:
            if self.parameter.dtype is not torch.bfloat16:
                self._weight = self.parameter
            elif has_master(self.parameter, self.group):
                self._weight = self.state["master"]
            else:
                self._weight = self.parameter.float()
        return self._weight

    def commit(self) -> None:
        """Brings the updated weight back into a bfloat16 parameter."""
        if self.parameter.dtype is torch.bfloat16:
            if has_master(self.parameter, self.group):
                self.parameter.copy_(self.weight)
            else:
                # A generator keyed by step and parameter, so that a resumed run draws the same numbers.
                seed = (self.group["seed"] * 1_000_003 + self.group["num_steps"]) * 65_537 + self.index
                if self.sharding is not None:  # copies of a shard round alike, different shards differently
                    seed += self.sharding.rank * 15_485_863
                generator = torch.Generator(self.parameter.device).manual_seed(seed)
                self.parameter.copy_(stochastic_bfloat16(self.weight, generator))
        self._weight = None

    def decay_(self, weight: Tensor) -> None:
        """W <- (1 - lr wd) W: the decay uses the plain learning rate, not one scaled by the shape."""
        if self.group["weight_decay"]:
            weight.mul_(1 - self.group["lr"] * self.group["weight_decay"])


class UpdateRule:
    """How the parameters of one algorithm are stepped. Rules hold no state; `Item` carries it.

    Attributes:
        name: the `algorithm` of a parameter group.
        group_options: what a group may say beside the options of the optimizer's constructor, and what it has if not.
        beta2_may_be_one: whether a second beta of 1 means something; elsewhere betas lie in [0, 1).
    """

    name: ClassVar[str]
    group_options: ClassVar[Mapping[str, Any]] = {}
    beta2_may_be_one: ClassVar[bool] = False

    def check(self, group: Mapping[str, Any], parameter: Tensor, where: str) -> None:
        """Refuses options that do not fit; raises `SettingsError`."""

    def check_sharding(self, group: Mapping[str, Any], parameter: Tensor, sharding: Sharding, where: str) -> None:
        """Refuses a parameter that this algorithm cannot step where it is sharded; raises `SettingsError`."""
        raise SettingsError(
            f"the parameter is sharded over {sharding.size} processes, which {self.name} does not support",
            where=where,
            fix="use another optimizer (see docs/methods/sharding.md), or replicate the parameter (DDP)",
        )

    def new_state(self, parameter: Tensor, group: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        """All state of one parameter, made when the optimizer is made, so that every process has the same keys.

        State of a sharded parameter is sharded too, as DTensors, so that distributed checkpoints can cut it anew.
        """
        raise NotImplementedError

    def update(self, items: list[Item]) -> None:
        """One step of all parameters of this algorithm."""
        raise NotImplementedError
