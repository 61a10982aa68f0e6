"""A checkpoint that is made while it is saved, a tensor at a time, so that it never has to fit into memory.

Its tensors go straight into the temporary directory that becomes the checkpoint: nothing is written twice, and a killed
run leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint.model import Model
from burnish.core.checkpoint.shards import write_config
from burnish.core.checkpoint.sizes import plan_config
from burnish.core.errors import CheckpointError
from burnish.core.kinds import Plan, Weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


class DeferredModel(Model):
    """What a stage makes of a model on disk; before it is saved it has no weights to look at, unless `whole` is given.

    Attributes:
        network: of the result's class, without weights.
        layout: {name on disk: shape and dtype}, as tensors on the meta device.
        tensors: (an empty directory for scratch) -> every tensor of the layout once, in any order, as (name, tensor);
            cast to the layout's dtype.
        whole: makes the network in memory, for those who look at it before it is saved; None where it would not fit.
    """

    def __init__(
        self,
        before: Model,
        network: PreTrainedModel,
        layout: Mapping[str, Tensor],
        tensors: Callable[[Path], Iterator[tuple[str, Tensor]]],
        *,
        stored_dtype: torch.dtype,
        quantization_config: dict[str, Any] | None = None,
        whole: Callable[[], PreTrainedModel] | None = None,
    ) -> None:
        derived = before.derive()
        super().__init__(
            origin=derived.origin,
            tokenizer=derived.tokenizer if derived.has_tokenizer else None,
            lineage=derived.lineage,
            dtype=derived.dtype,
            device=derived.device,
            quantization_config=quantization_config,
        )
        self.config = network.config
        self.network, self.layout, self.tensors = network, dict(layout), tensors
        self._stored_dtype, self.whole = stored_dtype, whole

    @property
    def stored_dtype(self) -> torch.dtype:
        return self._stored_dtype

    @cached_property
    def module(self) -> PreTrainedModel:
        if self.path is not None:
            return super().module
        if self.whole is None:
            raise CheckpointError("was larger than memory, so it is made while it is saved", fix="save it, then use it")
        return self.whole()

    def plan(self) -> Plan:
        if self.path is not None:
            return super().plan()
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in self.layout.values())
        weights = Weights.DENSE if self.quantization_config is None else Weights.PACKED
        return plan_config(self.config, kind=self.lineage.kind).with_(weights=weights, num_bytes=num_bytes)

    def save(self, directory: str | Path, *, overwrite: bool = False) -> Path:
        target = super().save(directory, overwrite=overwrite)
        self._config = None  # from now on it is read, like any other
        return target

    def _write_weights(self, directory: Path) -> PreTrainedModel:
        if self.is_loaded and self.quantization_config is None:
            return super()._write_weights(directory)
        from burnish.core.checkpoint.tensor_files import writing  # which needs torch

        with TemporaryDirectory(dir=directory) as scratch, writing(directory, self.layout) as write:
            for name, tensor in self.tensors(Path(scratch)):
                write(name, tensor.to(self.layout[name].dtype))
        dtype = str(self.stored_dtype).removeprefix("torch.")
        write_config(directory, self.config_on_disk(self.network) | {"dtype": dtype})
        return self.network
