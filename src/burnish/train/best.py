"""The weights of the step with the lowest loss on held-out rows, kept on disk beside the states.

    WORK/best/step-000000040/weights.safetensors

The start counts as step 0. A state of the training remembers which step was best when it was saved; a run that goes on
from it meets the same losses again, and so keeps the same weights in the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from burnish.core.checkpoint.durable import cause_of, remedy
from burnish.core.errors import OutputError
from burnish.core.store import Key, Store
from burnish.train.saved import name_of, trained

DIRECTORY, WEIGHTS = "best", "weights.safetensors"


@dataclass
class Best:
    """The best step so far.

    Attributes:
        work_dir: of the stage.
        key: of the training.
        step: its number; -1 before anything was measured.
        loss: its loss on the held-out rows, and the other metrics of it.
    """

    work_dir: Path
    key: Key
    step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return Store(self.work_dir / DIRECTORY)

    def offer(self, step: int, metrics: dict[str, float], model: nn.Module) -> None:
        """Keeps the model's trained tensors if no step before has had so low a loss.

        Raises:
            OutputError: no room or no permission.
        """
        if not metrics["loss"] < self.metrics.get("loss", math.inf):
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained(model).items()}
        try:
            with self.store.writing(name_of(step), self.key) as path:
                save_file(tensors, path / WEIGHTS)
        except (OSError, SafetensorError) as error:
            cause = cause_of(error)
            raise OutputError(
                f"the best weights, of step {step}, could not be written ({cause})",
                where=str(self.work_dir),
                fix=f"{remedy(cause)} and run the same command again; it continues from the last state",
            ) from None
        self.step, self.metrics = step, metrics
        for name in self.store.names():
            if name != name_of(step):
                self.store.remove(name)

    @torch.no_grad()
    def put_into(self, model: nn.Module) -> None:
        """Gives the model the weights of the best step."""
        path = self.store.find(name_of(self.step), self.key)
        assert path is not None, "it was written when it was found"
        kept = load_file(path / WEIGHTS)
        for name, tensor in trained(model).items():
            tensor.copy_(kept[name])

    def state(self) -> dict[str, Any]:
        """For the states of the training."""
        return {"step": self.step, "metrics": self.metrics}

    def go_on(self, state: dict[str, Any]) -> None:
        """As it was when the state was saved."""
        self.step, self.metrics = state["step"], state["metrics"]
