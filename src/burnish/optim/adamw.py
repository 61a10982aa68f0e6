"""AdamW, by torch's own kernel: for what is not a hidden matrix, and as the baseline.

Source: Decoupled Weight Decay Regularization (2019, arXiv:1711.05101).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from burnish.optim.rule import Item, UpdateRule
from burnish.optim.sharding import Sharding

SLICE_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Numbers of a gradient that are turned into float32 at once. On a CPU they stay in the cache."""
VECTOR = 64
"""A multiple of what a kernel computes at once."""


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
        batches: dict[tuple[int, torch.device, torch.dtype, bool, bool], list[Item]] = {}
        for item in items:
            # torch's fused kernel goes through storages side by side, so all of one parameter must be laid out alike.
            states = (item.state["exp_avg"], item.state["exp_avg_sq"])
            alike = item.weight.stride() == states[0].stride() == states[1].stride()
            fused = alike and item.parameter.device.type in ("cpu", "cuda")
            cut = fused and item.gradient.dtype is not states[0].dtype and item.gradient.numel() > 0
            cut = cut and all(tensor.is_contiguous() for tensor in (item.gradient, item.weight, *states))
            key = (id(item.group), item.parameter.device, item.weight.dtype, fused, cut)
            batches.setdefault(key, []).append(item)
        for (*_, fused, cut), batch in batches.items():
            if batch[0].group["legacy_first_moment"]:
                for item in batch:
                    _legacy_step(item)
            elif cut:
                for slices in _slices(batch):
                    _adamw(slices, batch[0].group, fused=True)
            else:
                _adamw([_whole(item) for item in batch], batch[0].group, fused=fused)
            for item in batch:
                item.commit()


class _Slice(NamedTuple):
    """Tensors of one parameter, or of a stretch of it, as torch's kernel takes them."""

    weight: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


def _adamw(slices: list[_Slice], group: Mapping[str, Any], *, fused: bool) -> None:
    weights, gradients, exp_avgs, exp_avg_sqs, steps = (list(tensors) for tensors in zip(*slices, strict=True))
    adamw(
        weights,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        steps,
        fused=fused,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _whole(item: Item) -> _Slice:
    """A parameter, its gradient in the dtype and with the strides of the state, which is dense; mostly it has them."""
    gradient, state = item.gradient, item.state
    if gradient.stride() == state["exp_avg"].stride():
        gradient = gradient.to(state["exp_avg"].dtype)
    else:
        gradient = torch.empty_like(state["exp_avg"]).copy_(gradient)
    return _Slice(item.weight, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"])


def _slices(items: list[Item]) -> Iterator[list[_Slice]]:
    """Parameters in stretches of bounded size, so that no float32 copy of all gradients is ever in memory.

    A stretch begins at a whole vector of the kernel, so a number is computed as it is where the parameter is in one.
    """
    size = SLICE_ELEMENTS[items[0].parameter.device.type]
    cuts = [(item, start) for item in items for start in range(0, item.gradient.numel(), size)]
    buffer = torch.empty(size, dtype=items[0].weight.dtype, device=items[0].parameter.device)
    some: list[_Slice] = []
    used = 0
    for item, start in cuts:
        stop = min(start + size, item.gradient.numel())
        if used + stop - start > size:
            yield some
            some, used = [], 0
        keys = ("exp_avg", "exp_avg_sq")
        tensors = (item.weight, item.gradient, *(item.state[key] for key in keys))
        weight, gradient, first, second = (tensor.view(-1)[start:stop] for tensor in tensors)
        copied = buffer[used : used + stop - start].copy_(gradient)
        used += -(-(stop - start) // VECTOR) * VECTOR
        # The kernel counts every stretch as a step: only the last one counts for the parameter.
        step = item.state["step"] if stop == item.gradient.numel() else item.state["step"].clone()
        some.append(_Slice(weight, copied, first, second, step))
    yield some


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
