"""Quantized weights as they are written: tensors of every weight, the section for config.json, and what is refused.

How a weight is packed is its scheme's matter (`formats`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.arch import MatrixView
from burnish.core.errors import SettingsError
from burnish.quantize.maths.float_grid import WeightGrid
from burnish.quantize.maths.grid import combine
from burnish.quantize.scheme import Scheme

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        tensors = schemes[parts[0].name].pack(joined, whole, scale_dtype=scale_dtype)
        prefix = disk.removesuffix("weight")
        packed[disk] = {f"{prefix}{part}": tensor for part, tensor in tensors.items()}
    return packed


def packed_shapes(disk: str, shape: Sequence[int], scheme: Scheme, scale_dtype: torch.dtype) -> dict[str, Tensor]:
    """What packing makes of a weight of this name and shape, on the meta device."""
    prefix = disk.removesuffix("weight")
    return {
        f"{prefix}{part}": torch.empty(sizes, dtype=dtype, device="meta")
        for part, (dtype, sizes) in scheme.shapes(shape, scale_dtype).items()
    }


def quantization_config(
    own: Scheme, views: Sequence[MatrixView], schemes: Mapping[str, Scheme], ignore: Sequence[str]
) -> dict[str, Any]:
    """The section of config.json that stock loaders read.

    The first group has the stage's own scheme and is for every linear layer; matrices with another scheme, and an
    embedding, which is none, are named. A name counts for more than a class in both loaders.

    Args:
        own: the scheme of matrices that no override names.
        views: the quantized matrices.
        schemes: of each, by name.
        ignore: modules that stay dense.
    """
    modules: dict[Scheme, list[str]] = {own: ["Linear"]}
    for view in views:
        name = view.disk.removesuffix(".weight")
        named = modules.setdefault(schemes[view.name], [])
        if (schemes[view.name] != own or view.role == "embedding") and name not in named:
            named.append(name)
    groups = {
        f"group_{number}": {"targets": targets, "format": scheme.form} | scheme.arguments()
        for number, (scheme, targets) in enumerate(modules.items())
    }
    forms = {scheme.form for scheme in modules}
    return {
        "quant_method": "compressed-tensors",
        "format": forms.pop() if len(forms) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "ignore": list(ignore),
        "config_groups": groups,
    }


def ignored_modules(module: PreTrainedModel, quantized: Sequence[MatrixView]) -> list[str]:
    """Names of the linear modules, and of modules of experts, that stay dense, as the loader must be told."""
    done = {id(view.owner) for view in quantized}
    parts = ((name, part) for name, part in module.named_modules() if id(part) not in done)
    return sorted(name for name, part in parts if isinstance(part, nn.Linear) or "down_proj" in part._parameters)


def check_loadable(views: Sequence[MatrixView], schemes: Mapping[str, Scheme]) -> None:
    """Refuses what no stock loader would read.

    Raises:
        SettingsError: a group size that does not divide, matrices stored as (in, out), or what the scheme refuses.
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
            sizes = ", ".join(map(str, dividing_group_sizes([view.shape[1] for view in views])))
            raise SettingsError(
                f"group_size {scheme.group_size} does not divide the {in_features} inputs",
                where=view.name,
                fix=f"use {sizes + ' or ' if sizes else ''}one scale per row (group_size: null)",
            )
        scheme.check_loadable(view)


def dividing_group_sizes(widths: Sequence[int]) -> list[int]:
    """The usual group sizes that divide every width."""
    return [size for size in (16, 32, 64, 128, 256) if all(width % size == 0 for width in widths)]
