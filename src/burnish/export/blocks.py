"""GGUF's blocks of 32 whole numbers with one float16 scale d, made out of levels and scales without rounding.

    Q4_0   d, 16 bytes                 W = d (q - 8),  q of 4 bits: byte j holds numbers j (low half) and j + 16
    Q5_0   d, 4 bytes, 16 bytes        W = d (q - 16), the fifth bit of number j is bit j of the four bytes
    Q8_0   d, 32 bytes                 W = d q

A scale of 32 k inputs is repeated for its k blocks, so W is the product that the checkpoint means, bit for bit.

Source: the layout is ggml's (ggml-common.h); `gguf.quants` of the gguf package reads it, and tests compare with that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Int8, UInt8

BLOCK = 32
Levels = Int8[np.ndarray, "rows blocks 32"]
Bytes = UInt8[np.ndarray, "rows blocks bytes"]


@dataclass(frozen=True)
class BlockType:
    """One of the three.

    Attributes:
        name: as GGUF has it.
        low, high: the levels that it holds.
        codes: levels -> what follows the scale of every block.
    """

    name: str
    low: int
    high: int
    codes: Callable[[Levels], Bytes]

    def pack(self, levels: Int8[np.ndarray, "rows inputs"], scale: Float16[np.ndarray, "rows blocks"]) -> np.ndarray:
        """The bytes of a weight, (rows, blocks * bytes of a block)."""
        rows, inputs = levels.shape
        blocks = levels.reshape(rows, inputs // BLOCK, BLOCK)
        heads = np.ascontiguousarray(scale, dtype="<f2").view(np.uint8).reshape(rows, -1, 2)
        return np.concatenate([heads, self.codes(blocks)], axis=-1).reshape(rows, -1)


def _nibbles(codes: UInt8[np.ndarray, "rows blocks 32"]) -> UInt8[np.ndarray, "rows blocks 16"]:
    return (codes[..., :16] & 15) | (codes[..., 16:] << 4).astype(np.uint8)


def _four_bits(levels: Levels) -> Bytes:
    return _nibbles((levels + 8).astype(np.uint8))


def _five_bits(levels: Levels) -> Bytes:
    codes = (levels + 16).astype(np.uint8)
    fifth = np.packbits(codes >> 4, axis=-1, bitorder="little")
    return np.concatenate([fifth, _nibbles(codes)], axis=-1)


def _eight_bits(levels: Levels) -> Bytes:
    return np.ascontiguousarray(levels).view(np.uint8)


BLOCK_TYPES = (
    BlockType("Q4_0", -8, 7, _four_bits),
    BlockType("Q5_0", -16, 15, _five_bits),
    BlockType("Q8_0", -128, 127, _eight_bits),
)
"""From the smallest to the largest."""


def smallest(low: int, high: int) -> BlockType | None:
    """The one with the fewest bytes that holds all levels from `low` to `high`."""
    return next((kind for kind in BLOCK_TYPES if kind.low <= low and high <= kind.high), None)
