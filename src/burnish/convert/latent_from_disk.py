"""A source whose layers come from disk one at a time, or go from memory one by one, and a result written from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from burnish.arch import layers
from burnish.calibrate.from_disk import give_back_freed_memory, with_embeddings
from burnish.convert.latent_network import fill
from burnish.core.checkpoint import DeferredModel, Model, allocate, cast
from burnish.core.checkpoint.on_disk import OnDisk

if TYPE_CHECKING:
    from transformers import DeepseekV3ForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Source:
    """The network that is converted.

    Attributes:
        module: in the dtype in which text goes through it; without weights where they are on disk.
        on_disk: where those are, None where they are in memory.
    """

    module: PreTrainedModel
    on_disk: OnDisk | None = None

    def layer(self, number: int) -> nn.Module:
        return layers(self.module)[number][1]

    def loaded(self, number: int, part: str = "") -> AbstractContextManager[None]:
        """A layer, or a part of it, has its weights inside the block."""
        path = layers(self.module)[number][0]
        return nullcontext() if self.on_disk is None else self.on_disk.loaded(f"{path}.{part}")

    def embedded(self) -> AbstractContextManager[None]:
        """So has what tokens are looked up in."""
        return nullcontext() if self.on_disk is None else with_embeddings(self.on_disk)

    def left(self) -> None:
        """Behind a layer that will be asked for again: memory that its weights had is given back."""
        if self.on_disk is not None:
            give_back_freed_memory()

    def leave(self, number: int, made: nn.Module, stored_dtype: torch.dtype) -> None:
        """Behind a layer that is converted for good: what was made of it stays as it will be stored, or not either."""
        if self.on_disk is None:
            self.layer(number).to("meta")
            cast(made, stored_dtype)
        else:
            made.to("meta")
        self.left()


def deferred(
    model: Model,
    on_disk: OnDisk,
    new: DeepseekV3ForCausalLM,
    attention_of: Callable[[int], Path],
    stored_dtype: torch.dtype,
) -> DeferredModel:
    """The converted model, written from the files of the one on disk and those of its new attention.

    Args:
        model, on_disk: the source.
        new: without weights.
        attention_of: the file with the tensors of a layer's attention, by role.
        stored_dtype: of the result.
    """
    stored_as, tied = on_disk.module.all_tied_weights_keys, new.all_tied_weights_keys
    attention = {number: f"{path}.self_attn" for number, (path, _) in enumerate(layers(new))}
    inside = tuple(f"{path}." for path in attention.values())
    layout = {
        name: torch.empty(tensor.shape, dtype=stored_dtype, device="meta")
        for name, tensor in new.state_dict().items()
        if name not in tied
    }

    def tensors(_: Path) -> Iterator[tuple[str, Tensor]]:
        for name in layout:
            if not name.startswith(inside):
                yield name, on_disk.files.read(stored_as.get(name, name))
        for number, path in attention.items():
            part = new.get_submodule(path)
            allocate(part, torch.float32)
            fill(new, number, load_file(attention_of(number)))
            yield from ((f"{path}.{name}", tensor) for name, tensor in part.state_dict().items())
            part.to("meta")

    return DeferredModel(model, new, layout, tensors, stored_dtype=stored_dtype)
