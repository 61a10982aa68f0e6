"""What the optimizers that orthogonalise share: their options, what they compute in, and how weights are moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from burnish.core.errors import SettingsError, nearest
from burnish.optim.layout import out_and_in_dims
from burnish.optim.maths.orthogonalise import POLYNOMIALS, orthogonalise
from burnish.optim.rule import Item

BATCH_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 28}
"""Elements orthogonalised at once. A CPU gains from batching small matrices only, and loses its cache on large ones."""


def apply_(item: Item, weight: Tensor, update: Tensor, factor: Tensor) -> None:
    """Decays a block of the weights, or a shard of one, and moves it by -lr * factor * update."""
    group = item.group
    if group["cautious"] and group["weight_decay"]:
        agrees = (update * weight) > 0
        weight.sub_(weight * agrees, alpha=group["lr"] * group["weight_decay"])
    else:
        item.decay_(weight)
    weight.addcmul_(update, factor, value=-group["lr"])


def is_whole(item: Item) -> bool:
    """Whether this process has every matrix of a parameter whole, or not at all.

    A stack of experts is cut between matrices, so every process steps its own.
    """
    sharding = item.sharding
    return sharding is None or sharding.dim not in out_and_in_dims(len(sharding.shape), item.group)


def orthogonalisation_dtype(asked: str | None, direction: Tensor) -> torch.dtype:
    """bfloat16 on a GPU, whose matrix units want it; as stored elsewhere, where it would be slow or inexact."""
    if asked is not None:
        return getattr(torch, asked)
    return torch.bfloat16 if direction.is_cuda and direction.dtype is torch.float32 else direction.dtype


def orthogonalised(matrices: Tensor, group: Mapping[str, Any], dtype: torch.dtype) -> Tensor:
    """A batch of matrices, orthogonalised as their group says, in `dtype`."""
    return orthogonalise(matrices, group["ns"], group["ns_steps"], dtype, eps=group["ns_eps"], clamp=group["ns_clamp"])


NS_OPTIONS = ("ns", "ns_steps", "ns_eps", "ns_clamp")
"""The options that the result of `orthogonalised` depends on, beside the dtype."""


def dtype_name(dtype: torch.dtype | str | None) -> str | None:
    """Groups hold a dtype by its name, so that they can be saved as text."""
    return str(dtype).removeprefix("torch.") if dtype is not None else None


def check_orthogonalisation(group: Mapping[str, Any], where: str) -> None:
    """The options `ns`, `ns_steps` and `ns_dtype`; `ns_eps` is checked as every eps."""
    check_choice("ns", group["ns"], list(POLYNOMIALS), where)
    if group["ns_dtype"] is not None:
        check_choice("ns_dtype", group["ns_dtype"], ["float32", "bfloat16", "float64"], where)
    if group["ns_steps"] < 1:
        raise SettingsError(f"ns_steps is {group['ns_steps']}, but must be at least 1", where=where)


def check_choice(option: str, value: Any, choices: list[str], where: str) -> None:
    if value not in choices:
        guess = nearest(str(value), choices)
        advice = f"did you mean {guess!r}?" if guess else f"choose from {', '.join(choices)}"
        raise SettingsError(f"{option} is {value!r}", where=where, fix=advice)
