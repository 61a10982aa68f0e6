"""The loop's other processes: FSDP2 for the model, sums over all of them, and a state that any number can read.

    with world(device) as processes:                 # of torchrun's environment; one process otherwise
        model = processes.shard(model, "float32")    # fully_shard on every decoder layer and on the whole
        fit(model, rows, loss_fn, optimizer, ctx, loop, world=processes)
        trained = processes.whole(model)             # on the main process

Rows, learning rates and updates are what one process would have: the sampler is keyed by the step, gradients are summed
and divided once by the tokens of the whole step, the clipping norm is over all processes, and the optimizers of
`burnish.optim` are exact on shards. What differs is the order of sums, that is rounding, and dropout, which every
process draws for its own rows.

In bfloat16 the layers' weights are cast before they are gathered, which halves the traffic; matrix products are then
the same as without sharding, but the gains of the norms inside layers are rounded too.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from burnish.core.checkpoint import tensor_digest, text_digest
from burnish.core.children import num_processes
from burnish.core.errors import SettingsError, StageError
from burnish.core.store import Key
from burnish.optim.sharding import check_processes_agree, is_dtensor, local, refuse_mixture
from burnish.train import sharded_state
from burnish.train.saved import States
from burnish.train.sequence import Sequence
from burnish.train.world import ALONE, World

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others before it takes them for dead."""

GRACE = 15
"""Seconds for torchrun to notice that a process has died; it looks ten times per second."""

GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out", "timed out", "NCCL")
"""What torch's backends say when another process does not answer."""


@contextmanager
def world(device: str, sequence_parallel: int = 1) -> Iterator[World]:
    """The world of this process: what torchrun started, or one process alone.

    Args:
        device: of this process.
        sequence_parallel: how many processes share the rows of a step, see `burnish.train.sequence`.

    Raises:
        SettingsError: `sequence_parallel` does not divide the number of processes.
        StageError: another process died, or did not answer within ten minutes.
    """
    size = num_processes()
    if size % sequence_parallel:
        what = "one process" if size == 1 else f"{size} processes"
        raise SettingsError(
            f"sequence_parallel is {sequence_parallel}, which does not divide the {what} of this training",
            where="sequence_parallel",
            fix=f"start a multiple of {sequence_parallel} processes, as in launch: {{processes: {sequence_parallel}}}",
        )
    if size == 1:
        yield ALONE
        return
    kind = torch.device(device).type
    started = not dist.is_initialized()
    if started:
        if kind == "cuda":
            torch.cuda.set_device(torch.device(device))
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    with _one_error_for_a_dead_process():
        yield Processes(init_device_mesh(kind, (size,)), sequence_parallel)
    if started:
        dist.destroy_process_group()


@contextmanager
def _one_error_for_a_dead_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in GONE):
            raise
        if "TORCHELASTIC_RUN_ID" in os.environ:
            time.sleep(GRACE)  # torchrun ends this process if another has died, and its caller says which and how
        raise StageError(
            f"another process of the training died or did not answer, seen by process {dist.get_rank()}",
            fix="run the same command again: it continues from the last saved state, also with another number of "
            "processes",
        ) from error


class Processes(World):
    """A training of several processes.

    Args:
        mesh: of one dimension, or of two, (replicate, shard): HSDP.
        sequence_parallel: how many neighbours share the rows of a step.
    """

    def __init__(self, mesh: DeviceMesh, sequence_parallel: int = 1) -> None:
        self.mesh = mesh
        self.rank, self.size = dist.get_rank(), mesh.size()
        self._writers = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
        if sequence_parallel > 1:
            self.sequence = Sequence(cast("dist.ProcessGroup", dist.new_subgroups(sequence_parallel)[0]))
        self._template: nn.Module | None = None
        self._writing: sharded_state.Writing | None = None

    # -- sums --------------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, key: Key) -> None:
        """Refuses a model that is not sharded, and processes that differ.

        Raises:
            SettingsError: on all processes alike.
        """
        check_processes_agree(self.mesh, {f"the {part}": str(value) for part, value in key.items()}, "training")
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        refuse_mixture(named, "training")
        if not is_dtensor(named[0][1]):
            raise SettingsError(
                f"the model is not sharded, but there are {self.size} processes",
                fix="train what `shard` returns, or call fully_shard on it",
            )

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        for _ in range(self.rank):
            self._total(0.0)
        yield
        for _ in range(self.size - self.rank):
            self._total(0.0)

    def sum_(self, tensor: Tensor) -> Tensor:
        for dim in range(self.mesh.ndim):
            dist.all_reduce(tensor, group=self.mesh.get_group(dim))
        return tensor

    def _total(self, number: float) -> float:
        return float(self.sum_(torch.tensor([number], device=self.mesh.device_type)))

    def norm(self, gradients: list[Tensor]) -> float:
        total = torch.nn.utils.get_total_norm(gradients)
        return float(cast("Any", total).full_tensor() if is_dtensor(total) else total)

    def local(self, tensor: Tensor) -> Tensor:
        return local(tensor)

    # -- the model ---------------------------------------------------------------------------------------------------

    def shard(self, model: nn.Module, precision: str) -> nn.Module:
        """Cuts every parameter over the processes: each decoder layer on its own, then the rest.

        Args:
            model: whole, equal on all processes; it is changed in place. The main process keeps a copy.
            precision: "float32", or "bfloat16" to gather the layers' weights in bfloat16.
        """
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        if self.is_main:
            self._template = copy.deepcopy(model)
        low = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bfloat16" else None,
            reduce_dtype=torch.float32 if precision == "bfloat16" else None,
            cast_forward_inputs=False,  # autocast decides, as without sharding
        )
        kinds = set(getattr(model, "_no_split_modules", None) or ())
        for module in reversed([module for module in model.modules() if type(module).__name__ in kinds]):
            # Inner ones first: of a Mamba, block and mixer are both named, one in the other.
            fully_shard(module, mesh=self.mesh, mp_policy=low)
        fully_shard(model, mesh=self.mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Sums: the loop divides by the tokens of the step.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return model

    def after_forward(self, model: nn.Module) -> None:
        """Lets go of the weights that were gathered last; a backward pass would."""
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def whole(self, model: nn.Module) -> nn.Module | None:
        """The main process's copy with the trained weights; None elsewhere. Gathers one parameter at a time."""
        kept = dict(self._template.named_parameters()) if self._template is not None else {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                full = cast("Any", parameter).full_tensor()
                if kept:
                    kept[name].copy_(full)
        return self._template

    # -- the state ---------------------------------------------------------------------------------------------------

    def digest(self, model: nn.Module) -> str:
        """Gathers one tensor at a time; every process must call it."""
        named = (*model.named_parameters(), *model.named_buffers())
        return text_digest(
            {name: tensor_digest(cast("Any", t).full_tensor() if is_dtensor(t) else t) for name, t in named}
        )

    def save(
        self,
        states: States,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        extra: dict[str, Any],
        wait: bool = True,
    ) -> None:
        self.finish()
        header = {"step": step, "extra": extra}
        self._writing = sharded_state.save(
            states, model, optimizer, header, self._total, self._writers, main=self.is_main
        )
        if wait:
            self.finish()

    def finish(self) -> None:
        if self.sequence is not None:
            self.sequence.check_calls()
        if self._writing is not None:
            self._writing.finish()
            self._writing = None
