"""Packed integers, `pack-quantized`: 2 to 8 bits, one scale per group or row, activations as they are.

Per weight P of shape (m, n) in groups of g at b bits:

    P.weight_packed      int32 (m, ceil(n b / 32))   dense bit stream per row, stored value q + 2^(b-1)
    P.weight_scale       model dtype (m, n / g)
    P.weight_shape       int64 (2,)
    P.weight_zero_point  int32 (ceil(m b / 32), n / g)   asymmetric only, packed along rows

Packing is done by the compressed-tensors package, whose reader is the one that transformers and vLLM call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from burnish.core.errors import EngineError, SettingsError
from burnish.quantize.scheme import Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from burnish.arch import MatrixView


@dataclass(frozen=True)
class PackedIntegers(Scheme):
    name: ClassVar[str] = "int"
    summary: ClassVar[str] = "packed weights"
    form: ClassVar[str] = "pack-quantized"
    signed_scales: ClassVar[bool] = True

    def pack(self, codes: Tensor, grid: Any, *, scale_dtype: torch.dtype) -> dict[str, Tensor]:
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        tensors = {
            "weight_packed": pack_to_int32(codes, self.bits).contiguous(),
            "weight_scale": grid.scale.to(scale_dtype).contiguous(),
            "weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
        }
        if not self.symmetric:
            tensors["weight_zero_point"] = pack_to_int32(grid.zero.to(torch.int8), self.bits, packed_dim=0).contiguous()
        return tensors

    def shapes(self, shape: Sequence[int], scale_dtype: torch.dtype) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        import torch

        out_features, in_features = shape
        groups = in_features // self.group_of(in_features)
        found = {
            "weight_scale": (scale_dtype, (out_features, groups)),
            "weight_packed": (torch.int32, (out_features, self._words(in_features))),
            "weight_shape": (torch.int64, (2,)),
        }
        if not self.symmetric:
            found["weight_zero_point"] = (torch.int32, (self._words(out_features), groups))
        return found

    def num_bytes(self, out_features: int, in_features: int, scale_bytes: int) -> int:
        groups = in_features // self.group_of(in_features)
        size = 4 * out_features * self._words(in_features) + scale_bytes * out_features * groups + 16
        return size if self.symmetric else size + 4 * groups * self._words(out_features)

    def _words(self, count: int) -> int:
        """32-bit words that hold so many codes."""
        return -(-count * self.bits // 32)

    def check_loadable(self, view: MatrixView) -> None:
        if view.expert is not None and not self.symmetric:
            raise SettingsError(
                "transformers reads packed experts only without zero points",
                where=view.name,
                fix="use symmetric: true",
            )

    def check_kernel(self, view: MatrixView, engine: str) -> None:
        """On GPUs vLLM runs 4 and 8 bits, other widths only through an extra kernel package; on CPUs, with AVX-512,
        4 bits in matrices whose sides are multiples of 32."""
        where = f"engine: {engine}"
        if self.bits not in (4, 8):
            raise EngineError(
                f"vLLM has no built-in kernel for {self.bits}-bit weights ({view.name})",
                where=where,
                fix="use 4 bits (or 8 on a GPU), or leave engine out for transformers",
            )
        if engine == "vllm-cpu" and self.bits == 8:
            raise EngineError(
                f"vLLM on a CPU has no kernel for packed 8-bit weights ({view.name})",
                where=where,
                fix="use scheme: w8a8-int8, or bits: 4",
            )
        if engine == "vllm-cpu" and (view.shape[0] % 32 or view.shape[1] % 32):
            raise EngineError(
                f"vLLM's 4-bit kernel for CPUs needs sides that are multiples of 32, {view.name} is {view.shape}",
                where=where,
                fix="name it in ignore, or use scheme: w8a8-int8",
            )

    def notes(self) -> tuple[str, ...]:
        if self.bits in (4, 8):
            return ()
        return (f"loads in transformers; vLLM has no built-in kernel for {self.bits} bits",)


SCHEME = PackedIntegers
