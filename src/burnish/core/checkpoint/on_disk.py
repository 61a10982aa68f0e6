"""A checkpoint on disk as a network without weights and its files, from which weights are taken a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from burnish.core.checkpoint.model import Model
from burnish.core.checkpoint.skeleton import without_weights
from burnish.core.checkpoint.tensor_files import TensorReader

Pieces = Mapping[str, Sequence[tuple[str, Callable[[Tensor], object]]]]
"""{entry of the state dict: (name on disk, what writes that tensor into its place in the entry) of all its pieces}."""


class OnDisk:
    """What is not read yet of a model.

    Attributes:
        module: the network, its parameters on the meta device but for those that `loaded` puts there.
        files: the tensors as they are stored.
        pieces: of what lies on disk under other names (experts one by one); who knows them, sets them.
    """

    def __init__(self, model: Model) -> None:
        assert model.path is not None and not model.is_loaded, "what is in memory may differ from its files"
        self.module, self.files = without_weights(model), TensorReader(model.path)
        self.pieces: Pieces = {}

    @property
    def names(self) -> list[str]:
        """What is saved: every entry of the state dict that is not tied to another."""
        tied = self.module.all_tied_weights_keys
        return [name for name in self.module.state_dict() if name not in tied]

    @property
    def absent(self) -> str | None:
        """The first of these that is stored neither under its name nor in pieces that are known."""
        return next((name for name in self.names if not self._is_stored(name)), None)

    @contextmanager
    def loaded(self, *prefixes: str, instead: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Parameters whose names start so have their weights inside the block, in float32; those of `instead` are taken
        from there. Buffers that are saved stay, as they are small."""
        before: list[tuple[nn.Module, str, nn.Parameter | None]] = []
        for path, module in self.module.named_modules():
            for name, parameter in list(module._parameters.items()):
                full = f"{path}.{name}"
                if parameter is not None and full.startswith(prefixes) and self._is_stored(full):
                    before.append((module, name, parameter))
                    given = (instead or {}).get(full)
                    whole = self._whole(full, parameter) if given is None else given
                    module._parameters[name] = nn.Parameter(whole, requires_grad=False)
                    if given is None:
                        self._fill(full)
            for name, buffer in module._buffers.items():
                full = f"{path}.{name}"
                if buffer is not None and full.startswith(prefixes) and self._is_stored(full):
                    if full in self.files.meta:
                        buffer.copy_(self.files.read(full))
                    self._fill(full)
        for other, first in self.module.all_tied_weights_keys.items():
            if first.startswith(prefixes) and self._is_stored(first):
                path, _, name = other.rpartition(".")
                module = self.module.get_submodule(path)
                before.append((module, name, module._parameters[name]))
                module._parameters[name] = self.module.get_parameter(first)
        try:
            yield
        finally:
            for module, name, parameter in before:
                module._parameters[name] = parameter

    def _is_stored(self, name: str) -> bool:
        return name in self.files.meta or name in self.pieces

    def _whole(self, name: str, parameter: Tensor) -> Tensor:
        if name in self.files.meta:
            return self.files.read(name).to(torch.float32)
        return torch.empty(parameter.shape, dtype=torch.float32)

    def _fill(self, name: str) -> None:
        """What lies on disk in pieces, read and written piece by piece."""
        if name not in self.files.meta:
            for stored, write in self.pieces[name]:
                write(self.files.read(stored))
