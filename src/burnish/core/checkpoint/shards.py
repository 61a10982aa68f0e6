"""The tensor files and config.json of a checkpoint that is being written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MAX_SHARD_BYTES = 5_000_000_000


def shards_of(state: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """{file name: its tensors}; tensors may be on the meta device."""
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(state, max_shard_size=MAX_SHARD_BYTES)
    return {name: {tensor: state[tensor] for tensor in tensors} for name, tensors in split.filename_to_tensors.items()}


def write_index(directory: Path, shards: dict[str, dict[str, torch.Tensor]]) -> None:
    """model.safetensors.index.json, where there is more than one file."""
    if len(shards) == 1:
        return
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    total = sum(t.numel() * t.element_size() for tensors in shards.values() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_config(directory: Path, config: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
