"""Parameters and bytes of a checkpoint from its configuration and file headers; no weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    config = load_config(directory)
    if weights is Weights.PACKED:
        sizes = dict(module_shapes(without_memory(config, lineage.kind if lineage else kind_of(raw))))
    else:
        sizes = shapes
    total = sum(_numel(shape) for shape in sizes.values())
    active = total - idle_expert_parameters(config, sizes)
    carried, left = ignored_tensors(directory)
    notes = [
        f"{len(names):,} tensors that stock loading passes over are {fate} ({min(names)}, ...)"
        for names, fate in ((carried, "carried along unchanged"), (left, "left behind: the configuration disowns them"))
        if names
    ]
    kind = lineage.kind if lineage else kind_of(raw)
    return Plan(config, kind, weights, total, active, num_bytes, notes=tuple(notes), carried=tuple(carried))


def plan_config(config: PretrainedConfig, *, kind: Kind = Kind.CAUSAL_LM, bytes_per_parameter: int = 2) -> Plan:
    """Sizes of a dense model from its configuration alone, on the meta device."""
    shapes = dict(module_shapes(without_memory(config, kind)))
    total = sum(_numel(shape) for shape in shapes.values())
    return Plan(
        config, kind, Weights.DENSE, total, total - idle_expert_parameters(config, shapes), total * bytes_per_parameter
    )


def _numel(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def module_shapes(module: PreTrainedModel) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]


def idle_expert_parameters(config: PretrainedConfig, shapes: dict[str, tuple[int, ...]]) -> int:
    """Parameters of routed experts that one token does not use."""
    routed = sum(_numel(shape) for name, shape in shapes.items() if ".experts." in name)
    return round(routed * (1 - expert_share(config)))


def expert_share(config: PretrainedConfig) -> float:
    """Routed experts that a token uses over those of a layer; 1 for a network without experts."""
    used, count = getattr(config.get_text_config(), "num_experts_per_tok", None), num_experts(config)
    return used / count if used and count else 1.0


def num_experts(config: PretrainedConfig) -> int | None:
    """Routed experts of a layer, None where there are none; also of architectures that `arch` has no row for."""
    text = config.get_text_config()
    counts = (getattr(text, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    return next((count for count in counts if count), None)
