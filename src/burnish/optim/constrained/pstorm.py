"""PStorm as a torch optimizer: `step(closure)` takes two gradients on one batch. See `burnish.optim.maths.storm`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

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
        weight_decay: adds weight_decay / 2 ||x||^2 to h.
        max_norm: a step is as if the estimate of the gradient had this norm at most, over all groups; the estimate
            itself is kept as it is, for cut estimates would not correct each other.

    `step` needs a closure that computes the loss and its gradients *on the same batch* each time it is called within
    the step: it is called at the point before as well. A model in training mode must draw the same dropout in both.

    Raises:
        SettingsError: an option out of range, or no closure.

    Attributes:
        bytes_per_parameter: float32 weight, gradient, estimate, the point before, and copies of the last two in a step.

    Source: Xu, Xu, 2020 (arXiv:2006.00425).
    """

    bytes_per_parameter: ClassVar[int] = 24

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
        weight_decay: float = 0.0,
        max_norm: float | None = None,
    ) -> None:
        if max_norm is not None and not max_norm > 0:
            raise SettingsError(f"max_norm is {max_norm}, but must be above 0, or None for no limit")
        self.max_norm = max_norm
        defaults = {
            "lr": lr,
            "b": b,
            "proximal": proximal,
            "strength": strength,
            "low": low,
            "high": high,
            "radius": radius,
            "weight_decay": weight_decay,
            "num_steps": 0,
        }
        super().__init__(params, defaults)

    @classmethod
    def for_model(cls, model: nn.Module, lr: float, *, weight_decay: float = 0.0, **options: Any) -> Self:
        """The optimizer of all parameters of a model that need a gradient; norms and biases have no weight decay."""
        groups = [
            {"params": [p for p in model.parameters() if p.requires_grad and (p.ndim > 1) == matrices], **decay}
            for matrices, decay in ((True, {"weight_decay": weight_decay}), (False, {"weight_decay": 0.0}))
        ]
        return cls([group for group in groups if group["params"]], lr, **options)

    @classmethod
    def option_names(cls) -> list[str]:
        """The options beside parameters and learning rate."""
        return [name for name in inspect.signature(cls).parameters if name not in ("params", "lr")]

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
        if not 0 <= group["weight_decay"] < torch.inf:
            raise SettingsError(f"weight_decay is {group['weight_decay']}, but must be 0 or larger")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; returns what the closure returned at the present point."""
        if closure is None:
            raise SettingsError(
                "PStorm takes two gradients on one batch, so step needs a closure that computes loss and gradients",
                fix="pass step(closure)",
            )
        result = self._evaluate(closure)
        here = self.gradients()
        self.move(here, self.gradients_before(closure))
        return result

    # -- a step in pieces, for loops that compute gradients themselves -------------------------------------------------

    def gradients(self) -> dict[Tensor, Tensor]:
        """Copies of the gradients that the parameters have now; zeros where there is none."""
        return {parameter: self._gradient(parameter) for parameter in self._parameters()}

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        self.zero_grad()
        with torch.enable_grad():
            return closure()

    @staticmethod
    def _gradient(parameter: Tensor) -> Tensor:
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()

    def gradients_before(self, closure: Callable[[], Any]) -> dict[Tensor, Tensor]:
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

    @torch.no_grad()
    def move(self, here: dict[Tensor, Tensor], before: dict[Tensor, Tensor]) -> None:
        """The step, from the gradients of one batch here and at the points before (empty in the first step)."""
        for group in self.param_groups:
            scheduled = group["b"] is None
            weight = momentum(max(group["num_steps"] - 1, 0), group["lr"]) if scheduled else group["b"]
            for parameter in group["params"]:
                estimate = here[parameter]
                if parameter in before:
                    estimate = corrected(self.state[parameter]["estimate"], estimate, before[parameter], weight)
                self.state[parameter] |= {"estimate": estimate, "before": parameter.detach().clone()}
        share = self._share()
        for group in self.param_groups:
            size = group["lr"] if group["b"] is not None else step_size(group["num_steps"], group["lr"])
            shrunk = 1 + size * group["weight_decay"]
            bounds = {name: group[name] for name in ("strength", "low", "high", "radius")}
            proximal = proximal_map(group["proximal"], **bounds)
            for parameter in group["params"]:
                moved = parameter - size * share * self.state[parameter]["estimate"]
                parameter.copy_(proximal(moved / shrunk, size / shrunk))
            group["num_steps"] += 1

    def _share(self) -> float:
        """What a step is multiplied with to keep within `max_norm`."""
        if self.max_norm is None:
            return 1.0
        norm = float(torch.nn.utils.get_total_norm([self.state[p]["estimate"] for p in self._parameters()]))
        return min(1.0, self.max_norm / (norm + 1e-6))

    def restart(self) -> None:
        """The next step takes its gradient as the new estimate; the schedule goes on."""
        self.state.clear()
