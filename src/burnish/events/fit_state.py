"""A fit between two epochs: what it needs to go on, in memory and in the store.

STATE_DIR/fit/key.json             initial weights, data, objective and settings
STATE_DIR/fit/state.safetensors    weights, those of the best epoch, Adam's moments and the losses so far
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from burnish.core.checkpoint import cause_of, remedy
from burnish.core.errors import OutputError
from burnish.core.store import Key, Store
from burnish.events.model import EventModel

ENTRY, STATE_FILE = "fit", "state.safetensors"


@dataclass
class FitHistory:
    """Losses by epoch and which epoch was kept.

    Attributes:
        train, validation: after every epoch.
        start: validation loss before the first epoch.
        best_epoch: from 0; -1 where no epoch was better than the start.
        stopped_early: whether patience ended it.
    """

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    start: float = math.inf
    best_epoch: int = -1
    stopped_early: bool = False

    @property
    def best(self) -> float:
        """Validation loss of what was kept."""
        return self.start if self.best_epoch < 0 else self.validation[self.best_epoch]


class FitState:
    """A fit between two epochs.

    Attributes:
        model: as the last epoch left it.
        optimizer: its optimizer.
        history: losses so far.
        best: the weights of the best epoch.
    """

    def __init__(self, model: EventModel, optimizer: torch.optim.Adam) -> None:
        self.model, self.optimizer = model, optimizer
        self.history = FitHistory()
        self.remember_best()

    def remember_best(self) -> None:
        """Takes the weights as they are for those of the best epoch."""
        self.best = {name: value.clone() for name, value in self.model.state_dict().items()}

    def write(self, directory: Path, key: Key) -> None:
        """Puts the state into the store of a directory, in place of the one of an earlier epoch.

        Raises:
            CheckpointError: the state there is of another fit.
            OutputError: no room or no permission.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        steps = []
        for index, parameter in enumerate(self._parameters()):
            state = self.optimizer.state.get(parameter)
            steps.append(float(state["step"]) if state else 0.0)
            if state:
                tensors |= {f"adam.{index}.{name}": state[name] for name in ("exp_avg", "exp_avg_sq")}
        facts = json.dumps({"history": asdict(self.history), "steps": steps})
        contiguous = {name: value.contiguous().clone() for name, value in tensors.items()}
        try:
            with Store(directory).writing(ENTRY, key) as path:
                save_file(contiguous, path / STATE_FILE, {"facts": facts})
        except (OSError, SafetensorError) as error:
            cause = cause_of(error)
            what, advice = f"could not be written ({cause})", f"{remedy(cause)}; the same command continues"
            raise OutputError(what, where=str(directory), fix=advice) from None

    def read(self, directory: Path, key: Key) -> bool:
        """Takes up the state in the store of a directory; False where there is none.

        Raises:
            CheckpointError: the state there is of another fit; it stays.
        """
        from safetensors import safe_open

        found = Store(directory).find(ENTRY, key)
        if found is None:
            return False
        with safe_open(found / STATE_FILE, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        self.history = FitHistory(**facts["history"])
        self.model.load_state_dict({name: tensors[f"model.{name}"] for name in self.best})
        self.best = {name: tensors[f"best.{name}"] for name in self.best}
        for index, (parameter, step) in enumerate(zip(self._parameters(), facts["steps"], strict=True)):
            if step:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(step),
                    "exp_avg": tensors[f"adam.{index}.exp_avg"],
                    "exp_avg_sq": tensors[f"adam.{index}.exp_avg_sq"],
                }
        return True

    def _parameters(self) -> Iterable[Tensor]:
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])
