"""WSAM: any optimizer, with the sharpness of the loss as a term of weight gamma.

    e = rho g / ||g||   (adaptive: rho w^2 o g / || |w| o g ||),   g2 = gradient at w + e,   a = gamma / (1 - gamma)
    coupled:    the base optimizer steps with a g2 + (1 - a) g
    decoupled:  the base optimizer steps with g, then w <- w - lr a (g2 - g)

gamma 0 is the base optimizer, coupled with gamma 1/2 is sharpness-aware minimisation (SAM). A step needs two gradients
of one batch, so it costs two forward and backward passes, and memory for the weights and one gradient more.

Source: Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term (2023, arXiv:2305.15817),
and the authors' program in ATorch. What differs: the weights come back from w + e by a copy, so they are exactly what
they were; gradients that are not finite are refused and nothing is changed; clipping is left to the closure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from burnish.core.errors import SettingsError
from burnish.optim.gradients import refuse_gradients, without_norm
from burnish.optim.sharding import is_dtensor

TINY = 1e-12
"""Added to the norm of the gradient, as the authors do."""


class WSAM(torch.optim.Optimizer):
    """Steps a base optimizer with the gradient of loss and sharpness.

        optimizer = WSAM(AdamW(model.parameters(), lr=1e-3), gamma=0.9)
        optimizer.step(closure)               # closure: zero_grad, loss, backward; it is called twice

    Groups, learning rates and the state are those of the base optimizer, so schedulers and saved states are too.

    Args:
        base: any optimizer of float32 or float64 weights, none of them sharded.
        rho: how far the second gradient is taken.
        gamma: weight of the sharpness, from 0 to below 1.
        adaptive: measure the distance in units of the weights' sizes.
        decouple: keep the sharpness out of the base optimizer.
        model: whose batch norms shall see the batch once only.

    Raises:
        SettingsError: an option out of range, bfloat16 weights, or sharded ones.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        rho: float = 0.05,
        gamma: float = 0.9,
        adaptive: bool = False,
        decouple: bool = True,
        model: nn.Module | None = None,
    ) -> None:
        if not 0 <= rho < float("inf"):
            raise SettingsError(f"rho is {rho}, but must be a number from 0 on", where="WSAM")
        if not 0 <= gamma < 1:
            raise SettingsError(f"gamma is {gamma}, but must lie in [0, 1)", where="WSAM")
        self.base, self.rho, self.alpha, self.adaptive, self.decouple = (
            base,
            rho,
            gamma / (1 - gamma),
            adaptive,
            decouple,
        )
        self.batch_norms = (
            [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] if model else []
        )
        super().__init__(base.param_groups, {})
        self.param_groups, self.state = base.param_groups, base.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the base optimizer too, where it is not one of its groups."""
        for parameter in (
            [param_group["params"]] if isinstance(param_group["params"], Tensor) else param_group["params"]
        ):
            tensor = parameter[1] if isinstance(parameter, tuple) else parameter
            if tensor.dtype not in (torch.float32, torch.float64) or is_dtensor(tensor):
                raise SettingsError(
                    "a parameter is sharded, or neither float32 nor float64",
                    where="WSAM",
                    fix="use the base optimizer alone",
                )
        if any(group is param_group for group in self.base.param_groups):  # while this is made
            super().add_param_group(param_group)
        else:
            self.base.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles."""
        names = ("base", "rho", "alpha", "adaptive", "decouple", "batch_norms")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def state_dict(self) -> dict[str, Any]:
        """That of the base optimizer: between steps there is nothing else."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Into the base optimizer."""
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @property
    def bytes_per_parameter(self) -> int:
        """Those of the base optimizer, and in a step the weights and two gradients once more."""
        return getattr(self.base, "bytes_per_parameter", 16) + 12

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step.

        Args:
            closure: zeroes gradients, evaluates the model on one batch, calls backward and returns the loss.

        Returns:
            The loss at the weights as they were.

        Raises:
            SettingsError: there is no closure.
            NumericalError: one of the two gradients is not finite; no weight has been changed.
        """
        if closure is None:
            raise SettingsError("a step needs two gradients", where="WSAM", fix="give step a closure")
        with torch.enable_grad():
            loss = closure()
        first = self.gradients()
        with self.uphill(first), torch.enable_grad():
            closure()
        self.move(first)
        return loss

    # -- a step in pieces, for loops that compute gradients themselves -------------------------------------------------

    def gradients(self) -> dict[Tensor, Tensor]:
        """Copies of the gradients that the parameters have now.

        Raises:
            NumericalError: one of them is not finite.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        return {p: self._finite_gradient(p) for p in parameters if p.grad is not None}

    @contextmanager
    def uphill(self, first: dict[Tensor, Tensor]) -> Iterator[None]:
        """The weights are at w + e inside, and after it exactly where they were."""
        weights = {p: p.detach().clone() for p in first}
        sizes = [w.abs() * first[p] if self.adaptive else first[p] for p, w in weights.items()]
        scale = self.rho / (torch.nn.utils.get_total_norm(sizes) + TINY) if sizes else 0.0
        try:
            with torch.no_grad():
                for p, w in weights.items():
                    p.add_((w.square() * first[p] if self.adaptive else first[p]) * scale)
            with self._unseen_by_batch_norms():
                yield
        finally:
            with torch.no_grad():
                for p, w in weights.items():
                    p.copy_(w)

    @torch.no_grad()
    def move(self, first: dict[Tensor, Tensor]) -> None:
        """The step, from the gradients at w, and those that the parameters have now, at w + e.

        Raises:
            NumericalError: one of the latter is not finite; no weight has been changed.
        """
        second = {p: g if p.grad is None else self._finite_gradient(p) for p, g in first.items()}
        for p, g in first.items():
            p.grad = g.clone() if self.decouple else self.alpha * second[p] + (1 - self.alpha) * g
        self.base.step()
        if self.decouple:
            for group in self.param_groups:
                for p in group["params"]:
                    if p in first:
                        p.sub_((second[p] - first[p]) * (group["lr"] * self.alpha))

    @staticmethod
    def _finite_gradient(parameter: Tensor) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None, "asked for only where there is one"
        if without_norm([gradient]):
            refuse_gradients([(f"a parameter of shape {tuple(parameter.shape)}", parameter)], "WSAM")
        return gradient.detach().clone()

    @contextmanager
    def _unseen_by_batch_norms(self) -> Iterator[None]:
        tracking = [norm for norm in self.batch_norms if norm.track_running_stats]
        for norm in tracking:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in tracking:
                norm.track_running_stats = True
