"""The state that an interrupted training continues from: one safetensors file per saved step, never a pickle.

It holds the parameters that are trained, the buffers, the optimizer's tensors, and as text in its header the step, the
optimizer's options and a fingerprint of model, data and settings. A file appears whole under its name or not at all,
and an older one is removed only after that. Several processes write `burnish.train.sharded_state` instead; `load` reads
both, whatever the number of processes is now.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from burnish.core.checkpoint import fsync
from burnish.core.errors import CheckpointError, OutputError
from burnish.optim.sharding import is_dtensor
from burnish.train import sharded_state

PATTERN = "step-*.safetensors"
AGAIN = "use another directory, or delete this one to start again"


@dataclass
class Resumed:
    """Where to go on.

    Attributes:
        step: steps done.
        extra: what the loop stored beside the tensors.
    """

    step: int
    extra: dict[str, Any]


def save(
    directory: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    fingerprint: dict[str, str],
    extra: dict[str, Any],
) -> Path:
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
    header = {
        "step": step,
        "fingerprint": fingerprint,
        "extra": extra,
        "param_groups": optimizer_state["param_groups"],
        "scalars": scalars,
    }
    path = directory / f"step-{step:09d}.safetensors"
    temporary = path.with_suffix(".tmp")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"burnish": json.dumps(header)})
        fsync(temporary)
        temporary.replace(path)
        fsync(directory)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"the training state of step {step} could not be written ({_cause(error)})",
            where=str(directory),
            fix="free some space and run the same command again; it continues from the state before",
        ) from None
    for older in directory.glob("step-*"):
        if older != path:
            sharded_state.remove(older)
    return path


def _cause(error: OSError | SafetensorError) -> str:
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def saved(directory: Path) -> list[Path]:
    """Saved states of both kinds, oldest first."""
    return sorted([*directory.glob(PATTERN), *sharded_state.whole_states(directory)], key=lambda path: path.stem)


def load(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, fingerprint: dict[str, str]
) -> Resumed | None:
    """Puts the newest state into model and optimizer, or returns None where there is none.

    Raises:
        CheckpointError: the state is of another model, other data or other settings, or is damaged.
    """
    states = saved(directory)
    if not states:
        return None
    path = states[-1]
    try:
        if path.is_dir():
            header = sharded_state.read_header(path)
            _check_fingerprint(header, fingerprint, path)
            sharded_state.load(path, model, optimizer, header["param_groups"])
            return Resumed(header["step"], header["extra"])
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["burnish"])
            _check_fingerprint(header, fingerprint, path)
            _put_model(model, {name.removeprefix("model."): file.get_tensor(name) for name in _keys(file, "model.")})
            state: dict[int, dict[str, Any]] = {}
            for name in _keys(file, "optimizer."):
                _, number, key = name.split(".", 2)
                state.setdefault(int(number), {})[key] = file.get_tensor(name)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, FileNotFoundError) as error:
        cause = str(error).splitlines()[0]
        raise CheckpointError(f"is not a whole training state ({cause})", where=str(path), fix=AGAIN) from None
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
    return Resumed(header["step"], header["extra"])


def _check_fingerprint(header: dict[str, Any], fingerprint: dict[str, str], path: Path) -> None:
    for part, digest in fingerprint.items():
        if header["fingerprint"].get(part) != digest:
            raise CheckpointError(f"is the training state of another {part}", where=str(path), fix=AGAIN)


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


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that need a gradient, each once, and buffers that are saved."""
    trained: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    state = model.state_dict(keep_vars=True)
    parameters = {id(parameter) for parameter in model.parameters()}
    return trained | {name: tensor for name, tensor in state.items() if id(tensor) not in parameters}


@torch.no_grad()
def _put_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    live = trained(model)
    if live.keys() != tensors.keys():
        missing = sorted(live.keys() ^ tensors.keys())[0]
        raise KeyError(missing)
    for name, tensor in live.items():
        tensor.copy_(_cut_like(tensor, tensors[name]))


def model_fingerprint(model: nn.Module) -> str:
    """Names, shapes and dtypes of the parameters, and which are trained."""
    facts = [(name, list(p.shape), str(p.dtype), p.requires_grad) for name, p in model.named_parameters()]
    return text_fingerprint(facts)


def optimizer_fingerprint(optimizer: torch.optim.Optimizer) -> str:
    """The class and the options of every group, but for what changes from step to step."""
    changing = ("params", "lr", "num_steps")
    groups = [{k: v for k, v in group.items() if k not in changing} for group in optimizer.param_groups]
    return text_fingerprint([type(optimizer).__name__, groups])


def text_fingerprint(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
