"""The forms of compressed-tensors that are written: tensors of one weight, and the section for config.json.

Per weight P of shape (m, n) in groups of g at b bits, scheme `int` (pack-quantized):

    P.weight_packed      int32 (m, ceil(n b / 32))   dense bit stream per row, stored value q + 2^(b-1)
    P.weight_scale       model dtype (m, n / g)
    P.weight_shape       int64 (2,)
    P.weight_zero_point  int32 (ceil(m b / 32), n / g)   asymmetric only, packed along rows

and schemes `w8a8-int8` (int-quantized) and `fp8-dynamic` (float-quantized), whose activations the engine rounds:

    P.weight             int8 or float8_e4m3fn (m, n)
    P.weight_scale       model dtype (m, 1)

Packing is done by the compressed-tensors package, whose reader is the one that transformers and vLLM call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.arch import MatrixView
from burnish.core.errors import EngineError, SettingsError
from burnish.quantize.maths.float_grid import WeightGrid
from burnish.quantize.maths.grid import IntegerGrid, combine
from burnish.quantize.settings import SchemeKind

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FORMATS: dict[SchemeKind, str] = {
    "int": "pack-quantized",
    "fp8-dynamic": "float-quantized",
    "w8a8-int8": "int-quantized",
}


@dataclass(frozen=True)
class Scheme:
    """How the weights of some matrices lie on disk, and whether the engine rounds their inputs.

    Attributes:
        bits: 2 to 8.
        group_size: inputs that share a scale; None is one scale per output row.
        symmetric: without zero points.
        kind: packed integers, or one of the two with activations of eight bits.
    """

    bits: int
    group_size: int | None
    symmetric: bool
    kind: SchemeKind = "int"

    @property
    def format(self) -> str:
        return FORMATS[self.kind]

    @property
    def rounds_activations(self) -> bool:
        return self.kind != "int"

    def group_of(self, in_features: int) -> int:
        return self.group_size or in_features

    def num_bytes(self, out_features: int, in_features: int, scale_bytes: int) -> int:
        """Bytes on disk of one weight."""
        groups = in_features // self.group_of(in_features)
        if self.kind != "int":
            return out_features * (in_features + scale_bytes)
        size = 4 * out_features * -(-in_features * self.bits // 32) + scale_bytes * out_features * groups + 16
        return size if self.symmetric else size + 4 * groups * -(-out_features * self.bits // 32)


def pack(codes: Tensor, grid: WeightGrid, scheme: Scheme, *, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of one weight, by the last part of their name.

    Args:
        codes: int8 or float8, (out, in).
        grid: that they belong to.
        scheme: says whether integers are packed.
        scale_dtype: the model's dtype on disk.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    if scheme.kind != "int":
        return {"weight": codes.contiguous(), "weight_scale": grid.scale.to(scale_dtype).contiguous()}
    assert isinstance(grid, IntegerGrid)

    tensors = {
        "weight_packed": pack_to_int32(codes, grid.bits).contiguous(),
        "weight_scale": grid.scale.to(scale_dtype).contiguous(),
        "weight_shape": torch.tensor(codes.shape, dtype=torch.int64),
    }
    if not grid.symmetric:
        tensors["weight_zero_point"] = pack_to_int32(grid.zero.to(torch.int8), grid.bits, packed_dim=0).contiguous()
    return tensors


def pack_all(
    codes: Mapping[str, Tensor],
    grids: Mapping[str, WeightGrid],
    views: Sequence[MatrixView],
    schemes: Mapping[str, Scheme],
    *,
    scale_dtype: torch.dtype,
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
        whole = combine([grids[view.name] for view in parts], torch.cat)
        joined = torch.cat([codes[view.name] for view in parts])
        tensors = pack(joined, whole, schemes[parts[0].name], scale_dtype=scale_dtype)
        prefix = disk.removesuffix("weight")
        packed[disk] = {f"{prefix}{part}": tensor for part, tensor in tensors.items()}
    return packed


def packed_shapes(disk: str, shape: Sequence[int], scheme: Scheme, dtype: torch.dtype) -> dict[str, Tensor]:
    """What `pack` makes of a weight of this name and shape, on the meta device."""
    out_features, in_features = shape
    prefix = disk.removesuffix("weight")
    groups = in_features // scheme.group_of(in_features)

    def empty(part: str, kind: torch.dtype, *sizes: int) -> dict[str, Tensor]:
        return {f"{prefix}{part}": torch.empty(sizes, dtype=kind, device="meta")}

    tensors = empty("weight_scale", dtype, out_features, groups)
    if scheme.kind != "int":
        eight_bits = torch.float8_e4m3fn if scheme.kind == "fp8-dynamic" else torch.int8
        return tensors | empty("weight", eight_bits, out_features, in_features)
    tensors |= empty("weight_packed", torch.int32, out_features, -(-in_features * scheme.bits // 32))
    tensors |= empty("weight_shape", torch.int64, 2)
    if not scheme.symmetric:
        tensors |= empty("weight_zero_point", torch.int32, -(-out_features * scheme.bits // 32), groups)
    return tensors


def quantization_config(
    own: Scheme, views: Sequence[MatrixView], schemes: Mapping[str, Scheme], ignore: Sequence[str]
) -> dict[str, Any]:
    """The section of config.json that stock loaders read.

    The first group has the stage's own scheme and is for every linear layer; matrices with another scheme are named in
    groups after it. A name counts for more than a class in both loaders.

    Args:
        own: the scheme of matrices that no override names.
        views: the quantized matrices.
        schemes: of each, by name.
        ignore: modules that stay dense.
    """
    modules: dict[Scheme, list[str]] = {own: ["Linear"]}
    for view in views:
        name = view.disk.removesuffix(".weight")
        if schemes[view.name] != own and name not in modules.setdefault(schemes[view.name], []):
            modules[schemes[view.name]].append(name)
    groups = {
        f"group_{number}": {"targets": targets, "format": scheme.format} | _arguments(scheme)
        for number, (scheme, targets) in enumerate(modules.items())
    }
    formats = {scheme.format for scheme in modules}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": list(ignore),
        "config_groups": groups,
    }


def _arguments(scheme: Scheme) -> dict[str, Any]:
    number = {"num_bits": scheme.bits, "type": "float" if scheme.kind == "fp8-dynamic" else "int"}
    weights: dict[str, Any] = number | {
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "dynamic": False,
    }
    if scheme.group_size is not None:
        weights["group_size"] = scheme.group_size
    if not scheme.rounds_activations:
        return {"weights": weights}
    return {
        "weights": weights,
        "input_activations": number | {"symmetric": True, "strategy": "token", "dynamic": True},
    }


def ignored_modules(module: PreTrainedModel, quantized: Sequence[MatrixView]) -> list[str]:
    """Names of the linear modules that stay dense, as the loader must be told."""
    done = {id(view.owner) for view in quantized}
    return sorted(name for name, part in module.named_modules() if isinstance(part, nn.Linear) and id(part) not in done)


def check_loadable(views: Sequence[MatrixView], schemes: Mapping[str, Scheme]) -> None:
    """Refuses what no stock loader would read.

    Raises:
        SettingsError: a group size that does not divide, asymmetric or plain int8 experts, or matrices stored as
            (in, out).
    """
    for view in views:
        in_features, scheme = view.shape[1], schemes[view.name]
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
        if view.expert is not None and scheme.kind == "w8a8-int8":
            raise SettingsError(
                "transformers reads experts packed or as float8, not as plain int8",
                where=view.name,
                fix="use scheme: fp8-dynamic, or int",
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


def check_engine(engine: str | None, views: Sequence[MatrixView], schemes: Mapping[str, Scheme]) -> None:
    """Refuses schemes for which a named engine has no kernel (vLLM 0.32).

    Raises:
        EngineError: on GPUs vLLM runs 4 and 8 bits, other widths only through an extra kernel package. On CPUs it runs
            w8a8-int8, fp8-dynamic, and, with AVX-512, packed 4-bit weights whose sides are multiples of 32.
    """
    if engine is None:
        return
    where = f"engine: {engine}"
    for view in views:
        scheme = schemes[view.name]
        if scheme.kind == "int" and scheme.bits not in (4, 8):
            raise EngineError(
                f"vLLM has no built-in kernel for {scheme.bits}-bit weights ({view.name})",
                where=where,
                fix="use 4 bits (or 8 on a GPU), or leave engine out for transformers",
            )
        if engine != "vllm-cpu":
            continue
        if scheme.kind == "int" and scheme.bits == 8:
            raise EngineError(
                f"vLLM on a CPU has no kernel for packed 8-bit weights ({view.name})",
                where=where,
                fix="use scheme: w8a8-int8, or bits: 4",
            )
        if scheme.kind == "int" and (view.shape[0] % 32 or view.shape[1] % 32):
            raise EngineError(
                f"vLLM's 4-bit kernel for CPUs needs sides that are multiples of 32, {view.name} is {view.shape}",
                where=where,
                fix="name it in ignore, or use scheme: w8a8-int8",
            )
