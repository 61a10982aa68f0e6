"""The `pack-quantized` form of compressed-tensors: tensors of one weight, and the section for config.json.

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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.arch import MatrixView
from burnish.core.errors import EngineError, SettingsError
from burnish.quantize.maths.grid import IntegerGrid

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Scheme:
    """One grid for all quantized weights of a checkpoint.

    Attributes:
        bits: 2 to 8.
        group_size: inputs that share a scale; None is one scale per output row.
        symmetric: without zero points.
    """

    bits: int
    group_size: int | None
    symmetric: bool

    def group_of(self, in_features: int) -> int:
        return self.group_size or in_features

    def num_bytes(self, out_features: int, in_features: int, scale_bytes: int) -> int:
        """Bytes on disk of one weight."""
        groups = in_features // self.group_of(in_features)
        size = 4 * out_features * -(-in_features * self.bits // 32) + scale_bytes * out_features * groups + 16
        return size if self.symmetric else size + 4 * groups * -(-out_features * self.bits // 32)


def pack(codes: Tensor, grid: IntegerGrid, *, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one weight, by the last part of their name.

    Args:
        codes: int8, (out, in).
        grid: that they belong to.
        scale_dtype: the model's dtype on disk.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    tensors = {
        "weight_packed": pack_to_int32(codes, grid.bits).contiguous(),
        "weight_scale": grid.scale.to(scale_dtype).contiguous(),
        "weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
    }
    if not grid.symmetric:
        tensors["weight_zero_point"] = pack_to_int32(grid.zero.to(torch.int8), grid.bits, packed_dim=0).contiguous()
    return tensors


def pack_all(
    codes: dict[str, Tensor], grids: dict[str, IntegerGrid], views: Sequence[MatrixView], *, scale_dtype: torch.dtype
) -> dict[str, dict[str, Tensor]]:
    """`Model.packed`: {name on disk of a weight: its tensors by name on disk}.

    Matrices that are one weight on disk (q, k and v of Phi-3) are joined again, row after row.
    """
    on_disk: dict[str, list[MatrixView]] = {}
    for view in views:
        on_disk.setdefault(view.disk, []).append(view)
    packed = {}
    for disk, parts in on_disk.items():
        parts = sorted(parts, key=lambda view: view.rows)
        first = grids[parts[0].name]
        whole = IntegerGrid(
            first.bits,
            first.symmetric,
            first.group_size,
            torch.cat([grids[view.name].scale for view in parts]),
            torch.cat([grids[view.name].zero for view in parts]),
        )
        tensors = pack(torch.cat([codes[view.name] for view in parts]), whole, scale_dtype=scale_dtype)
        prefix = disk.removesuffix("weight")
        packed[disk] = {f"{prefix}{part}": tensor for part, tensor in tensors.items()}
    return packed


def quantization_config(scheme: Scheme, ignore: Sequence[str]) -> dict[str, Any]:
    """The section of config.json that stock loaders read."""
    weights: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "dynamic": False,
    }
    if scheme.group_size is not None:
        weights["group_size"] = scheme.group_size
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": list(ignore),
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def ignored_modules(module: PreTrainedModel, quantized: Sequence[MatrixView]) -> list[str]:
    """Names of the linear modules that stay dense, as the loader must be told."""
    done = {id(view.owner) for view in quantized}
    return sorted(name for name, part in module.named_modules() if isinstance(part, nn.Linear) and id(part) not in done)


def check_loadable(views: Sequence[MatrixView], scheme: Scheme) -> None:
    """Refuses what no stock loader would read.

    Raises:
        SettingsError: a group size that does not divide; asymmetric experts; matrices stored as (in, out).
    """
    for view in views:
        in_features = view.shape[1]
        if view.transposed:
            raise SettingsError(
                "is stored as (in, out), which the packed format does not know",
                where=view.name,
                fix="quantize a model whose layers are linear modules",
            )
        if in_features % scheme.group_of(in_features):
            sizes = dividing_group_sizes([view.shape[1] for view in views])
            raise SettingsError(
                f"group_size {scheme.group_size} does not divide the {in_features} inputs",
                where=view.name,
                fix=f"use {', '.join(map(str, sizes))} or one scale per row (group_size: null)",
            )
        if view.expert is not None and not scheme.symmetric:
            raise SettingsError(
                "transformers reads packed experts only without zero points",
                where=view.name,
                fix="use symmetric: true",
            )


def dividing_group_sizes(widths: Sequence[int]) -> list[int]:
    """The usual group sizes that divide every width."""
    return [size for size in (16, 32, 64, 128, 256) if all(width % size == 0 for width in widths)]


def check_engine(engine: str | None, scheme: Scheme) -> None:
    """Refuses a scheme for which a named engine has no kernel.

    Raises:
        EngineError: vLLM runs 4 and 8 bits; other widths only through an extra kernel package on some GPUs.
    """
    if engine == "vllm" and scheme.bits not in (4, 8):
        raise EngineError(
            f"vLLM has no built-in kernel for {scheme.bits}-bit weights",
            where="engine: vllm",
            fix="use 4 bits (or 8 on a GPU), or leave engine out for transformers",
        )
