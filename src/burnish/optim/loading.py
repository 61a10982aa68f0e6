"""What a saved state must be before it is loaded: of these algorithms, of these parameters, of these shapes.

torch compares the number of groups and of parameters alone. State of another algorithm, another rank or another order
of parameters would then be stepped as if it were this one's, without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.core.errors import SettingsError
from burnish.optim.sharding import describe, is_dtensor

if TYPE_CHECKING:
    from burnish.optim.optimizer import MatrixOptimizer


def check_saved(optimizer: MatrixOptimizer, state_dict: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """Compares a saved state with an optimizer.

    Returns:
        The saved state of every parameter by its number in the saved groups, in the order of the parameters here.

    Raises:
        SettingsError: it is of another algorithm, of other parameters, of other shapes, or cut in another way.
        ValueError: another number of groups or parameters, in torch's words.
    """
    where = type(optimizer).__name__
    check_groups(optimizer, state_dict["param_groups"])
    saved: dict[Any, dict[str, Any]] = {}
    for here, there in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        names = here.get("param_names") or [f"parameter {place}" for place in range(len(here["params"]))]
        for name, parameter, number in zip(names, here["params"], there["params"], strict=True):
            if number not in state_dict["state"]:
                raise SettingsError(f"the saved state holds nothing of {name}", where=where, fix=_FIX)
            saved[number] = state_dict["state"][number]
            _check_tensors(name, saved[number], optimizer.state[parameter], where)
    return saved


def check_groups(optimizer: MatrixOptimizer, groups: list[dict[str, Any]]) -> None:
    """Compares the options of saved groups; raises as `check_saved`."""
    where = type(optimizer).__name__
    if len(groups) != len(optimizer.param_groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    for number, (here, there) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        if "algorithm" not in there:
            raise SettingsError(
                f"the saved group {number} names no algorithm, so it is of another library",
                where=where,
                fix="convert it with burnish.optim.import_state",
            )
        stored = optimizer.stored_as(here["algorithm"])
        for key in ("algorithm", *stored):
            if _plain(there.get(key, here[key])) != _plain(here[key]):
                raise SettingsError(
                    f"{key} of the saved group {number} is {there[key]!r}, but here it is {here[key]!r}",
                    where=where,
                    fix=_FIX,
                )
        if len(there["params"]) != len(here["params"]):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
            )
        for name, saved in zip(here.get("param_names", ()), there.get("param_names", ()), strict=False):
            if name != saved:
                raise SettingsError(
                    f"the saved group {number} has {saved} where there is {name} here", where=where, fix=_FIX
                )


_FIX = "make the optimizer as the one that was saved, for the same model"


def _plain(value: Any) -> Any:
    """Text formats make lists of tuples."""
    return list(value) if isinstance(value, tuple) else value


def _check_tensors(name: str, saved: Mapping[str, Any], here: Mapping[str, Any], where: str) -> None:
    for key in sorted((saved.keys() ^ here.keys()) - {"master"}):
        place = "the saved state" if key in saved else "the optimizer here"
        raise SettingsError(f"of {name}, only {place} has {key}", where=where, fix=_FIX)
    for key in [key for key in here if key in saved]:
        there, live = saved[key], here[key]
        if not isinstance(there, Tensor):
            continue
        if (is_dtensor(there) or is_dtensor(live)) and _cut(there) != _cut(live):
            raise SettingsError(
                f"the saved {key} of {name} is {describe(there)}, but here it is {describe(live)}",
                where=where,
                fix="save and load with torch.distributed.checkpoint, which cuts state for any number of processes",
            )
        if there.shape != live.shape:
            raise SettingsError(
                f"the saved {key} of {name} has shape {tuple(there.shape)}, but here it is {tuple(live.shape)}",
                where=where,
                fix=_FIX,
            )


def _cut(tensor: Tensor) -> tuple[Any, ...]:
    if not is_dtensor(tensor):
        return ()
    on_mesh: Any = tensor
    return on_mesh.placements, tuple(on_mesh.device_mesh.shape)


@torch.no_grad()
def fitted(saved: Mapping[str, Any], here: Mapping[str, Tensor]) -> dict[str, Any]:
    """Copies of saved tensors with the dtype, device and strides of the live ones; plain numbers become tensors."""
    fresh: dict[str, Any] = {}
    for key, value in saved.items():
        if key not in here:  # a float32 master that is not kept here
            fresh[key] = value.detach().clone() if isinstance(value, Tensor) else value
        elif isinstance(value, Tensor):
            fresh[key] = torch.empty_like(here[key]).copy_(value.detach())
        else:
            fresh[key] = torch.full_like(here[key], value)
    return fresh
