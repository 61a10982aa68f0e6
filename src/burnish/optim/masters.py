"""Float32 copies of bfloat16 weights, and how a weight is noticed that somebody else has written to.

A late `load_state_dict`, a clamp, a mask: without a look at the weight, the next step would write the old copy over
it. To round every copy and compare it would cost more than half a step, so a step leaves a mark of the weight as it
left it, and only where the mark no longer fits are copy and weight compared.

The mark is the version that torch counts up with every write through a tensor, the address of the memory, and, for
writes that torch does not count (`weight.data`, a numpy view), the sums of the bits along rows and along columns. What
it cannot notice is an uncounted write that leaves every one of these sums as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

LANES = 4
"""bfloat16 numbers in one of the 64-bit words that are added up."""


@dataclass(frozen=True)
class Mark:
    """A bfloat16 weight as a step left it.

    Attributes:
        version: torch's count of writes.
        address: of its memory.
        sums: of its bits, see `bit_sums`.
    """

    version: int
    address: int
    sums: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Mark:
        """The mark of a weight as it is now."""
        return cls(weight._version, weight.data_ptr(), bit_sums(weight))


def bit_sums(weight: Tensor) -> Int[Tensor, " sums"]:
    """Sums of the bits of bfloat16 numbers, taken as 64-bit words, over every row and every column of words.

    They wrap around, so one changed number always shows, and so do numbers that change places between rows or
    columns of words. Numbers that do not come in whole words are added up one by one.
    """
    bits = weight.detach()
    bits = bits.flatten(0, -2) if bits.ndim > 1 else bits.view(1, -1)
    whole = bits.is_contiguous() and bits.numel() > 0
    whole = whole and bits.shape[1] % LANES == 0 and bits.storage_offset() % LANES == 0
    words = bits.view(torch.int64) if whole else bits.view(torch.int16).to(torch.int64)
    return torch.cat([words.sum(dim=0), words.sum(dim=1)])


@torch.no_grad()
def refresh(weights: Mapping[int, tuple[Tensor, Tensor]], marks: dict[int, Mark]) -> None:
    """Takes over what somebody else wrote into weights since they were marked.

    Args:
        weights: (bfloat16 weight, its float32 copy) by any number; of a sharded parameter, the shards.
        marks: of the last step, by the same numbers; a weight without one is compared with its copy.
    """
    unsure: list[int] = []
    same: list[Tensor] = []
    for number, (weight, copy) in weights.items():
        mark = marks.get(number)
        if mark is None or (weight._version, weight.data_ptr()) != (mark.version, mark.address):
            _take_over(weight, copy)
        else:
            unsure.append(number)
            same.append((bit_sums(weight) == mark.sums).all())
    if same:  # one answer for all of them, for which a GPU is waited once
        for number, kept in zip(unsure, torch.stack([one.to(same[0].device) for one in same]).tolist(), strict=True):
            if not kept:
                _take_over(*weights[number])


def _take_over(weight: Tensor, copy: Tensor) -> None:
    """Where the copy does not round to the weight, the weight is right."""
    copy.copy_(torch.where(copy.to(torch.bfloat16) == weight, copy, weight.float()))


def with_master(state: dict[str, Any], parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """State with the float32 copy of a bfloat16 parameter, where the group keeps one, and without it elsewhere."""
    if not has_master(parameter, group):
        return {key: value for key, value in state.items() if key != "master"}
    return state if "master" in state else {**state, "master": parameter.detach().float()}


def has_master(parameter: Tensor, group: Mapping[str, Any]) -> bool:
    """Whether the state of a parameter holds a float32 copy of it."""
    return parameter.dtype is torch.bfloat16 and group["low_precision"] == "master"
