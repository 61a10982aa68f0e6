"""A checkpoint on disk as a network without weights and its files, from which weights are taken a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from burnish.core.checkpoint.model import Model
from burnish.core.checkpoint.skeleton import without_weights
from burnish.core.checkpoint.tensor_files import TensorReader


class OnDisk:
    """What is not read yet of a model.

    Attributes:
        module: the network, its parameters on the meta device but for those that `loaded` puts there.
        files: the tensors as they are stored.
    """

    def __init__(self, model: Model) -> None:
        assert model.path is not None and not model.is_loaded, "what is in memory may differ from its files"
        self.module, self.files = without_weights(model), TensorReader(model.path)

    @property
    def names(self) -> list[str]:
        """What is saved: every entry of the state dict that is not tied to another."""
        tied = self.module.all_tied_weights_keys
        return [name for name in self.module.state_dict() if name not in tied]

    @property
    def absent(self) -> str | None:
        """The first of these that is not stored under its name."""
        return next((name for name in self.names if name not in self.files.meta), None)

    @contextmanager
    def loaded(self, *prefixes: str, instead: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Parameters whose names start so have their weights inside the block, in float32; those of `instead` are taken
        from there."""
        before: list[tuple[nn.Module, str, nn.Parameter]] = []
        for path, module in self.module.named_modules():
            for name, parameter in list(module._parameters.items()):
                full = f"{path}.{name}"
                if parameter is not None and full.startswith(prefixes) and full in self.files.meta:
                    before.append((module, name, parameter))
                    tensor = instead[full] if instead and full in instead else self.files.read(full).to(torch.float32)
                    module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        try:
            yield
        finally:
            for module, name, parameter in before:
                module._parameters[name] = parameter
