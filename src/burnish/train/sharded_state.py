"""The state of a sharded training, by torch's distributed checkpoints (DCP): every process writes its own shards, and
any number of processes can read them, one included.

    step-000000100/state.json    step, optimizer's options, fingerprint of model, data and settings
    step-000000100/__0_0.distcp  what process 0 had
    step-000000100/.metadata     where every piece lies; torch writes it last, so a state that has it is whole

An older state is removed only when a newer one is whole. torch's `.metadata` is a pickle: it is read from the run's own
work directory, never from a checkpoint that somebody else made.
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

from burnish.core.checkpoint import write_atomically
from burnish.core.errors import CheckpointError, OutputError

HEADER = "state.json"
WHOLE = ".metadata"


@dataclass
class Writing:
    """A state that is being written.

    Attributes:
        path: its directory.
        written: of torch; its result is there when every process has written.
        total: the sum of a number over all processes.
        main: whether this process removes the older states.
    """

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
        _all_or_none(cause, self.total, self.path, main=self.main)
        if self.main:
            for older in self.path.parent.glob("step-*"):
                if older != self.path:
                    remove(older)


def save(
    directory: Path,
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
        directory: takes one directory per state.
        model, optimizer: sharded, on every process.
        header: what stands in the state's header, with its `step`.
        total: the sum of a number over all processes.
        writers: a group of all processes for writing in the background alone, so that its messages do not mix with the
            training's.
        main: whether this process writes the header and removes what is old.

    Raises:
        OutputError: no room or no permission for the directory; on every process.
    """
    import torch.distributed.checkpoint as dcp  # takes a second, which one process need not wait

    path = directory / f"step-{header['step']:09d}"
    groups = optimizer.state_dict()["param_groups"]
    cause = ""
    if main:
        try:
            for unfinished in directory.glob("step-*"):
                if unfinished.is_dir() and not (unfinished / WHOLE).is_file():
                    shutil.rmtree(unfinished)
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / HEADER, json.dumps(header | {"param_groups": groups}))
        except OSError as error:
            cause = _cause(error)
    _all_or_none(cause, total, path, main=main)  # the others wait for the directory
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model, optimizer).items()}
    written = dcp.async_save(tensors, storage_writer=dcp.FileSystemWriter(path), process_group=writers)
    return Writing(path, cast("Future[Any]", written), total, main)


def _all_or_none(cause: str, total: Callable[[float], float], path: Path, *, main: bool) -> None:
    """Where one process could not write, none goes on, and nothing is left of the state."""
    if not total(float(bool(cause))):
        return
    if main:
        shutil.rmtree(path, ignore_errors=True)
    raise OutputError(
        f"the training state could not be written ({cause or 'another process failed'})",
        where=str(path),
        fix="free some space and run the same command again; it continues from the state before",
    )


def remove(path: Path) -> None:
    """Deletes a state of either kind."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def whole_states(directory: Path) -> list[Path]:
    """Directories of states that were written to the end, oldest first."""
    return sorted(path.parent for path in directory.glob(f"step-*/{WHOLE}"))


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
    from burnish.train.state import trained

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
