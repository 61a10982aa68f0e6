"""Parameters and bytes of a checkpoint from its configuration and file headers; no weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from burnish.core.checkpoint.adapter import WEIGHTS, adapter_files
from burnish.core.checkpoint.lineage import Lineage
from burnish.core.checkpoint.network import without_memory
from burnish.core.checkpoint.passed_over import ignored_tensors
from burnish.core.checkpoint.reading import (
    kind_of,
    load_config,
    read_config,
    read_safetensors_header,
    weight_files,
    weights_of,
)
from burnish.core.kinds import Kind, Plan, Weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def plan_checkpoint(directory: Path) -> Plan:
    """Sizes of a checkpoint from its configuration and file headers; no weight is read."""
    raw = read_config(directory)
    lineage = Lineage.read(directory)
    weights = weights_of(raw)
    shapes: dict[str, tuple[int, ...]] = {}
    num_bytes = 0
    for path in weight_files(directory):
        num_bytes += path.stat().st_size
        shapes |= {name: tuple(entry["shape"]) for name, entry in read_safetensors_header(path).items()}
    adapter = adapter_files(directory)
    num_bytes += sum(path.stat().st_size for path in adapter if path.name == WEIGHTS)
    config = load_config(directory)
    if weights is Weights.PACKED:
        shapes = module_shapes(without_memory(config, lineage.kind if lineage else kind_of(raw)))
    carried, left = ignored_tensors(directory)
    notes = [
        f"{len(names):,} tensors that stock loading passes over are {fate} ({min(names)}, ...)"
        for names, fate in ((carried, "carried along unchanged"), (left, "left behind: the configuration disowns them"))
        if names
    ]
    kind = lineage.kind if lineage else kind_of(raw)
    facts = {"notes": tuple(notes), "carried": tuple(carried), "adapter": bool(adapter)}
    return Plan(config, kind, weights, shapes, num_bytes, **facts)


def plan_config(config: PretrainedConfig, *, kind: Kind = Kind.CAUSAL_LM, bytes_per_parameter: int = 2) -> Plan:
    """Sizes of a dense model from its configuration alone, on the meta device."""
    plan = Plan(config, kind, Weights.DENSE, module_shapes(without_memory(config, kind)), num_bytes=0)
    return plan.with_(num_bytes=plan.num_parameters * bytes_per_parameter)


def module_shapes(module: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
