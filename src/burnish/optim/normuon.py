"""NorMuon and Muon: the update of `burnish.optim.maths.normuon` on every matrix of a parameter, batched.

Matrices of equal size in a group are orthogonalised together: on a GPU one batched product replaces many small ones.
Parameters that are sharded over processes are stepped in `burnish.optim.sharded_normuon`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.optim.layout import (
    LAYOUT_DEFAULTS,
    blocks,
    check_layout,
    num_rows_shape,
    out_and_in_dims,
    row_blocks,
    stack,
    unstack,
)
from burnish.optim.maths.normuon import SCALES, momentum_, nesterov, row_scales_, step_factor
from burnish.optim.optimizer import MatrixOptimizer, SharedOptions
from burnish.optim.orthogonal import (
    BATCH_ELEMENTS,
    apply_,
    check_choice,
    check_orthogonalisation,
    dtype_name,
    is_whole,
    orthogonalisation_dtype,
    orthogonalised,
)
from burnish.optim.rule import Item, UpdateRule
from burnish.optim.sharded_normuon import update_sharded
from burnish.optim.sharding import Sharding, moved, sharding_of, zeros


class _Block(NamedTuple):
    """One block of one parameter: a stack of matrices of one size."""

    item: Item
    number: int
    view: Tensor


class MuonRule(UpdateRule):
    """Muon, and NorMuon where the group says `normalise`."""

    name = "muon"
    normalise = False
    group_options: ClassVar[Mapping[str, Any]] = LAYOUT_DEFAULTS

    def check(self, group: Mapping[str, Any], parameter: Tensor, where: str) -> None:
        check_choice("scale", group["scale"], list(SCALES), where)
        check_choice("norm_scope", group["norm_scope"], ["global", "local"], where)
        check_orthogonalisation(group, where)
        check_layout(parameter, group, where)

    def check_sharding(self, group: Mapping[str, Any], parameter: Tensor, sharding: Sharding, where: str) -> None:
        out_and_in = out_and_in_dims(parameter.ndim, group)
        filters = parameter.ndim > 3 or group["flatten"]
        if (filters and sharding.dim != 0) or (sharding.dim not in out_and_in and sharding.dim != 0):
            raise SettingsError(
                f"a parameter of {parameter.ndim} dimensions is sharded along dimension {sharding.dim}",
                where=where,
                fix="leave fully_shard its default, the first dimension",
            )
        if group["norm_scope"] == "local" and sharding.dim == out_and_in[1] and not filters:
            raise SettingsError(
                "norm_scope local is defined for matrices that are sharded along their rows, not along their columns",
                where=where,
                fix="leave norm_scope out",
            )

    def new_state(self, parameter: Tensor, group: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
        state = {"momentum": torch.zeros_like(parameter, dtype=dtype)}
        if self.normalise:
            rows = num_rows_shape(parameter, group)
            state["second_moment"] = zeros(rows, parameter, dtype, _row_placements(parameter, group))
        return state

    def update(self, items: list[Item]) -> None:
        apart = [item for item in items if not is_whole(item)]
        if apart:
            update_sharded(apart, normalise=self.normalise)
        self._update_whole([item for item in items if is_whole(item) and item.parameter.numel()])

    def _update_whole(self, items: list[Item]) -> None:
        for item in items:
            momentum_(item.state["momentum"], item.gradient, item.group["betas"][0])
        waiting = {item.index: len(blocks(item.parameter, item.group)) for item in items}
        for batch in _batches(items):
            self._update_batch(batch)
            for unit in batch:
                waiting[unit.item.index] -= 1
                if not waiting[unit.item.index]:
                    unit.item.commit()

    def _update_batch(self, batch: list[_Block]) -> None:
        group = batch[0].item.group
        views = [unit.view for unit in batch]
        rows, cols = views[0].shape[-2:]
        directions = stack([_direction(unit) for unit in batch])
        dtype = orthogonalisation_dtype(group["ns_dtype"], directions)
        orthogonal = orthogonalised(directions, group, dtype).to(directions.dtype)
        if self.normalise:
            states = [row_blocks(unit.item.state["second_moment"], group)[unit.number] for unit in batch]
            second_moment = stack(states)
            row_scale, before, after = row_scales_(orthogonal, second_moment, group["betas"][1], group["eps"])
            for state, new in zip(states, unstack(second_moment, states), strict=True):
                state.copy_(new)  # a batch of one is a view already, and copies onto itself
            factor = row_scale * step_factor(group["scale"], rows, cols, before, after, group["eps"])
        else:
            factor = step_factor(group["scale"], rows, cols, None, orthogonal.square().sum(dim=(-2, -1), keepdim=True))
        for unit, update, scale in zip(batch, unstack(orthogonal, views), unstack(factor, views), strict=True):
            apply_(unit.item, blocks(unit.item.weight, group)[unit.number], update, scale)


class NorMuonRule(MuonRule):
    name = "normuon"
    normalise = True
    beta2_may_be_one = True


def _row_placements(parameter: Tensor, group: Mapping[str, Any]) -> Any:
    """Placements of numbers per output row: with their rows, or everywhere if the parameter is cut along columns."""
    sharding = sharding_of(parameter)
    if sharding is None:
        return moved(parameter, None)
    out, columns = out_and_in_dims(parameter.ndim, group)
    if sharding.dim == columns:
        return moved(parameter, None)
    return moved(parameter, max(parameter.ndim - 2, 0) if sharding.dim == out and parameter.ndim <= 3 else sharding.dim)


def _direction(unit: _Block) -> Tensor:
    """This block's momentum, with the Nesterov step where asked for."""
    item, group = unit.item, unit.item.group
    buffer = blocks(item.state["momentum"], group)[unit.number]
    if not group["nesterov"]:
        return buffer
    gradient = item.gradient if item.gradient.is_contiguous() else item.gradient.contiguous()
    return nesterov(buffer, blocks(gradient, group)[unit.number], group["betas"][0])


