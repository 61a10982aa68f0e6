"""What an optimizer must know of a parameter that is sharded over processes (a DTensor of FSDP2's `fully_shard`).

Most of a step is elementwise, so it is done on the local shard and needs none of this. `Sharding` says over which
processes the rest must be put together, and along which dimension. One mesh of processes for all parameters is
supported, with one dimension that shards and any number that replicate: FSDP2 and its hybrid form (HSDP).

Everything collective assumes that all processes do the same thing in the same order. Two things are therefore made
sure of: that parameters, options and versions are the same everywhere (`check_processes_agree`, once), and that a
parameter takes part in a step on every process or on none (`taking_part`, every step).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from burnish._version import __version__
from burnish.core.errors import SettingsError
from burnish.optim.gradients import without_norm
from burnish.optim.maths.ownership import Span, borders

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement


@dataclass(frozen=True)
class Sharding:
    """How one parameter is spread over processes.

    Attributes:
        dim: the dimension that is cut, from 0.
        shape: of the whole parameter.
        group: the processes that hold one copy of it together.
        rank, size: number of this process in the group, and how many there are.
    """

    dim: int
    shape: tuple[int, ...]
    group: ProcessGroup
    rank: int
    size: int

    @property
    def borders(self) -> tuple[Span, ...]:
        """The span of every process along `dim`."""
        return borders(self.shape[self.dim], self.size)


def is_dtensor(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a mesh of processes."""
    return hasattr(tensor, "placements") and hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; writing into it writes into the tensor."""
    return cast("DTensor", tensor).to_local() if is_dtensor(tensor) else tensor


def sharding_of(parameter: Tensor) -> Sharding | None:
    """How a parameter is sharded; None where this process has it whole."""
    if not is_dtensor(parameter):
        return None
    sharded = cast("DTensor", parameter)
    for mesh_dim, placement in enumerate(sharded.placements):
        if placement.is_shard() and sharded.device_mesh.size(mesh_dim) > 1:
            return Sharding(
                dim=cast("Any", placement).dim % sharded.ndim,
                shape=tuple(sharded.shape),
                group=sharded.device_mesh.get_group(mesh_dim),
                rank=sharded.device_mesh.get_local_rank(mesh_dim),
                size=sharded.device_mesh.size(mesh_dim),
            )
    return None


def refuse_placements(parameter: Tensor, where: str) -> None:
    """Refuses what is neither FSDP2 nor HSDP.

    Raises:
        SettingsError: a parameter that is cut along two dimensions of the mesh, or is an unreduced sum.
    """
    from torch.distributed.tensor import Replicate, Shard

    sharded = cast("DTensor", parameter)
    cutting = [p for p in sharded.placements if not isinstance(p, Replicate)]
    placements = ", ".join(map(str, sharded.placements))
    if len(cutting) > 1 or any(type(placement) is not Shard for placement in cutting):
        # FSDP2 over tensor parallelism gives two shardings, of which torch marks one as strided.
        raise SettingsError(
            f"the parameter is spread over the mesh as ({placements}): tensor parallelism is not supported",
            where=where,
            fix="shard with fully_shard alone, over a mesh of one dimension or (replicate, shard)",
        )


def refuse_mixture(parameters: Sequence[tuple[str, Tensor]], where: str) -> None:
    """Refuses parameters of which some are on a mesh and others are not, or are on another one.

    Raises:
        SettingsError: names the first parameter that is unlike the others.
    """
    on_mesh = [(name, cast("DTensor", p).device_mesh) for name, p in parameters if is_dtensor(p)]
    if not on_mesh:
        return
    for name, parameter in parameters:
        if not is_dtensor(parameter):
            raise SettingsError(
                f"{name} is an ordinary tensor, but {on_mesh[0][0]} is sharded: nothing would add up its gradient over "
                "the processes",
                where=where,
                fix="call fully_shard on the whole model after its layers",
            )
    for name, mesh in on_mesh:
        if mesh != on_mesh[0][1]:
            raise SettingsError(
                f"{name} and {on_mesh[0][0]} are on two different meshes of processes",
                where=where,
                fix="give every call of fully_shard the same mesh",
            )


def zeros(
    shape: Sequence[int], like: Tensor, dtype: torch.dtype, placements: Sequence[Placement] | None = None
) -> Tensor:
    """Zeros on the device of `like`; on its mesh, spread as `placements` say, where it is on one."""
    if not is_dtensor(like):
        return torch.zeros(tuple(shape), dtype=dtype, device=like.device)
    from torch.distributed.tensor import zeros as zeros_on_mesh

    mesh = cast("DTensor", like).device_mesh
    return zeros_on_mesh(tuple(shape), dtype=dtype, device_mesh=mesh, placements=placements)


def moved(parameter: Tensor, dim: int | None) -> list[Placement] | None:
    """The placements of a parameter with its sharded dimension moved to `dim`, or replicated where that is None."""
    if not is_dtensor(parameter):
        return None
    from torch.distributed.tensor import Replicate, Shard

    target = Replicate() if dim is None else Shard(dim)
    return [target if placement.is_shard() else placement for placement in cast("DTensor", parameter).placements]


# -- what all processes must agree on ----------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """What decides numbers: the versions of this package and of torch."""
    return {"burnish": __version__, "torch": torch.__version__}


def check_processes_agree(mesh: DeviceMesh, facts: dict[str, str], where: str) -> None:
    """Compares facts with all other processes of a mesh; every process must call it.

    Raises:
        SettingsError: on every process, naming the first fact that differs and the two ranks.
    """
    everything: list[Any] = [json.dumps([torch.distributed.get_rank(), versions() | facts])]
    for dim in range(mesh.ndim):
        gathered: list[Any] = [None] * mesh.size(dim)
        torch.distributed.all_gather_object(gathered, everything, group=mesh.get_group(dim))
        everything = [text for texts in gathered for text in texts]
    (first, ours), *others = sorted(json.loads(text) for text in set(everything))
    for rank, theirs in others:
        for key in [*ours, *theirs]:
            mine, other = ours.get(key, "absent"), theirs.get(key, "absent")
            if mine != other:
                raise SettingsError(
                    f"{key} is {mine} in process {first} but {other} in process {rank}",
                    where=where,
                    fix="start every process with the same code, versions and settings",
                )


def describe(parameter: Tensor) -> str:
    """A parameter in words that are equal on all processes that treat it alike."""
    shape = " x ".join(map(str, parameter.shape))
    if not is_dtensor(parameter):
        return f"{shape} {parameter.dtype}, whole"
    sharded = cast("DTensor", parameter)
    return f"{shape} {parameter.dtype}, {sharded.placements} on {tuple(sharded.device_mesh.shape)}"


@torch.no_grad()
def taking_part(parameters: Sequence[Tensor], *, read: bool) -> tuple[list[bool], list[int]]:
    """Which parameters have a gradient in at least one process (experts without tokens have none in some).

    One small reduction, so that all processes step the same parameters; where the others have a gradient and this
    process has none, it is zero. The same reduction tells all of gradients that cannot be stepped.

    Args:
        parameters: on one mesh.
        read: whether to look for gradients that cannot be stepped; may differ between processes.

    Returns:
        For every parameter whether it is stepped; the numbers of those whose gradient is not finite or too large.
    """
    mesh = cast("DTensor", parameters[0]).device_mesh
    present = [number for number, parameter in enumerate(parameters) if parameter.grad is not None]
    flags = torch.zeros(len(parameters), dtype=torch.int32)
    flags[present] = 1
    if read:
        shards = [local(cast("Tensor", parameters[number].grad)) for number in present]
        flags[[present[place] for place in without_norm(shards)]] = 2
    flags = flags.to(parameters[0].device)
    for dim in range(mesh.ndim):
        if mesh.size(dim) > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=mesh.get_group(dim))
    values = flags.tolist()
    return [value > 0 for value in values], [number for number, value in enumerate(values) if value > 1]
