"""SOAP as a torch optimizer, the baseline with the most state; the bases are in burnish.optim.maths.soap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.optim.layout import LAYOUT_DEFAULTS, blocks, check_layout
from burnish.optim.maths import soap as maths
from burnish.optim.optimizer import MatrixOptimizer, SharedOptions
from burnish.optim.rule import Item, UpdateRule


class SoapRule(UpdateRule):
    """State per matrix: covariances and bases of both sides, and Adam's two moments in the rotated basis."""

    name = "soap"
    group_options: ClassVar[Mapping[str, Any]] = LAYOUT_DEFAULTS

    def check(self, group: Mapping[str, Any], parameter: Tensor, where: str) -> None:
        check_layout(parameter, group, where)
        if group["precondition_frequency"] < 1:
            raise SettingsError(
                f"precondition_frequency is {group['precondition_frequency']}, but must be at least 1", where=where
            )

    def new_state(self, parameter: Tensor, group: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        state = {"step": torch.zeros(()), "started": torch.zeros(())}
        for number, matrix in enumerate(_matrices(parameter, group)):
            state[f"exp_avg{number}"] = torch.zeros_like(matrix, dtype=dtype)
            state[f"exp_avg_sq{number}"] = torch.zeros_like(matrix, dtype=dtype)
            for side, size in zip(("left", "right"), matrix.shape, strict=True):
                if size <= group["max_precondition_dim"]:
                    for key in ("covariance", "basis"):
                        state[f"{side}_{key}{number}"] = torch.zeros(size, size, dtype=dtype, device=matrix.device)
        return state

    def update(self, items: list[Item]) -> None:
        for item in items:
            state, group = item.state, item.group
            gradient = item.gradient.to(item.weight.dtype)
            if not gradient.is_contiguous():
                gradient = gradient.contiguous()
            # The first call only builds the bases, so that no gradient is projected on a basis made from itself.
            started = bool(state["started"])
            if started:
                state["step"] += 1
            for number, (weight, part) in enumerate(
                zip(_matrices(item.weight, group), _matrices(gradient, group), strict=True)
            ):
                if started:
                    self._adam(item, number, weight, part)
                self._precondition(item, number, part, started=started)
            state["started"].fill_(1)
            item.commit()

    def _adam(self, item: Item, number: int, weight: Tensor, gradient: Tensor) -> None:
        state, group = item.state, item.group
        beta1, beta2 = group["betas"]
        step = int(state["step"])
        left, right = state.get(f"left_basis{number}"), state.get(f"right_basis{number}")
        projected = maths.rotate(gradient, left, right)
        first, second = state[f"exp_avg{number}"], state[f"exp_avg_sq{number}"]
        first.lerp_(projected, 1 - beta1)
        second.lerp_(projected.square(), 1 - beta2)
        update = maths.rotate(first / (second.sqrt() + group["eps"]), left, right, back=True)
        weight.sub_(update, alpha=group["lr"] * (1 - beta2**step) ** 0.5 / (1 - beta1**step))
        item.decay_(weight)  # after the step, as in the authors' code

    def _precondition(self, item: Item, number: int, gradient: Tensor, *, started: bool) -> None:
        state, group = item.state, item.group
        due = started and int(state["step"]) % group["precondition_frequency"] == 0
        first, second = state[f"exp_avg{number}"], state[f"exp_avg_sq{number}"]
        for axis, (side, product) in enumerate((("left", gradient @ gradient.mT), ("right", gradient.mT @ gradient))):
            if f"{side}_basis{number}" not in state:
                continue
            covariance, basis = state[f"{side}_covariance{number}"], state[f"{side}_basis{number}"]
            covariance.lerp_(product, 1 - group["betas"][1])
            if not started:
                basis.copy_(maths.first_eigenbasis(covariance))
            elif due:
                new, order = maths.next_eigenbasis(covariance, basis)
                turn = new.mT @ basis  # the first moment is the same matrix, seen from the new basis
                first.copy_(turn @ first if axis == 0 else first @ turn.mT)
                second.copy_(second.index_select(axis, order))
                basis.copy_(new)


def _matrices(like_parameter: Tensor, group: Mapping[str, Any]) -> list[Tensor]:
    """Every matrix of a parameter on its own; the bases differ, so nothing is batched."""
    flat: list[Tensor] = []
    for block in blocks(like_parameter, group):
        views = [block]
        while views[0].ndim > 2:
            views = [part for view in views for part in view.unbind(0)]
        flat += views
    return flat


class SOAP(MatrixOptimizer):
    """Adam in the eigenbasis of the gradient covariance. A baseline: 66 d^2 numbers of state per layer, AdamW has 24.

    Args:
        params: matrices, (name, parameter) pairs or groups.
        lr: learning rate.
        weight_decay: decoupled decay, after the step.
        betas: decay of the momentum, and of second moment and covariances.
        eps: as in Adam.
        precondition_frequency: steps between two updates of the bases.
        max_precondition_dim: larger sides are not rotated.
        **shared: see `SharedOptions`.

    The first step only builds the bases and does not change the matrices.
    Source: SOAP (2024, arXiv:2409.11321).
    """

    rule = SoapRule()
    bytes_per_parameter = 34

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.95, 0.95),
        *,
        eps: float = 1e-8,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10_000,
        **shared: Unpack[SharedOptions],
    ) -> None:
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
            "precondition_frequency": precondition_frequency,
            "max_precondition_dim": max_precondition_dim,
        }
        super().__init__(params, options, shared)
