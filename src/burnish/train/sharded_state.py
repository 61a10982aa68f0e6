"""The state of a sharded training, by torch's distributed checkpoints (DCP): every process writes its own shards, and
any number of processes can read them, one included.

    step-000000100/state.json    step, optimizer's options
    step-000000100/__0_0.distcp  what process 0 had
    step-000000100/.metadata     where every piece lies

The main process begins an entry of the store, all write into it, and the main process puts it in its place when all
have. An older state is removed only after that. torch's `.metadata` is a pickle: it is read from the run's own work
directory, never from a checkpoint that somebody else made.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from burnish.core.checkpoint import remedy
from burnish.core.errors import CheckpointError, OutputError
from burnish.train.saved import States, name_of, trained

HEADER = "state.json"


@dataclass
class Writing:
    """A state that is being written.

    Attributes:
        states: of the training.
        step: of the state.
        path: where the entry is begun.
        written: of torch; its result is there when every process has written.
        total: the sum of a number over all processes.
        main: whether this process makes the entry and removes the older ones.
    """

    states: States
    step: int
    path: Path
    written: Future[Any]
    total: Callable[[float], float]
    main: bool

    def finish(self) -> None:
        """Waits until it is whole, then removes older ones; every process must call it.

        Raises:
            OutputError: no room or no permission; the older state is still there.
        """
        from torch.distributed.checkpoint.api import CheckpointException

        cause = ""
        try:
            self.written.result()
        except (CheckpointException, OSError, RuntimeError) as error:  # torch's own is no Exception
            cause = _cause(error)
        self._all_or_none(cause)
        cause = ""
        if self.main:
            try:
                self.states.store.finish(self.path, name_of(self.step))
            except OSError as error:
                cause = _cause(error)
        self._all_or_none(cause)
        if self.main:
            self.states.remove_older(self.step)

    def _all_or_none(self, cause: str) -> None:
        """Where one process could not write, none goes on, and nothing is left of the state."""
        if self.total(float(bool(cause))):
            if self.main:
                shutil.rmtree(self.path, ignore_errors=True)
            raise _not_written(cause or "another process failed", self.states)


def save(
    states: States,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    header: dict[str, Any],
    total: Callable[[float], float],
    writers: dist.ProcessGroup,
    *,
    main: bool,
) -> Writing:
    """Starts to write the state: copies it, and returns while the copy is written.

    Args:
        states: of the training.
        model, optimizer: sharded, on every process.
        header: what stands in the state's header, with its `step`.
        total: the sum of a number over all processes.
        writers: a group of all processes for writing in the background alone, so that its messages do not mix with the
            training's.
        main: whether this process makes the entry and writes the header.

    Raises:
        OutputError: no room or no permission for the directory; on every process.
    """
    import torch.distributed.checkpoint as dcp  # takes a second, which one process need not wait

    begun: list[Any] = [None, ""]
    if main:
        try:
            begun[0] = states.store.begin(name_of(header["step"]), states.key)
            groups = optimizer.state_dict()["param_groups"]
            (begun[0] / HEADER).write_text(json.dumps(header | {"param_groups": groups}), encoding="utf-8")
        except (OSError, OutputError) as error:
            begun[1] = _cause(error)
            if begun[0] is not None:
                shutil.rmtree(begun[0], ignore_errors=True)
    dist.broadcast_object_list(begun, src=0, group=writers)
    path, cause = begun
    if cause:
        raise _not_written(cause, states)
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model, optimizer).items()}
    written = dcp.async_save(tensors, storage_writer=dcp.FileSystemWriter(path), process_group=writers)
    return Writing(states, header["step"], path, cast("Future[Any]", written), total, main)


def _not_written(cause: str, states: States) -> OutputError:
    return OutputError(
        f"the training state could not be written ({cause})",
        where=str(states.work_dir),
        fix=f"{remedy(cause)} and run the same command again; it continues from the state before",
    )


def read_header(path: Path) -> dict[str, Any]:
    """The header of a state."""
    return json.loads((path / HEADER).read_text(encoding="utf-8"))


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """Reads a state into model and optimizer, cut as they are now.

    Args:
        path: a state's directory.
        model, optimizer: sharded over any number of processes, or not at all.
        groups: the options of the optimizer's groups.

    Raises:
        KeyError: the state lacks a tensor, or has one that is not known here.
        CheckpointError: a file of it is missing or damaged.
    """
    import torch.distributed.checkpoint as dcp

    tensors = named_tensors(model, optimizer)
    known = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    for name in tensors.keys() ^ known.keys():
        raise KeyError(name)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process, as intended
            into = {name: tensor.detach() for name, tensor in tensors.items()}
            dcp.load(into, storage_reader=dcp.FileSystemReader(path), no_dist=not dist.is_initialized())
    except dcp.api.CheckpointException as error:
        raise CheckpointError(
            f"the training state cannot be read ({_cause(error)})",
            where=str(path),
            fix="delete it to start again",
        ) from None
    for live, saved in zip(optimizer.param_groups, groups, strict=True):
        live.update({key: value for key, value in saved.items() if key not in ("params", "param_names")})


def named_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a state holds: trained parameters, buffers that are saved, and the optimizer's tensors, by stable names."""
    tensors = {f"model.{name}": tensor for name, tensor in trained(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
    return tensors


def _cause(error: BaseException) -> str:
    """In a few words. DCP wraps what happened in each process; torch's zip writer hides that the disk was full."""
    failures = getattr(error, "failures", None)
    if failures:
        error = failures[min(failures)][0]
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = str(error).splitlines()[0]
    return "only a part was written, as on a full disk" if "inline_container" in text else text
