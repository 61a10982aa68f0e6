"""PStorm as a torch optimizer: `step(closure)` takes two gradients on one batch. See `burnish.optim.maths.storm`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.optim.maths.storm import corrected, momentum, proximal_map, step_size

PROXIMAL = ("none", "l1", "box", "ball")


class PStorm(torch.optim.Optimizer):
    """Proximal stochastic gradients with self-correcting momentum.

    Args:
        params: parameters or groups; a group may have its own lr and proximal map.
        lr: eta_0, in theory at most 1 / (8 L) for gradients with Lipschitz constant L.
        b: the weight of the new gradient; None takes the published schedule of b and of step sizes, a number keeps both
            as they are. 1.0 is the proximal stochastic gradient; 0.0 trusts the correction alone, for a user who puts
            exact gradients in every now and then (`restart`).
        proximal: "none", "l1" (with `strength`), "box" (`low`, `high`) or "ball" (`radius`, each parameter's own norm).
        strength, low, high, radius: of the proximal map.

    `step` needs a closure that computes the loss and its gradients *on the same batch* each time it is called within
    the step: it is called at the point before as well. A model in training mode must draw the same dropout in both.

    Raises:
        SettingsError: an option out of range, or no closure.

    Source: Xu, Xu, 2020 (arXiv:2006.00425).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        *,
        b: float | None = None,
        proximal: str = "none",
        strength: float = 0.0,
        low: float = -torch.inf,
        high: float = torch.inf,
        radius: float = torch.inf,
    ) -> None:
        defaults = {
            "lr": lr,
            "b": b,
            "proximal": proximal,
            "strength": strength,
            "low": low,
            "high": high,
            "radius": radius,
            "num_steps": 0,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not 0 < group["lr"] < torch.inf:
            raise SettingsError(f"lr is {group['lr']}, but must be above 0")
        if group["b"] is not None and not 0 <= group["b"] <= 1:
            raise SettingsError(f"b is {group['b']}, but must lie between 0 and 1, or be None for the schedule")
        if group["proximal"] not in PROXIMAL:
            raise SettingsError(f"proximal is {group['proximal']!r}, but must be one of {', '.join(PROXIMAL)}")
        if not group["strength"] >= 0:
            raise SettingsError(f"strength is {group['strength']}, but must be 0 or larger")
        if not group["low"] <= group["high"]:
            raise SettingsError(f"low is {group['low']} and high {group['high']}, so the box holds nothing")
        if not group["radius"] > 0:
            raise SettingsError(f"radius is {group['radius']}, but must be above 0")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; returns what the closure returned at the present point."""
        if closure is None:
            raise SettingsError(
                "PStorm takes two gradients on one batch, so step needs a closure that computes loss and gradients",
                fix="pass step(closure)",
            )
        result = self._evaluate(closure)
        here = {parameter: self._gradient(parameter) for parameter in self._parameters()}
        before = self._gradients_before(closure)
        with torch.no_grad():
            for group in self.param_groups:
                self._move(group, here, before)
        return result

    def restart(self) -> None:
        """The next step takes its gradient as the new estimate; the schedule goes on."""
        self.state.clear()

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        self.zero_grad()
        with torch.enable_grad():
            return closure()

    @staticmethod
    def _gradient(parameter: Tensor) -> Tensor:
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()

    def _gradients_before(self, closure: Callable[[], Any]) -> dict[Tensor, Tensor]:
        """Gradients at the points before the last step, on this step's batch; none in the first step."""
        if not all("before" in self.state[parameter] for parameter in self._parameters()):
            return {}
        here = {parameter: parameter.detach().clone() for parameter in self._parameters()}
        with torch.no_grad():
            for parameter in here:
                parameter.copy_(self.state[parameter]["before"])
        self._evaluate(closure)
        gradients = {parameter: self._gradient(parameter) for parameter in here}
        with torch.no_grad():
            for parameter, kept in here.items():
                parameter.copy_(kept)
        return gradients

    def _move(self, group: dict[str, Any], here: dict[Tensor, Tensor], before: dict[Tensor, Tensor]) -> None:
        number, lr = group["num_steps"], group["lr"]
        scheduled = group["b"] is None
        weight = momentum(max(number - 1, 0), lr) if scheduled else group["b"]
        bounds = {name: group[name] for name in ("strength", "low", "high", "radius")}
        proximal = proximal_map(group["proximal"], **bounds)
        size = step_size(number, lr) if scheduled else lr
        for parameter in group["params"]:
            state = self.state[parameter]
            gradient = here[parameter]
            if parameter in before:
                gradient = corrected(state["estimate"], gradient, before[parameter], weight)
            state["estimate"], state["before"] = gradient, parameter.detach().clone()
            parameter.copy_(proximal(parameter - size * gradient, size))
        group["num_steps"] = number + 1
