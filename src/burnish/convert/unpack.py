"""Packed weights as dense ones, a tensor at a time: FP8 with a scale per block, MXFP4, and whole numbers.

    FP8        W = Q * s          Q in e4m3, a float32 scale for every block of 128 x 128 (DeepSeek-V3, Qwen3-FP8)
    MXFP4      W = v(q) * 2^e     q in e2m1, two in a byte, a shared exponent for every 32 (GPT-OSS)
    integers   W = (q - z) * s    compressed-tensors, `burnish.core.checkpoint.packed_integers`

These products are exact in float32; the result is rounded once, to the dtype that is asked for.

Sources: DeepSeek-V3 Technical Report (2024, arXiv:2412.19437), section 3.3, for the blocks; OCP Microscaling Formats
(MX) Specification 1.0 (2023) for MXFP4.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from burnish.core.errors import CheckpointError

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
SCALE, BLOCKS, EXPONENTS = "_scale_inv", "_blocks", "_scales"
"""How the names of scales, of packed numbers and of shared exponents end."""
IGNORED = (".activation_scale", ".input_scale", ".input_zero_point", ".output_scale", ".output_zero_point")
"""What is known of activations, which dense weights do without."""


def from_blocks(
    stored: Float[Tensor, "*experts out in"],
    scale: Float[Tensor, "*experts row_blocks column_blocks"],
    block: tuple[int, int] | None,
) -> Float[Tensor, "*experts out in"]:
    """FP8 numbers times their scales, in float32.

    Args:
        stored: float8.
        scale: of every block, a float or the exponent of a power of two (uint8, with 127 for 1); a single one is of the
            whole tensor.
        block: rows and columns of a block, of which the last ones may be cut off; None for one scale.

    Raises:
        ValueError: so many scales are not those of such blocks.
    """
    wide = stored.to(torch.float32)
    scale = torch.exp2(scale.float() - 127) if scale.dtype is torch.uint8 else scale.to(torch.float32)
    if scale.numel() == 1:
        return wide.mul_(scale.reshape(()))
    lengths = block or wide.shape[-2:]
    counts = [-(-size // length) for size, length in zip(wide.shape[-2:], lengths, strict=True)]
    if list(scale.shape) != [*wide.shape[:-2], *counts]:
        raise ValueError(f"{tuple(scale.shape)} scales for {tuple(wide.shape)} weights in blocks of {tuple(lengths)}")
    for axis, length in zip((-2, -1), lengths, strict=True):
        scale = scale.repeat_interleave(length, axis).narrow(axis, 0, wide.shape[axis])
    return wide.mul_(scale)


def from_mxfp4(
    blocks: UInt8[Tensor, "experts outputs groups 16"], exponents: UInt8[Tensor, "experts outputs groups"]
) -> Float[Tensor, "experts inputs outputs"]:
    """MXFP4 numbers in float32, inputs before outputs as GPT-OSS keeps its experts; the low half of a byte is first."""
    values = torch.tensor(E2M1, dtype=torch.float32)
    halves = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], dim=-1)
    powers = exponents.to(torch.int32)[..., None, None] - 127
    return torch.ldexp(halves, powers).flatten(-3).transpose(-1, -2)


class Unpacking:
    """The dense tensors of a packed checkpoint.

    Args:
        directory: of the checkpoint.
        packing: `quantization_config` of its config.json, of method fp8 or mxfp4.
        dtype: of what was packed; everything else keeps its own.

    Attributes:
        layout: {name: shape and dtype}, as tensors on the meta device.

    Raises:
        CheckpointError: a packed tensor lacks its scales.
    """

    def __init__(self, directory: Path, packing: dict[str, Any], dtype: torch.dtype) -> None:
        from burnish.core.checkpoint.tensor_files import TensorReader

        self.files, self.dtype = TensorReader(directory), dtype
        block = packing.get("weight_block_size")
        self.block: tuple[int, int] | None = tuple(block) if block else None
        self.layout: dict[str, Tensor] = {}
        self._scales: dict[str, str] = {}
        for name, stored in self.files.meta.items():
            if name.endswith(BLOCKS) and stored.dtype is torch.uint8:
                experts, rows, groups, half = stored.shape
                self._scales[name] = name.removesuffix(BLOCKS) + EXPONENTS
                self._place(name.removesuffix(BLOCKS), (experts, 2 * groups * half, rows), dtype)
            elif stored.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) and not name.endswith((SCALE, EXPONENTS)):
                self._scales[name] = name + SCALE
                self._place(name, tuple(stored.shape), dtype)
        absent = [scale for scale in self._scales.values() if scale not in self.files.meta]
        if absent:
            raise CheckpointError(f"{len(absent)} scales are missing, the first is {absent[0]}", where=str(directory))
        if not self._scales:
            raise CheckpointError(f"holds no weight packed as {packing['quant_method']}", where=str(directory))
        scales = set(self._scales.values())
        unknown = [name for name in self.files.meta if name.endswith((SCALE, EXPONENTS)) and name not in scales]
        if unknown:
            raise CheckpointError(
                f"holds {unknown[0]}, scales of a weight that is neither 8-bit floats nor MXFP4", where=str(directory)
            )
        for name, stored in self.files.meta.items():
            if name not in self._scales and name not in scales and not name.endswith(IGNORED):
                self._place(name, tuple(stored.shape), stored.dtype)

    def _place(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.layout[name] = torch.empty(shape, dtype=dtype, device="meta")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the layout, one at a time."""
        for name in self.files.meta:
            if name in self._scales:
                stored, scale = self.files.read(name), self.files.read(self._scales[name])
                try:
                    if stored.dtype is torch.uint8:
                        yield name.removesuffix(BLOCKS), from_mxfp4(stored, scale).to(self.dtype)
                    else:
                        yield name, from_blocks(stored, scale, self.block).to(self.dtype)
                except ValueError as error:
                    raise CheckpointError(f"{name} has {error}", fix="download the checkpoint again") from error
            elif name in self.layout:
                yield name, self.files.read(name)


