"""How large a checkpoint is: on disk, in parameters, and in bytes read for every generated token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from burnish.arch import is_routed, num_active_parameters, share_used
from burnish.core.checkpoint import Model, read_safetensors_header, weight_files
from burnish.core.checkpoint.adapter import adapter_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sizes:
    """Sizes of one checkpoint.

    Attributes:
        bytes_on_disk: of the weight files; of the tensors that would be written, for a model that was never saved.
        weight_bytes_per_token: stored bytes of the weights that one token uses.
        num_parameters, num_active_parameters: all, and those that one token uses.
    """

    bytes_on_disk: int
    weight_bytes_per_token: int
    num_parameters: int
    num_active_parameters: int


def measure_sizes(model: Model, module: PreTrainedModel) -> Sizes:
    """Sizes from file headers, or from the tensors in memory where there is no file.

    Of routed experts one token reads the share that it is sent to; of an input embedding that is not also the output
    head it reads one row; of everything else all bytes, in the width in which they are stored.
    """
    stored = stored_bytes(model)
    plan = model.plan()
    on_disk = sum(path.stat().st_size for path in _files(model.path)) if model.path else sum(stored.values())
    share = share_used(module.config)
    embedding = _untied_embedding(module)
    per_token = 0.0
    for name, num_bytes in stored.items():
        if embedding and name.startswith(embedding):
            per_token += num_bytes / module.config.get_text_config().vocab_size
        elif is_routed(name):
            per_token += num_bytes * share
        else:
            per_token += num_bytes
    beside = model.adapter.num_parameters if model.adapter is not None else 0
    return Sizes(on_disk, round(per_token), plan.num_parameters + beside, num_active_parameters(plan) + beside)


def stored_bytes(model: Model) -> dict[str, int]:
    """{name on disk: bytes} of every stored tensor."""
    if model.path is None:
        state, _ = model.tensors_on_disk()
        state |= model.adapter.tensors if model.adapter is not None else {}
        return {name: tensor.numel() * tensor.element_size() for name, tensor in state.items()}
    headers = [read_safetensors_header(path) for path in _files(model.path)]
    return {
        name: entry["data_offsets"][1] - entry["data_offsets"][0]
        for header in headers
        for name, entry in header.items()
    }


def _files(directory: Path) -> list[Path]:
    """Those of the weights, and of the adapter beside them."""
    return [*weight_files(directory), *(path for path in adapter_files(directory) if path.suffix == ".safetensors")]


def _untied_embedding(module: PreTrainedModel) -> str | None:
    """The name, up to the last dot, of an input embedding that the output head does not share."""
    inputs, outputs = module.get_input_embeddings(), module.get_output_embeddings()
    if outputs is None or outputs.weight is inputs.weight:
        return None
    return next(f"{name}." for name, part in module.named_modules() if part is inputs)
