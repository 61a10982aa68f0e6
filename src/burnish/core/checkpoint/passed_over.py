"""Tensors of a checkpoint that stock loading passes over without a word."""

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
    unknown = _not_of(without_memory(config, lineage.kind if lineage else kind_of(raw)), found)
    text = config.get_text_config()
    counts = [getattr(text, name, None) for name in ("num_nextn_predict_layers", "num_mtp_layers")]
    num_layers = text.num_hidden_layers + max(count or 0 for count in counts)
    left = [name for name in unknown if _is_disowned(name, num_layers)]
    return {name: found[name] for name in unknown if name not in left}, left


def _not_of(network: Any, names: Iterable[str]) -> list[str]:
    """Names on disk that stock loading gives to nothing in a network, sorted."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(network)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix, state = network.base_model_prefix, network.state_dict()

    def is_known(name: str) -> bool:
        renamed, _ = rename_source_key(name, renamings, converters, prefix, state)
        return renamed in state or name in state or rename_source_key(name, [], [], prefix, state)[0] in state

    return sorted(name for name in names if not is_known(name))


def _is_disowned(name: str, num_layers: int) -> bool:
    found = re.search(r"(?:^|\.)(?:layers|h)\.(\d+)\.", name)
    beyond = found is not None and "visual" not in name and "vision" not in name and int(found[1]) >= num_layers
    return beyond or name.endswith(".rotary_emb.inv_freq")
