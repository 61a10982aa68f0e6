"""What the loop needs to know of other processes: who it is, how many there are, and what all of them have together.

One process is the case here, and the loop asks these questions and nothing else; `burnish.train.distributed` answers
them for several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from burnish.core.checkpoint import tensors_digest
from burnish.core.store import Key
from burnish.train import state
from burnish.train.losses import Batch
from burnish.train.saved import States

if TYPE_CHECKING:
    from burnish.train.sequence import Sequence


class World:
    """A training of one process.

    Attributes:
        rank: number of this process.
        size: number of processes.
        sequence: how this process shares rows with others, None where it has rows of its own.
    """

    rank: int = 0
    size: int = 1
    sequence: Sequence | None = None

    @property
    def num_shares(self) -> int:
        """In how many shares the rows of a step are cut: one for each process, or for each group that shares rows."""
        return self.size // (self.sequence.size if self.sequence else 1)

    @property
    def share(self) -> int:
        """Which of them is this process's."""
        return self.rank // (self.sequence.size if self.sequence else 1)

    def cut(self, batch: Batch) -> Batch:
        """What this process computes of the rows of its share: all, or a stretch of each."""
        return batch if self.sequence is None else self.sequence.cut(batch)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and the ledger."""
        return self.rank == 0

    def prepare(self, model: nn.Module, key: Key) -> None:
        """Called once before the first step; refuses what cannot be trained together."""

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """What is inside is done by one process after the other, the main one first: the others find what it kept."""
        yield

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        return tensor

    def norm(self, gradients: list[Tensor]) -> float:
        """The Euclidean norm of all gradients as one vector."""
        return float(torch.nn.utils.get_total_norm(gradients))

    def local(self, tensor: Tensor) -> Tensor:
        """What of a tensor lies in this process."""
        return tensor

    def after_forward(self, model: nn.Module) -> None:
        """Called after forward passes that no backward pass follows."""

    def digest(self, model: nn.Module) -> str:
        """Names the weights as they are; the same on any number of processes."""
        return tensors_digest((*model.named_parameters(), *model.named_buffers()))

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
        """Keeps the state after `step` steps; where `wait` is false it may still be written when this returns."""
        state.save(states, step, model, optimizer, extra=extra)

    def load(self, states: States, model: nn.Module, optimizer: torch.optim.Optimizer) -> state.Resumed | None:
        """Puts the newest state into model and optimizer, or returns None where there is none."""
        return state.load(states, model, optimizer)

    def finish(self) -> None:
        """Waits for what is still being written."""

    def shard(self, model: nn.Module, precision: str) -> nn.Module:
        """The model as it is trained; see `Processes.shard`."""
        return model

    def whole(self, model: nn.Module) -> nn.Module | None:
        """The trained model as an ordinary one, where this process is the one that keeps it."""
        return model


ALONE = World()
