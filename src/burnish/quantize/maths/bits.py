"""Whole numbers of b bits, laid end to end in bytes."""

from __future__ import annotations

import torch
from jaxtyping import Int, UInt8
from torch import Tensor


def pack_bits(codes: Int[Tensor, "*batch num"], bits: int) -> UInt8[Tensor, "*batch bytes"]:
    """The codes of a row, lowest bit first, in ⌈num · bits / 8⌉ bytes.

    Args:
        codes: from 0 to 2^bits - 1.
        bits: of each, 16 at most.
    """
    single = (codes[..., None].int() >> torch.arange(bits, device=codes.device, dtype=torch.int32)) & 1
    flat = single.flatten(-2)
    whole = torch.nn.functional.pad(flat, (0, -flat.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (whole << torch.arange(8, device=codes.device, dtype=torch.int32)).sum(-1).to(torch.uint8)


def unpack_bits(packed: UInt8[Tensor, "*batch bytes"], bits: int, num: int) -> Int[Tensor, "*batch num"]:
    """The first `num` codes of every row."""
    single = (packed[..., None].int() >> torch.arange(8, device=packed.device, dtype=torch.int32)) & 1
    own = single.flatten(-2)[..., : num * bits].unflatten(-1, (num, bits))
    return (own << torch.arange(bits, device=packed.device, dtype=torch.int32)).sum(-1)
