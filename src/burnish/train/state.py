"""The state that an interrupted training continues from: a safetensors file in the store, never a pickle.

It holds the parameters that are trained, the buffers, the optimizer's tensors, and as text in its header the step and
the optimizer's options. An older state is removed only when the newer one is whole. Several processes write
`burnish.train.sharded_state` instead; `load` reads both, whatever the number of processes is now.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from burnish.core.checkpoint import cause_of, remedy
from burnish.core.errors import CheckpointError, OutputError
from burnish.optim.sharding import is_dtensor
from burnish.train import sharded_state
from burnish.train.saved import States, trained

STATE_FILE = "state.safetensors"


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
    tensors = {f"model.{name}": tensor for name, tensor in trained(model).items()}
    optimizer_state = optimizer.state_dict()
    scalars: dict[str, Any] = {}
    for number, entries in optimizer_state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{key}"] = value
            else:
                scalars[f"{number}.{key}"] = value
    header = {"step": step, "extra": extra, "param_groups": optimizer_state["param_groups"], "scalars": scalars}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with states.writing(step) as path:
            save_file(contiguous, path / STATE_FILE, metadata={"burnish": json.dumps(header)})
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
            state: dict[int, dict[str, Any]] = {}
            for name in _keys(file, "optimizer."):
                _, number, key = name.split(".", 2)
                state.setdefault(int(number), {})[key] = file.get_tensor(name)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, FileNotFoundError) as error:
        cause = str(error).splitlines()[0]
        raise CheckpointError(
            f"is not a whole training state ({cause})", where=str(path), fix="delete it to start again"
        ) from None
    for name, value in header["scalars"].items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    live = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in state.items():
        for key, value in entries.items():
            here = optimizer.state.get(live[number], {}).get(key)
            if isinstance(here, Tensor) and isinstance(value, Tensor):
                entries[key] = _cut_like(here, value)
    optimizer.load_state_dict({"state": state, "param_groups": header["param_groups"]})
    return Resumed(header["step"], header["extra"], changes)


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
