"""Who looks at a training from outside: measures the model as it is every so many steps, and may end it there."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn


class Watch(Protocol):
    """Called by the loop. What it has seen is in the states of the training, so that a resumed run sees the same."""

    @property
    def every(self) -> int:
        """Steps between two looks; there is one after the last step too."""
        ...

    def begin(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step; not where a training goes on from a state, which has what was put in here."""
        ...

    def look(self, step: int, model: nn.Module) -> bool:
        """Whether the training ends after so many steps; the model is in evaluation mode, and stays as it is."""
        ...

    def end(self, optimizer: torch.optim.Optimizer) -> None:
        """After the last step."""
        ...

    def state(self) -> dict[str, Any]:
        """What JSON can hold of what was seen."""
        ...

    def go_on(self, state: dict[str, Any]) -> None:
        """As it was when the state was saved."""
        ...
