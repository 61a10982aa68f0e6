"""What both kinds of training state have in common: which tensors they hold, and their entries in the store.

    WORK/states/step-000000100/key.json             what is trained: the initial weights, the data, the settings
    WORK/states/step-000000100/state.safetensors    of one process, see `burnish.train.state`
    WORK/states/step-000000100/*.distcp, state.json of several, see `burnish.train.sharded_state`

A state is found by its place and compared with what is trained now. One of another training is refused and stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from burnish.core.errors import CheckpointError
from burnish.core.store import Key, Store, differences, read_key

STATES_DIRECTORY = "states"


@dataclass(frozen=True)
class States:
    """The states of one training.

    Attributes:
        work_dir: of the stage.
        key: everything that the trained weights depend on, by named parts.
        may_change: parts of the key that may differ from those of the state that is continued.
    """

    work_dir: Path
    key: Key
    may_change: Collection[str] = ()

    @property
    def store(self) -> Store:
        return Store(self.work_dir / STATES_DIRECTORY)

    def newest(self) -> tuple[Path, dict[str, str]] | None:
        """The newest state and how its key differs in parts that may change; None where there is no state.

        Raises:
            CheckpointError: the state is of another training.
        """
        names = self.store.names()
        if not names:
            return None
        path = self.store.directory / names[-1]
        changes = differences(read_key(path), self.key)
        refused = [change for part, change in changes.items() if part not in self.may_change]
        if refused:
            raise CheckpointError(
                f"is the state of another training ({'; '.join(refused)})",
                where=str(path),
                fix="name another work directory, or delete this one to start again",
            )
        return path, changes

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """A directory for the state after so many steps, and the end of older ones once it is whole."""
        with self.store.writing(name_of(step), self.key) as path:
            yield path
        self.remove_older(step)

    def remove_older(self, step: int) -> None:
        """Deletes every state but that of a step."""
        for name in self.store.names():
            if name != name_of(step):
                self.store.remove(name)


def name_of(step: int) -> str:
    """Of the entry, so that names are in the order of steps."""
    return f"step-{step:09d}"


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that need a gradient, each once, and buffers that are saved."""
    trained: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    state = model.state_dict(keep_vars=True)
    parameters = {id(parameter) for parameter in model.parameters()}
    return trained | {name: tensor for name, tensor in state.items() if id(tensor) not in parameters}