class UnpackingIntegers:
    """The dense tensors of a checkpoint of compressed-tensors whose packed weights are all whole numbers.

    Args:
        directory: of the checkpoint.
        dtype: of what was packed; everything else keeps its own.

    Attributes:
        layout: {name: shape and dtype}, as tensors on the meta device.

    Raises:
        CheckpointError: no weight is packed, or a tensor belongs to a packed weight that is read otherwise.
    """

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        from burnish.core.checkpoint.packed_integers import SHAPE, packed_names
        from burnish.core.checkpoint.tensor_files import TensorReader

        self.files, self.dtype, self.layout = TensorReader(directory), dtype, dict[str, Tensor]()
        self._packed = packed_names(self.files)
        if not self._packed:
            raise CheckpointError("holds no weight that is packed as whole numbers", where=str(directory))
        inside = {part for parts in self._packed.values() for part in parts}
        for name, stored in self.files.meta.items():
            if name in inside or name.endswith(IGNORED):
                continue
            if re.search(r"\.weight_(?!v$)\w+$", name):
                what = f"holds {name}, which is of a packed weight and is not read"
                raise CheckpointError(what, where=str(directory), fix="name the dense original")
            self.layout[name] = torch.empty(stored.shape, dtype=stored.dtype, device="meta")
        for disk in self._packed:
            prefix = disk.removesuffix("weight")
            stored = self.files.meta.get(disk)
            shape = self.files.read(prefix + SHAPE).flatten().tolist() if stored is None else stored.shape
            self.layout[disk] = torch.empty(tuple(shape), dtype=dtype, device="meta")

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the layout, one at a time."""
        from burnish.core.checkpoint.packed_integers import read_packed

        for name in self.layout:
            if name in self._packed:
                parts = {part: self.files.read(part) for part in self._packed[name]}
                yield name, read_packed(name, parts).product().to(self.dtype)
            else:
                yield name, self.files.read(name)