def _batches(items: list[Item]) -> Iterator[list[_Block]]:
    """Blocks of equal size in one group and on one device, in batches of bounded size."""
    same: dict[tuple[Any, ...], list[_Block]] = {}
    for item in items:
        for number, view in enumerate(blocks(item.parameter, item.group)):
            key = (id(item.group), *view.shape[-2:], view.device, item.state["momentum"].dtype)
            same.setdefault(key, []).append(_Block(item, number, view))
    for units in same.values():
        limit = BATCH_ELEMENTS.get(units[0].view.device.type, BATCH_ELEMENTS["cpu"])
        batch: list[_Block] = []
        size = 0
        for unit in units:
            if batch and size + unit.view.numel() > limit:
                yield batch
                batch, size = [], 0
            batch.append(unit)
            size += unit.view.numel()
        yield batch


class NorMuon(MatrixOptimizer):
    """Muon with row-wise normalised updates: fewer steps for the same loss, at the memory of one moment.

    `NorMuon.for_model(model, lr=1e-3)` routes a model's parameters; `NorMuon(params, lr)` takes matrices only, or
    groups with `algorithm="adamw"` for the rest.

    Args:
        params: matrices, (name, parameter) pairs or groups; groups may set the layout (see burnish.optim.layout).
        lr: learning rate. With scale "rms" what works for AdamW works here.
        weight_decay: decoupled decay, with the plain learning rate.
        betas: decay of the momentum and of the row-wise second moment.
        scale: size of the update; see `burnish.optim.maths.normuon.step_factor`. "reference" is the authors' code.
        nesterov: look ahead by one gradient.
        ns, ns_steps, ns_dtype: polynomials of the orthogonalisation, their number, and what they are computed in (None:
            bfloat16 on a GPU, otherwise the dtype of the state).
        ns_eps, ns_clamp: what is added to the norm of a matrix that is orthogonalised (None: as its authors do), or
            what the norm is not let fall below, as in torch.optim.Muon.
        cautious: decay only weights that the update shrinks too (arXiv:2510.12402).
        eps: as in the authors' code.
        norm_scope: "local" restores the size of the update per shard of a sharded matrix, as published distributed
            versions do, so that it depends on the number of processes. For comparison only.
        **shared: see `SharedOptions`.

    State per m x n matrix: m (n + 1) numbers, against 2 m n of AdamW.
    Source: NorMuon (2025, arXiv:2510.05491).
    """

    rule = NorMuonRule()
    bytes_per_parameter = 12

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.95, 0.95),
        *,
        scale: str = "rms",
        nesterov: bool = True,
        ns: str = "quintic",
        ns_steps: int = 5,
        ns_dtype: torch.dtype | str | None = None,
        ns_eps: float | None = None,
        ns_clamp: bool = False,
        cautious: bool = False,
        eps: float = 1e-10,
        norm_scope: str = "global",
        **shared: Unpack[SharedOptions],
    ) -> None:
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": betas,
            "scale": scale,
            "nesterov": nesterov,
            "ns": ns,
            "ns_steps": ns_steps,
            "ns_dtype": dtype_name(ns_dtype),
            "ns_eps": ns_eps,
            "ns_clamp": ns_clamp,
            "cautious": cautious,
            "eps": eps,
            "norm_scope": norm_scope,
        }
        super().__init__(params, options, shared)


class Muon(MatrixOptimizer):
    """Momentum, orthogonalised. For arguments see `NorMuon`; there is one beta and no second moment.

    `scale="reference"` is torch.optim.Muon's "original", "rms_moonlight" its "match_rms_adamw"; with
    `ns_clamp` the two are equal to rounding.
    Source: Muon (Keller Jordan, 2024); Muon is Scalable for LLM Training (2025, arXiv:2502.16982).
    """

    rule = MuonRule()
    bytes_per_parameter = 12

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        *,
        scale: str = "rms",
        nesterov: bool = True,
        ns: str = "quintic",
        ns_steps: int = 5,
        ns_dtype: torch.dtype | str | None = None,
        ns_eps: float | None = None,
        ns_clamp: bool = False,
        cautious: bool = False,
        norm_scope: str = "global",
        **shared: Unpack[SharedOptions],
    ) -> None:
        options = {
            "lr": lr,
            "weight_decay": weight_decay,
            "betas": (momentum,),
            "scale": scale,
            "nesterov": nesterov,
            "ns": ns,
            "ns_steps": ns_steps,
            "ns_dtype": dtype_name(ns_dtype),
            "ns_eps": ns_eps,
            "ns_clamp": ns_clamp,
            "cautious": cautious,
            "norm_scope": norm_scope,
        }
        super().__init__(params, options, shared)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        defaults = super().defaults()
        return defaults | {"betas": (defaults.pop("momentum"),)}
