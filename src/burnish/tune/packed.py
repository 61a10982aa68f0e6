"""The whole numbers and scales of a packed checkpoint, and the layers of its network that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.core.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    from burnish.core.checkpoint import Model

WORDS, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"
"""How the names of a packed weight's tensors end (compressed-tensors, `pack-quantized`)."""


@dataclass(frozen=True)
class Packed:
    """One weight.

    Attributes:
        levels: codes less their zero points (out, in).
        scale: (out, groups), in the dtype of the checkpoint.
    """

    levels: Tensor
    scale: Tensor


def quantization_config(model: Model) -> dict[str, Any]:
    """That of config.json, word for word, or of the model that has not been saved."""
    if model.quantization_config is not None:
        return model.quantization_config
    assert model.path is not None, "a packed model is on disk, or has been packed in memory"
    return json.loads((model.path / "config.json").read_text(encoding="utf-8"))["quantization_config"]


def packed_weights(model: Model) -> Iterator[tuple[str, Packed]]:
    """(name on disk of the weight, what it is packed as), one at a time.

    Raises:
        CheckpointError: a packed weight lacks a tensor, or has one of another shape.
    """
    return ((disk, _read(disk, tensors)) for disk, tensors in packed_tensors(model))


def check_whole_numbers(packing: Mapping[str, Any]) -> None:
    """Refuses a `quantization_config` of which some weights are no whole numbers.

    Raises:
        SettingsError: it names another format.
    """
    own, groups = packing.get("format"), (packing.get("config_groups") or {}).values()
    forms = {str(group.get("format") or own) for group in groups} or {str(own)}
    if others := sorted(forms - {"pack-quantized"}):
        raise SettingsError(
            f"the weights are packed as {others[0]!r}, and scales are tuned of whole numbers (pack-quantized)",
            fix="quantize with scheme: int",
        )


def packed_tensors(model: Model) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name on disk of a weight that is packed as whole numbers, its tensors by name on disk), one at a time."""
    if model.packed:
        for disk, tensors in model.packed.items():
            if any(name.endswith(WORDS) for name in tensors):
                yield disk, dict(tensors)
        return
    from burnish.core.checkpoint.tensor_files import TensorReader

    assert model.path is not None
    files = TensorReader(model.path)
    for name in files.meta:
        if name.endswith("." + WORDS):
            prefix = name.removesuffix(WORDS)
            own = [prefix + end for end in (WORDS, SCALE, ZERO, SHAPE) if prefix + end in files.meta]
            yield f"{prefix}weight", {part: files.read(part) for part in own}


def _read(disk: str, tensors: dict[str, Tensor]) -> Packed:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    prefix = disk.removesuffix("weight")
    absent = [prefix + end for end in (SCALE, SHAPE) if prefix + end not in tensors]
    if absent:
        raise CheckpointError(f"{absent[0]} is missing", where=disk, fix="download the checkpoint again")
    words, scale, zero = tensors[prefix + WORDS], tensors[prefix + SCALE], tensors.get(prefix + ZERO)
    shape = torch.Size(tensors[prefix + SHAPE].flatten().tolist())
    bits = _bits(words, scale, zero, shape)
    if bits is None:
        raise CheckpointError(
            f"{_seen(words)} words and {_seen(scale)} scales are not those of a weight {tuple(shape)}"
            if zero is None
            else f"{_seen(words)} words, {_seen(scale)} scales and {_seen(zero)} zero points are not those of a weight "
            f"{tuple(shape)}",
            where=disk,
            fix="only whole groups of inputs, packed densely, can be tuned",
        )
    if not scale.isfinite().all():
        raise CheckpointError("scales are not finite", where=disk, fix="download the checkpoint again")
    levels = unpack_from_int32(words, bits, shape)
    if zero is not None:
        zeros = unpack_from_int32(zero, bits, torch.Size((shape[0], scale.shape[1])), packed_dim=0)
        levels = levels.short() - zeros.short().repeat_interleave(shape[1] // scale.shape[1], dim=1)
    return Packed(levels, scale)


def _bits(words: Tensor, scale: Tensor, zero: Tensor | None, shape: torch.Size) -> int | None:
    """Of a code; None where the tensors are not those of a weight (out, in) in whole groups of inputs."""
    if len(shape) != 2 or min(shape) < 1 or words.ndim != 2 or scale.ndim != 2 or not scale.is_floating_point():
        return None
    rows, inputs = shape
    groups, bits = scale.shape[1], 32 * words.shape[1] // inputs
    whole = scale.shape[0] == rows and groups > 0 and inputs % groups == 0
    dense = 1 <= bits <= 8 and words.dtype == torch.int32 and words.shape == (rows, -(-inputs * bits // 32))
    if not (whole and dense):
        return None
    fits = zero is None or (zero.dtype == torch.int32 and zero.shape == (-(-rows * bits // 32), groups))
    return bits if fits else None


def _seen(tensor: Tensor) -> str:
    """Shape and numbers of a tensor, for a message."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def layers_of(module: Any) -> dict[str, tuple[str, nn.Linear]]:
    """{name on disk of a weight: (name of the linear layer that it is the whole weight of, the layer)}."""
    from burnish.arch import known_model_types, matrices, plain_matrices

    known = module.config.model_type in known_model_types()
    names = {id(part): name for name, part in module.named_modules()}
    return {
        view.disk: (names[id(view.owner)], view.owner)
        for view in (matrices(module) if known else plain_matrices(module))
        if isinstance(view.owner, nn.Linear)
    }
