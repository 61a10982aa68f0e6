"""AGD: a step as long as the gradient has been steady, and plain momentum where it has hardly changed.

    m <- beta1 m + (1 - beta1) g                          s = m / c1 - (m before) / (c1 before),  m / c1 in step 1
    b <- beta2 b + (1 - beta2) s^2                        c_i = 1 - beta_i^t
    w <- (1 - lr wd) w - lr (sqrt(c2) / c1) m / max(sqrt(b), delta sqrt(c2))

What divides is the change of the momentum, a diagonal of the Hessian times the last step, where Adam has the gradient
itself. Coordinates whose change stays below delta take momentum SGD of rate lr / delta, so delta says where the method
switches between the two; under a constant gradient every coordinate ends there, and its steps grow to that rate.

Source: AGD (2023, arXiv:2312.01658), and the authors' program in ATorch, which it follows but for its option `win`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.optim.optimizer import MatrixOptimizer, SharedOptions
from burnish.optim.rule import Item, UpdateRule
from burnish.optim.sharding import Sharding


class AgdRule(UpdateRule):
    """State per number: the momentum and the mean square of its change; with `amsgrad` the largest of these so far."""

    name = "agd"

    def check(self, group: Mapping[str, Any], parameter: Tensor, where: str) -> None:
        if not group["delta"] > 0:
            raise SettingsError(f"delta is {group['delta']}, but must be positive", where=where)

    def check_sharding(self, group: Mapping[str, Any], parameter: Tensor, sharding: Sharding, where: str) -> None:
        """Nothing: every number is stepped on its own."""

    def new_state(self, parameter: Tensor, group: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        keys = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])]
        return {"step": torch.zeros(())} | {key: torch.zeros_like(parameter, dtype=dtype) for key in keys}

    def update(self, items: list[Item]) -> None:
        for item in items:
            state, group, weight = item.state, item.group, item.weight
            beta1, beta2 = group["betas"]
            state["step"] += 1
            step = int(state["step"])
            momentum, square = state["exp_avg"], state["exp_avg_sq"]
            change = momentum / -(1 - beta1 ** (step - 1)) if step > 1 else torch.zeros_like(momentum)
            momentum.mul_(beta1).add_(item.gradient.to(momentum.dtype), alpha=1 - beta1)
            correction1, root2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
            change.add_(momentum, alpha=1 / correction1)
            square.mul_(beta2).addcmul_(change, change, value=1 - beta2)
            if group["amsgrad"]:
                square = torch.maximum(state["max_exp_avg_sq"], square, out=state["max_exp_avg_sq"])
            item.decay_(weight)
            divisor = square.sqrt().clamp_(min=group["delta"] * root2)
            weight.addcdiv_(momentum, divisor, value=-group["lr"] * root2 / correction1)
            item.commit()


class AGD(MatrixOptimizer):
    """Divides the momentum by the root mean square of its change, where that is above `delta`.

    Args:
        params: parameters of any shape, (name, parameter) pairs or groups; `for_model` gives it the hidden matrices.
        lr: learning rate.
        weight_decay: decoupled decay, before the step.
        betas: decay of the momentum, and of the mean square of its change.
        delta: root mean square below which a coordinate takes momentum SGD of rate lr / delta.
        amsgrad: divide by the largest mean square so far.
        **shared: see `SharedOptions`.

    State: 2 numbers per weight, as AdamW.
    Source: AGD (2023, arXiv:2312.01658).
    """

    rule = AgdRule()
    bytes_per_parameter = 16

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        *,
        delta: float = 1e-5,
        amsgrad: bool = False,
        **shared: Unpack[SharedOptions],
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "delta": delta, "amsgrad": amsgrad}
        super().__init__(params, options, shared)
