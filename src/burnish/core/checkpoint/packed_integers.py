"""The whole numbers and scales of a packed checkpoint, read a weight at a time.

W = levels * scale    `pack-quantized`: levels are a dense stream of bits, less a zero point where there is one;
                      `int-quantized`: they are int8
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from burnish.core.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    from burnish.core.checkpoint.model import Model
    from burnish.core.checkpoint.tensor_files import TensorReader

FORMATS = frozenset({"pack-quantized", "int-quantized"})
"""Of compressed-tensors, that are read here."""
WORDS, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"
BYTES = "weight"
"""How the names of a packed weight's tensors end (compressed-tensors); `BYTES` those of eight bits as they are."""


@dataclass(frozen=True)
class Packed:
    """One weight.

    Attributes:
        levels: codes less their zero points (out, in).
        scale: (out, groups), in the dtype of the checkpoint.
    """

    levels: Tensor
    scale: Tensor

    def product(self) -> Tensor:
        """The weight in float32, where levels times scales are exact unless the scales are float32 themselves; rounded
        to their dtype, it is what the stock loader makes."""
        repeats = self.levels.shape[1] // self.scale.shape[1]
        return self.levels.float() * self.scale.float().repeat_interleave(repeats, dim=1)


def quantization_config(model: Model) -> dict[str, Any]:
    """That of config.json, word for word, or of the model that has not been saved."""
    if model.quantization_config is not None:
        return model.quantization_config
    assert model.path is not None, "a packed model is on disk, or has been packed in memory"
    return json.loads((model.path / "config.json").read_text(encoding="utf-8"))["quantization_config"]


def formats_of(packing: Mapping[str, Any]) -> set[str]:
    """The formats that a `quantization_config` of compressed-tensors names, that of every group of layers."""
    own, groups = packing.get("format"), (packing.get("config_groups") or {}).values()
    return {str(group.get("format") or own) for group in groups} or {str(own)}


def check_whole_numbers(packing: Mapping[str, Any], *, purpose: str) -> None:
    """Refuses a `quantization_config` of which some weights are no whole numbers.

    Args:
        packing: of config.json.
        purpose: "scales are tuned of", say.

    Raises:
        SettingsError: it names another format.
    """
    method = packing.get("quant_method", "compressed-tensors")
    named = formats_of(packing) if method == "compressed-tensors" else {str(method)}
    if others := sorted(named - {"pack-quantized"}):
        raise SettingsError(
            f"the weights are packed as {others[0]!r}, and {purpose} whole numbers (pack-quantized)",
            fix="quantize with scheme: int",
        )


def packed_weights(model: Model) -> Iterator[tuple[str, Packed]]:
    """(name on disk of the weight, what it is packed as), one at a time.

    Raises:
        CheckpointError: a packed weight lacks a tensor, or has one of another shape.
    """
    return ((disk, read_packed(disk, tensors)) for disk, tensors in packed_tensors(model))


def packed_tensors(model: Model) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(name on disk of a weight that is packed as whole numbers, its tensors by name on disk), one at a time."""
    if model.packed:
        for disk, tensors in model.packed.items():
            if any(name.endswith(WORDS) for name in tensors) or _in_bytes(disk, tensors):
                yield disk, dict(tensors)
        return
    from burnish.core.checkpoint.tensor_files import TensorReader

    assert model.path is not None
    files = TensorReader(model.path)
    for disk, names in packed_names(files).items():
        yield disk, {name: files.read(name) for name in names}


def packed_names(files: TensorReader) -> dict[str, list[str]]:
    """{name on disk of a weight packed as whole numbers: the names of its tensors}, in the order of the files."""
    found = {}
    for name in files.meta:
        if name.endswith("." + WORDS):
            prefix = name.removesuffix(WORDS)
            own = [prefix + end for end in (WORDS, SCALE, ZERO, SHAPE)]
        elif _in_bytes(name, files.meta):
            prefix = name.removesuffix(BYTES)
            own = [name, prefix + SCALE, prefix + ZERO]
        else:
            continue
        found[prefix + BYTES] = [part for part in own if part in files.meta]
    return found


def _in_bytes(disk: str, tensors: Mapping[str, Tensor]) -> bool:
    scale = disk.removesuffix(BYTES) + SCALE
    return disk.endswith("." + BYTES) and disk in tensors and tensors[disk].dtype == torch.int8 and scale in tensors


def read_packed(disk: str, tensors: Mapping[str, Tensor]) -> Packed:
    """One weight out of its tensors.

    Raises:
        CheckpointError: one is missing, or is of another shape, or a scale is not finite.
    """
    prefix = disk.removesuffix(BYTES)
    needed = (SCALE,) if disk in tensors else (SCALE, SHAPE)
    absent = [prefix + end for end in needed if prefix + end not in tensors]
    if absent:
        raise CheckpointError(f"{absent[0]} is missing", where=disk, fix="download the checkpoint again")
    scale, zero = tensors[prefix + SCALE], tensors.get(prefix + ZERO)
    if disk in tensors:
        packed = _read_bytes(disk, tensors[disk], scale, zero)
    else:
        shape = torch.Size(tensors[prefix + SHAPE].flatten().tolist())
        packed = _read_words(disk, tensors[prefix + WORDS], scale, zero, shape)
    if not packed.scale.isfinite().all():
        raise CheckpointError("scales are not finite", where=disk, fix="download the checkpoint again")
    return packed


def _read_words(disk: str, words: Tensor, scale: Tensor, zero: Tensor | None, shape: torch.Size) -> Packed:
    """Codes as a dense stream of bits, less their zero points where there are some."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    bits = _bits(words, scale, zero, shape)
    if bits is None:
        zeros = "" if zero is None else f" and {_seen(zero)} zero points"
        raise CheckpointError(
            f"{_seen(words)} words{',' if zeros else ' and'} {_seen(scale)} scales{zeros} are not those of a weight "
            f"{tuple(shape)}",
            where=disk,
            fix="only whole groups of inputs, packed densely, can be read",
        )
    levels = unpack_from_int32(words, bits, shape)
    if zero is not None:
        zeros = unpack_from_int32(zero, bits, torch.Size((shape[0], scale.shape[1])), packed_dim=0)
        levels = levels.short() - zeros.short().repeat_interleave(shape[1] // scale.shape[1], dim=1)
    return Packed(levels, scale)


def _read_bytes(disk: str, levels: Tensor, scale: Tensor, zero: Tensor | None) -> Packed:
    """Eight bits as they are: symmetric, with one scale for a row or for a group of its inputs."""
    if levels.ndim == 2 and scale.ndim == 1:
        scale = scale[:, None]
    rows, inputs = levels.shape if levels.ndim == 2 else (0, 0)
    whole = scale.ndim == 2 and scale.shape[0] == rows and scale.shape[1] > 0 and inputs % scale.shape[1] == 0
    if not (whole and scale.is_floating_point()) or (zero is not None and zero.any()):
        raise CheckpointError(
            f"{_seen(levels)} whole numbers and {_seen(scale)} scales are not those of a weight",
            where=disk,
            fix="only symmetric weights with scales of rows or of whole groups of inputs can be read",
        )
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
