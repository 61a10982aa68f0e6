"""What a trainer of TRL has logged, and the weights that it has made."""

from __future__ import annotations

from typing import Any

import torch


def logged(trainer: Any, name: str) -> list[float]:
    """A metric, by update."""
    return [row[name] for row in trainer.state.log_history if name in row]


def weights(trainer: Any) -> torch.Tensor:
    """All parameters in one row."""
    return torch.cat([one.detach().flatten() for one in trainer.model.parameters()])
