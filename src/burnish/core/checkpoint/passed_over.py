"""What stock loading would do with the tensors of a checkpoint, told from the headers of its files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from burnish.core.checkpoint.lineage import Lineage
from burnish.core.checkpoint.network import without_memory
from burnish.core.checkpoint.reading import (
    kind_of,
    load_config,
    read_config,
    read_safetensors_header,
    weight_files,
    weights_of,
)
from burnish.core.errors import CheckpointError
from burnish.core.kinds import Weights


def ignored_tensors(directory: Path) -> tuple[dict[str, Path], list[str]]:
    """What stock loading passes over: {name: file} of what is to be carried, and names that are to be left behind.

    Left behind is what the configuration disowns: layers beyond those that it counts, and tables of rotary frequencies
    that old programs wrote. A packed checkpoint is not looked at: its tensors have the names of their format.
    """
    raw = read_config(directory)
    if weights_of(raw) is Weights.PACKED:
        return {}, []
    lineage = Lineage.read(directory)
    config = load_config(directory)
    found = {name: path for path in weight_files(directory) for name in read_safetensors_header(path)}
    network = without_memory(config, lineage.kind if lineage else kind_of(raw))
    known = network.state_dict()
    unknown = sorted(name for name, (place, _) in _places(network, found).items() if place not in known)
    text = config.get_text_config()
    counts = [getattr(text, name, None) for name in ("num_nextn_predict_layers", "num_mtp_layers")]
    num_layers = text.num_hidden_layers + max(count or 0 for count in counts)
    left = [name for name in unknown if _is_disowned(name, num_layers)]
    return {name: found[name] for name in unknown if name not in left}, left


def check_fits(directory: Path) -> None:
    """Refuses weights that config.json does not describe, from the headers of the files alone.

    Raises:
        CheckpointError: a weight is missing, or has another shape.
    """
    raw = read_config(directory)
    if weights_of(raw) is Weights.PACKED:
        return
    lineage = Lineage.read(directory)
    network = without_memory(load_config(directory), lineage.kind if lineage else kind_of(raw))
    shapes: dict[str, list[int]] = {}
    for path in weight_files(directory):
        shapes |= {name: entry["shape"] for name, entry in read_safetensors_header(path).items()}
    state = network.state_dict()
    found = _places(network, shapes)
    optional = re.compile("|".join(network._keys_to_ignore_on_load_missing or ()) or r"\Z\A")
    present = {place for place, _ in found.values()} | set(network.all_tied_weights_keys)
    missing = sorted(key for key in state if key not in present and not optional.search(key))
    if missing:
        raise CheckpointError(f"{len(missing)} weights are missing, the first is {missing[0]}", where=str(directory))
    for name, (place, is_whole) in sorted(found.items()):
        if is_whole and place in state and list(state[place].shape) != shapes[name]:
            raise CheckpointError(
                f"{name} has the shape {tuple(shapes[name])}, but config.json asks for {tuple(state[place].shape)}",
                where=str(directory),
                fix="config.json and weights are of two models: download the checkpoint again",
            )


def _places(network: Any, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """{name on disk: (name in the network that stock loading gives it to, whether it is all of that)}."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(network)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix, state = network.base_model_prefix, network.state_dict()

    def place(name: str) -> tuple[str, bool]:
        renamed, converter = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:  # not to be renamed; the prefix may be missing
            renamed, converter = rename_source_key(name, [], [], prefix, state)
        return renamed, converter is None

    return {name: place(name) for name in names}


def _is_disowned(name: str, num_layers: int) -> bool:
    found = re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", name)
    beyond = found is not None and "visual" not in name and "vision" not in name and int(found[1]) >= num_layers
    return beyond or name.endswith(".rotary_emb.inv_freq")
