"""A packed embedding: stock loaders do not read it as it was written, so they read the rest and it is unpacked here."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.core.checkpoint.network import without_memory
from burnish.core.errors import CheckpointError
from burnish.core.kinds import Kind, packing

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def packed_embedding(config: PretrainedConfig, directory: Path, kind: Kind) -> str | None:
    """The name of the embedding's weight, where the files hold it packed."""
    from burnish.core.checkpoint.packed_integers import packed_names
    from burnish.core.checkpoint.tensor_files import TensorReader

    groups = packing(config).get("config_groups") or {}
    named = {target for group in groups.values() for target in group.get("targets") or ()} - {"Linear"}
    if not named:  # of a type of layers alone, none of which is an embedding
        return None
    name = weight_of_embedding(without_memory(config, kind))
    return name if name in packed_names(TensorReader(directory)) else None


def weight_of_embedding(module: PreTrainedModel) -> str:
    embedding = module.get_input_embeddings()
    return next(f"{name}.weight" for name, part in module.named_modules() if part is embedding)


def without_it(config: PretrainedConfig, name: str) -> PretrainedConfig:
    """The configuration, its embedding not said to be packed."""
    target, changed = name.removesuffix(".weight"), copy.deepcopy(config)
    groups = {}
    for key, group in packing(config)["config_groups"].items():
        if targets := [one for one in group["targets"] if one != target]:
            groups[key] = group | {"targets": targets}
    changed.quantization_config = packing(config) | {"config_groups": groups}
    return changed


def tied_with(module: PreTrainedModel, name: str) -> set[str]:
    """Names of the parameters that are the embedding's."""
    weight = module.get_parameter(name)
    return {one for one, other in module.named_parameters(remove_duplicate=False) if other is weight}


def fill(module: PreTrainedModel, name: str, directory: Path) -> None:
    """Puts the unpacked values into the embedding, and so into a head that is the same tensor.

    Raises:
        CheckpointError: they are of another shape, or a part is missing.
    """
    import torch

    from burnish.core.checkpoint.packed_integers import packed_names, read_packed
    from burnish.core.checkpoint.tensor_files import TensorReader

    files, weight = TensorReader(directory), module.get_parameter(name)
    values = read_packed(name, {part: files.read(part) for part in packed_names(files)[name]}).product()
    if values.shape != weight.shape:
        raise CheckpointError(
            f"{name} has the shape {tuple(values.shape)}, but config.json asks for {tuple(weight.shape)}",
            where=str(directory),
            fix="config.json and weights are of two models: download the checkpoint again",
        )
    with torch.no_grad():
        weight.copy_(values)
