"""The state that an interrupted training continues from: a safetensors file in the store, never a pickle.

It holds the parameters that are trained, the buffers, the optimizer's tensors, and as text in its header the step and
the optimizer's options. An older state is removed only when the newer one is whole. Several processes write
`burnish.train.sharded_state` instead; `load` reads both, whatever the number of processes is now.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from burnish.core.checkpoint import cause_of, remedy
from burnish.core.errors import CheckpointError, OutputError, SettingsError
from burnish.optim.sharding import is_dtensor
from burnish.train import sharded_state
from burnish.train.saved import States, trained

STATE_FILE = "state.safetensors"
COUNTERS = ("num_steps",)
"""Options of a group of parameters that are counted by the optimizer, not set."""


@dataclass
class Resumed:
    """Where to go on.

    Attributes:
        step: steps done.
        extra: what the loop stored beside the tensors.
        changes: how the settings differ from those of the steps before, where they may.
    """

    step: int
    extra: dict[str, Any]
    changes: dict[str, str]


def save(
    states: States, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, *, extra: dict[str, Any]
) -> None:
    """Writes the state after `step` steps, then removes older ones.

    Raises:
        OutputError: no room or no permission; the older state is still there.
    """
    tensors, header = _of_optimizer(optimizer)
    tensors |= {f"model.{name}": tensor for name, tensor in trained(model).items()}
    try:
        with states.writing(step) as path:
            _write(path / STATE_FILE, tensors, {"step": step, "extra": extra} | header)
    except (OSError, SafetensorError) as error:
        cause = cause_of(error)
        raise OutputError(
            f"the training state of step {step} could not be written ({cause})",
            where=str(states.work_dir),
            fix=f"{remedy(cause)} and run the same command again; it continues from the state before",
        ) from None


def load(states: States, model: nn.Module, optimizer: torch.optim.Optimizer) -> Resumed | None:
    """Puts the newest state into model and optimizer, or returns None where there is none.

    Raises:
        CheckpointError: the state is of another training, or is damaged.
    """
    newest = states.newest()
    if newest is None:
        return None
    path, changes = newest
    try:
        if not (path / STATE_FILE).is_file():
            header = sharded_state.read_header(path)
            sharded_state.load(path, model, optimizer, header["param_groups"])
            return Resumed(header["step"], header["extra"], changes)
        with safe_open(path / STATE_FILE, framework="pt") as file:
            header = json.loads(file.metadata()["burnish"])
            _put_model(model, {name.removeprefix("model."): file.get_tensor(name) for name in _keys(file, "model.")})
            state = _read_optimizer(file, header)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, FileNotFoundError) as error:
        cause = str(error).splitlines()[0]
        raise CheckpointError(
            f"is not a whole training state ({cause})", where=str(path), fix="delete it to start again"
        ) from None
    live = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in state.items():
        for key, value in entries.items():
            here = optimizer.state.get(live[number], {}).get(key)
            if isinstance(here, Tensor) and isinstance(value, Tensor):
                entries[key] = _cut_like(here, value)
    optimizer.load_state_dict({"state": state, "param_groups": header["param_groups"]})
    return Resumed(header["step"], header["extra"], changes)


def save_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Writes what an optimizer has gathered, for a training that goes on with it."""
    _write(path, *_of_optimizer(optimizer))


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Puts what another optimizer of the same parameters has gathered into this one, whose options stay as they are.

    Raises:
        SettingsError: it was of other parameters, or of another rule.
    """
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["burnish"])
        state = _read_optimizer(file, header)
    groups = optimizer.state_dict()["param_groups"]
    before = header["param_groups"]
    if [sorted(one) for one in groups] != [sorted(one) for one in before] or any(
        len(one["params"]) != len(other["params"]) for one, other in zip(groups, before, strict=True)
    ):
        raise SettingsError(
            "the optimizer before trained other parameters or had another rule, so this one cannot go on from it",
            where="reset_optimizer",
            fix="set reset_optimizer to true, or leave optimizer and `only` as they were",
        )
    counted = [{key: other[key] for key in COUNTERS if key in other} for other in before]
    groups = [one | own for one, own in zip(groups, counted, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _of_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors by name, and everything else."""
    found, tensors, scalars = optimizer.state_dict(), dict[str, Tensor](), dict[str, Any]()
    for number, entries in found["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{key}"] = value
            else:
                scalars[f"{number}.{key}"] = value
    return tensors, {"param_groups": found["param_groups"], "scalars": scalars}


def _read_optimizer(file: Any, header: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The state of an optimizer, as `load_state_dict` takes it."""
    state: dict[int, dict[str, Any]] = {}
    for name in _keys(file, "optimizer."):
        _, number, key = name.split(".", 2)
        state.setdefault(int(number), {})[key] = file.get_tensor(name)
    for name, value in header["scalars"].items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    return state


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"burnish": json.dumps(header)})


def _cut_like(live: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, or the shard of it that this process has where the live one is sharded."""
    if not is_dtensor(live):
        return whole
    from torch.distributed.tensor import distribute_tensor

    on_mesh: Any = live
    # Every process has read the whole, so nothing needs to be sent.
    return distribute_tensor(whole.to(live.device), on_mesh.device_mesh, on_mesh.placements, src_data_rank=None)


def _keys(file: Any, prefix: str) -> list[str]:
    return [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dict


@torch.no_grad()
def _put_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    live = trained(model)
    if live.keys() != tensors.keys():
        missing = sorted(live.keys() ^ tensors.keys())[0]
        raise KeyError(missing)
    for name, tensor in live.items():
        tensor.copy_(_cut_like(tensor, tensors[name]))
