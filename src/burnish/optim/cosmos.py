"""COSMOS as a torch optimizer; the update is in burnish.optim.maths.cosmos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.optim.layout import LAYOUT_DEFAULTS, blocks, check_layout
from burnish.optim.maths import cosmos as maths
from burnish.optim.optimizer import MatrixOptimizer, SharedOptions
from burnish.optim.orthogonal import (
    check_orthogonalisation,
    dtype_name,
    is_whole,
    orthogonalisation_dtype,
    orthogonalised,
)
from burnish.optim.rule import Item, UpdateRule
from burnish.optim.sharded_cosmos import update_sharded
from burnish.optim.sharding import Sharding, moved, sharding_of, zeros

DEFAULT_RANK = 64


class CosmosRule(UpdateRule):
    """State per block of a parameter: `basis{i}` U, `covariance{i}` S, `second_moment{i}` V; `momentum` M once."""

    name = "cosmos"
    group_options: ClassVar[Mapping[str, Any]] = LAYOUT_DEFAULTS

    def check(self, group: Mapping[str, Any], parameter: Tensor, where: str) -> None:
        check_orthogonalisation(group, where)
        check_layout(parameter, group, where)
        rank = group["rank"]
        if rank is not None and not isinstance(rank, int):
            raise SettingsError(f"rank is {rank!r}, but must be a whole number", where=where)
        for block in blocks(parameter.detach(), group):
            if rank is not None and not 0 <= rank <= block.shape[-1]:
                raise SettingsError(
                    f"rank is {rank}, but a {block.shape[-2]} x {block.shape[-1]} matrix has at most "
                    f"{block.shape[-1]} input directions",
                    where=where,
                    fix="lower rank, or leave it out",
                )
        if not group["lr_ratio"] > 0 or not group["gamma"] >= 0:
            raise SettingsError(
                f"lr_ratio is {group['lr_ratio']} and gamma {group['gamma']}, but they must be positive", where=where
            )

    def check_sharding(self, group: Mapping[str, Any], parameter: Tensor, sharding: Sharding, where: str) -> None:
        stack = parameter.ndim == 3 and not group["flatten"]
        by_rows = (
            parameter.ndim == 2 and group["neuron_dim"] == -2 and not group["split_sizes"] and not group["num_heads"]
        )
        if sharding.dim != 0 or not (stack or by_rows):
            raise SettingsError(
                "sharded COSMOS needs whole matrices (out, in) that are cut along their rows, or stacks of matrices",
                where=where,
                fix="do not split fused matrices, use normuon for this parameter, or replicate it (DDP)",
            )

    def new_state(self, parameter: Tensor, group: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        state = {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter, dtype=dtype)}
        whole = torch.empty(parameter.shape, device="meta") if sharding_of(parameter) else parameter
        # State per row is on the process of its rows; bases and covariances of a matrix are the same on every process.
        with_rows = moved(parameter, 0)
        for number, block in enumerate(blocks(whole, group)):
            *batch, rows, cols = block.shape
            rank = min(DEFAULT_RANK if group["rank"] is None else group["rank"], rows, cols)
            everywhere = with_rows if batch else moved(parameter, None)
            for key, shape, placements in (
                ("basis", (cols, rank), everywhere),
                ("covariance", (rank, rank), everywhere),
                ("second_moment", (rows, rank), with_rows),
            ):
                state[f"{key}{number}"] = zeros((*batch, *shape), parameter, dtype, placements)
        return state

    def update(self, items: list[Item]) -> None:
        apart = [item for item in items if not is_whole(item)]
        if apart:
            update_sharded(apart)
        for item in items:
            if item.parameter.numel() and is_whole(item):
                self._update_whole(item)

    def _update_whole(self, item: Item) -> None:
        state, group = item.state, item.group
        gradient = item.gradient.to(state["momentum"].dtype)
        if not gradient.is_contiguous():
            gradient = gradient.contiguous()
        state["step"] += 1
        state["momentum"].lerp_(gradient, 1 - group["betas"][0])
        parts = zip(blocks(item.weight, group), blocks(gradient, group), blocks(state["momentum"], group), strict=True)
        for number, (weight, block_gradient, first_moment) in enumerate(parts):
            change = _change(item, number, block_gradient, first_moment)
            item.decay_(weight)
            weight.sub_(change, alpha=group["lr"] * group["lr_ratio"])
        item.commit()


def _change(item: Item, number: int, gradient: Tensor, first_moment: Tensor) -> Tensor:
    state, group = item.state, item.group
    step = int(state["step"])
    beta1, beta2 = group["betas"]
    basis, covariance = state[f"basis{number}"], state[f"covariance{number}"]
    second_moment = state[f"second_moment{number}"]
    momentum = maths.momentum(first_moment, gradient, beta1, step, nesterov=group["nesterov"], legacy=group["legacy"])
    dtype = orthogonalisation_dtype(group["ns_dtype"], momentum)
    rank = basis.shape[-1]
    if rank == 0:  # no leading space: normalised Muon
        muon = orthogonalised(momentum, group, dtype).to(momentum.dtype)
        size = (muon.shape[-2] * muon.shape[-1]) ** 0.5
        return muon * (size / (torch.linalg.matrix_norm(muon, keepdim=True) + group["eps"]))
    if step == 1:
        new_basis, new_covariance = maths.first_basis(gradient, rank, beta2)
    else:
        new_basis, new_covariance = maths.track_basis(basis, covariance, gradient, beta2)
    basis.copy_(new_basis)
    covariance.copy_(new_covariance)
    second_moment.lerp_((gradient @ new_basis).square(), 1 - beta2)
    return maths.direction(
        momentum,
        new_basis,
        second_moment / (1 - beta2**step),
        gamma=group["gamma"],
        eps=group["eps"],
        orthogonalise=lambda remainder: orthogonalised(remainder, group, dtype),
        legacy=group["legacy"],
    )


class COSMOS(MatrixOptimizer):
    """SOAP in the leading directions, Muon in the rest: SOAP's steps at little more than Muon's memory.

    Args:
        params: matrices, (name, parameter) pairs or groups.
        lr: learning rate of AdamW's groups; the RMS of a matrix update is `lr * lr_ratio`.
        weight_decay: decoupled decay, with the plain `lr`.
        betas: decay of the momentum, and of the covariance and second moment.
        eps: as in Adam.
        rank: tracked directions per matrix; None takes 64, or fewer where the matrix is smaller. 0 is normalised Muon.
        lr_ratio: step of the matrices against `lr`. 0.2 makes AdamW's learning rates carry over.
        gamma: weight of the orthogonalised remainder against the leading space.
        nesterov: look ahead by one gradient.
        legacy: reproduce the trajectory of the published code, faults included; see docs/methods/cosmos.md.
        ns, ns_steps, ns_dtype, ns_eps, ns_clamp: as in `NorMuon`.
        **shared: see `SharedOptions`.

    State per m x n matrix: m n + n r + r^2 + m r numbers.
    Source: COSMOS (2025, arXiv:2502.17410).
    """

    rule = CosmosRule()
    bytes_per_parameter = 13

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.95, 0.95),
        *,
        eps: float = 1e-8,
        rank: int | None = None,
        lr_ratio: float = 0.2,
        gamma: float = 0.2,
        nesterov: bool = True,
        legacy: bool = False,
        ns: str = "quintic",
        ns_steps: int = 5,
        ns_dtype: torch.dtype | str | None = None,
        ns_eps: float | None = None,
        ns_clamp: bool = False,
        **shared: Unpack[SharedOptions],
    ) -> None:
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": betas,
            "eps": eps,
            "rank": rank,
            "lr_ratio": lr_ratio,
            "gamma": gamma,
            "nesterov": nesterov,
            "legacy": legacy,
            "ns": ns,
            "ns_steps": ns_steps,
            "ns_dtype": dtype_name(ns_dtype),
            "ns_eps": ns_eps,
            "ns_clamp": ns_clamp,
        }
        # the published code has one pair of betas for everything
        adamw = {"betas": betas, "legacy_first_moment": True} if legacy else None
        super().__init__(params, options, shared, adamw=adamw)
