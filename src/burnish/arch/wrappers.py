"""Models inside other modules: what torch.compile, DDP, DataParallel and activation checkpointing put around them.

A wrapper changes the names of parameters and modules, and a model's own attributes are no longer there. Nothing that
depends on what a model is made of should depend on what it is wrapped in.
"""

from __future__ import annotations

from torch import nn

from burnish.core.errors import SettingsError

_IN_NAMES = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
"""Submodules that hold what is wrapped, where a part of a model is."""


def plain_name(name: str) -> str:
    """The name of a parameter or module without the parts that wrappers inside the model add."""
    return ".".join(part for part in name.split(".") if part not in _IN_NAMES)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself.

    Raises:
        SettingsError: FSDP1 has made its matrices into slices of one long vector.
    """
    while True:
        for module in model.modules():
            if "_fsdp_wrapped_module" in module._modules:
                raise SettingsError(
                    "FSDP1 has flattened the matrices away",
                    where=type(model).__name__,
                    fix="use FSDP2 (torch.distributed.fsdp.fully_shard)",
                )
        inner = next((model._modules[name] for name in _IN_NAMES if name in model._modules), None)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner
