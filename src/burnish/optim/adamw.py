"""AdamW, by torch's own kernel: for what is not a hidden matrix, and as the baseline.

Source: Decoupled Weight Decay Regularization (2019, arXiv:1711.05101).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from burnish.optim.rule import Item, UpdateRule
from burnish.optim.sharding import Sharding


class AdamWRule(UpdateRule):
    """W <- (1 - lr wd) W - lr (m / c1) / (sqrt(v / c2) + eps), with c_i = 1 - beta_i^t.

    `legacy_first_moment` is what the published COSMOS code does instead: the first moment grows by 0.1 G whatever
    beta1 is, and c1 = 1 - 0.9^t.
    """

    name = "adamw"
    group_options: ClassVar[Mapping[str, Any]] = {"legacy_first_moment": False}

    def check_sharding(self, group: Mapping[str, Any], parameter: Tensor, sharding: Sharding, where: str) -> None:
        """Nothing: every number is stepped on its own."""

    def new_state(self, parameter: Tensor, group: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        return {
            # On the parameter's device, as torch's fused kernel wants it.
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, dtype=dtype),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
        }

    def update(self, items: list[Item]) -> None:
        batches: dict[tuple[int, torch.device, torch.dtype, bool], list[Item]] = {}
        for item in items:
            # torch's fused kernel goes through storages side by side, so all of one parameter must be laid out alike.
            alike = item.weight.stride() == item.state["exp_avg"].stride() == item.state["exp_avg_sq"].stride()
            fused = alike and item.parameter.device.type in ("cpu", "cuda")
            batches.setdefault((id(item.group), item.parameter.device, item.weight.dtype, fused), []).append(item)
        for (*_, fused), batch in batches.items():
            group = batch[0].group
            if group["legacy_first_moment"]:
                for item in batch:
                    _legacy_step(item)
            else:
                adamw(
                    [item.weight for item in batch],
                    [_laid_out_as(item.state["exp_avg"], item.gradient) for item in batch],
                    [item.state["exp_avg"] for item in batch],
                    [item.state["exp_avg_sq"] for item in batch],
                    [],
                    [item.state["step"] for item in batch],
                    fused=fused,
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
            for item in batch:
                item.commit()


def _laid_out_as(state: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the dtype and with the strides of the state, which is dense; mostly it has them."""
    if gradient.stride() == state.stride():
        return gradient.to(state.dtype)
    return torch.empty_like(state).copy_(gradient)


def _legacy_step(item: Item) -> None:
    state, group = item.state, item.group
    state["step"] += 1
    step = int(state["step"])
    beta1, beta2 = group["betas"]
    gradient = item.gradient.to(state["exp_avg"].dtype)
    state["exp_avg"].mul_(beta1).add_(gradient, alpha=0.1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt() + group["eps"]
    item.decay_(item.weight)
    item.weight.addcdiv_(state["exp_avg"], root, value=-group["lr"] / (1 - 0.9**step))
