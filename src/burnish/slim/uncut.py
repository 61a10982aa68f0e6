"""The model that is cut, one matrix at a time: from its files, or from a network that a caller holds."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from burnish.arch import MatrixView, VectorView, matrices, vectors
from burnish.core.checkpoint import Model, cast, move, without_weights
from burnish.core.checkpoint.on_disk import OnDisk

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Uncut:
    """Matrices and vectors in the dtype in which they are stored.

    Attributes:
        model: the checkpoint.
        files: None where the network is in memory already, or where its tensors lie on disk in other pieces.
        module: the network; without weights where there are `files`.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.files = model, None
        if model.path is not None and not model.is_loaded:
            on_disk = OnDisk(model)
            self.module = on_disk.module
            shapes = {name: tensor.shape for name, tensor in on_disk.files.meta.items()}
            stored = [shapes.get(view.disk) == view.shape for view in self.matrices]
            stored += [shapes.get(vector.name) == vector.tensor.shape for vector in self.vectors]
            if all(stored):
                self.files = on_disk.files
                return
            del self.matrices, self.vectors
        self.module = model.module

    @cached_property
    def matrices(self) -> list[MatrixView]:
        return matrices(self.module)

    @cached_property
    def vectors(self) -> list[VectorView]:
        return vectors(self.module)

    @cached_property
    def experts(self) -> dict[tuple[int | None, str, int | None], dict[str, MatrixView]]:
        """{(layer, part, expert): {role: matrix}}."""
        by_expert: dict[tuple[int | None, str, int | None], dict[str, MatrixView]] = {}
        for view in self.matrices:
            by_expert.setdefault((view.layer, view.part, view.expert), {})[view.role] = view
        return by_expert

    @property
    def dtype(self) -> torch.dtype:
        """Of the input, which the smaller checkpoint keeps."""
        return self.module.dtype if self.files is None else self.model.stored_dtype

    def matrix(self, view: MatrixView) -> Tensor:
        """(out, in), on the CPU."""
        return view.tensor.cpu() if self.files is None else self._read(view.disk)

    def vector(self, vector: VectorView) -> Tensor:
        return vector.tensor.cpu() if self.files is None else self._read(vector.name)

    def network(self, device: str) -> PreTrainedModel:
        """A copy on the device, for text to go through: in float32 on a CPU (or float64), on a GPU as it is stored."""
        working = self.dtype if device.startswith("cuda") or self.dtype is torch.float64 else torch.float32
        if self.model.path is None or self.model.is_loaded:
            return move(cast(copy.deepcopy(self.module), working), device).eval()
        if self.files is None or device != "cpu":
            return Model(path=self.model.path, lineage=self.model.lineage, dtype=working, device=device).module
        # A stock loader would hold the files and the network at the same time.
        network = without_weights(self.model)
        for part in network.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, dtype=working))
        network.tie_weights()
        for view in matrices(network):
            view.write_(self._read(view.disk))
        for vector in vectors(network):
            vector.tensor.copy_(self._read(vector.name))
        return network

    def _read(self, name: str) -> Tensor:
        assert self.files is not None, "asked for only where there are files"
        tensor = self.files.read(name)
        return tensor.to(self.model.dtype) if self.model.dtype and tensor.is_floating_point() else tensor
