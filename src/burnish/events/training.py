"""The training loop of the event models: Adam, cosine schedule, best epoch by validation loss, resumable.

Every draw of an epoch (order, noise, dropout) comes from a seed made of (seed, epoch), so a run that is killed and
continued from its last epoch ends bit-equal to one that was not.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.core.checkpoint import fsync
from burnish.core.errors import DataError, NumericalError, SettingsError
from burnish.core.progress import Progress
from burnish.events.batches import PackedEvents
from burnish.events.exponential import ExponentialHawkes
from burnish.events.model import EventModel, Objective

STATE_FILE = "state.safetensors"


@dataclass(frozen=True)
class TrainingSettings:
    """How to fit.

    Attributes:
        epochs: at most so many passes.
        batch_size: sequences (or windows) a step.
        lr: peak learning rate of Adam, falling to zero on a cosine.
        patience: stop after so many epochs without a better validation loss; 0 never stops early.
        max_grad_norm: gradients longer than this are shortened.
        seed: of everything random.
    """

    epochs: int = 30
    batch_size: int = 32
    lr: float = 3e-3
    patience: int = 0
    max_grad_norm: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("patience", 0)):
            if getattr(self, name) < low:
                raise SettingsError(f"{name} is {getattr(self, name)}, but must be at least {low}")
        if not self.lr > 0:
            raise SettingsError(f"lr is {self.lr}, but must be positive")


@dataclass
class FitHistory:
    """Losses by epoch and which epoch was kept."""

    train: list[float]
    validation: list[float]
    best_epoch: int = -1
    stopped_early: bool = False


def train(
    model: EventModel,
    training: PackedEvents,
    validation: PackedEvents,
    objective: Objective,
    settings: TrainingSettings,
    *,
    state_dir: Path | None = None,
    progress: Progress | None = None,
) -> FitHistory:
    """Fits `model` in place and leaves it at its best epoch.

    Args:
        state_dir: where the state after every epoch goes; a run with the same data and settings continues from it.
    """
    progress = progress or Progress(enabled=False)
    for name, part in (("training", training), ("validation", validation)):
        if part.num_scored == 0:
            raise DataError(f"the {name} part has no gap to learn from", fix="give it sequences of two events or more")
    if isinstance(model, ExponentialHawkes):
        return _maximise_likelihood(model, training, validation, objective, settings, progress)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr, foreach=True)
    history = FitHistory([], [])
    best = {name: value.clone() for name, value in model.state_dict().items()}
    key = run_key(model, training, validation, objective, settings)
    first = 0
    if state_dir is not None and (state_dir / STATE_FILE).is_file():
        found = _read_state(state_dir / STATE_FILE, key)
        if found is None:
            progress.log(f"{state_dir}: holds the state of another run; starting anew")
        else:
            tensors, facts = found
            history = FitHistory(**facts["history"])
            best = {name: tensors[f"best.{name}"] for name in best}
            model.load_state_dict({name: tensors[f"model.{name}"] for name in best})
            _restore_adam(optimizer, tensors, facts["steps"])
            first = len(history.train)
            progress.log(f"continuing after epoch {first} of {settings.epochs}")
    with progress.task("fitting", total=settings.epochs, unit="epochs") as task:
        task.advance(first)
        for epoch in range(first, settings.epochs):
            if history.stopped_early:
                break
            history.train.append(_one_epoch(model, training, objective, settings, optimizer, epoch))
            value = validation_loss(model, validation, objective, settings)
            history.validation.append(value)
            if history.best_epoch < 0 or value < history.validation[history.best_epoch]:
                history.best_epoch = epoch
                best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            history.stopped_early = bool(settings.patience) and epoch - history.best_epoch >= settings.patience
            if state_dir is not None:
                _write_state(state_dir, key, model, best, optimizer, history)
            task.note(f"validation loss {value:.4f}")
            task.advance(1)
    model.load_state_dict(best)
    return history


def _one_epoch(
    model: EventModel,
    training: PackedEvents,
    objective: Objective,
    settings: TrainingSettings,
    optimizer: torch.optim.Adam,
    epoch: int,
) -> float:
    order = np.random.default_rng((settings.seed, epoch))
    generator = torch.Generator().manual_seed(int(order.integers(2**62)))
    share = epoch / max(settings.epochs, 1)
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
    model.train()
    total, count = 0.0, 0
    with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator: seed it here, restore it after
        torch.manual_seed(int(order.integers(2**62)))
        for batch in training.batches(settings.batch_size, shuffle=order):
            scored = int(batch.scored.sum())
            if scored == 0:
                continue
            terms = model.loss(batch.to(model.device), objective, generator)
            loss = torch.stack(list(terms.values())).sum()
            if not bool(torch.isfinite(loss)):
                worst = [name for name, value in terms.items() if not bool(torch.isfinite(value))]
                raise NumericalError(
                    f"the loss term {worst[0]!r} is not finite in epoch {epoch + 1}", fix="lower the learning rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
            total += float(loss.detach()) * scored
            count += scored
    return total / max(count, 1)


@torch.no_grad()
def validation_loss(
    model: EventModel, validation: PackedEvents, objective: Objective, settings: TrainingSettings
) -> float:
    """Mean loss over the validation events, with the same noise every time."""
    model.eval()
    generator = torch.Generator().manual_seed(settings.seed + 1)
    total, count = 0.0, 0
    for batch in validation.batches(max(settings.batch_size, 32)):
        scored = int(batch.scored.sum())
        if scored:
            terms = model.loss(batch.to(model.device), objective, generator)
            total += float(torch.stack(list(terms.values())).sum()) * scored
            count += scored
    return total / max(count, 1)


def _maximise_likelihood(
    model: ExponentialHawkes,
    training: PackedEvents,
    validation: PackedEvents,
    objective: Objective,
    settings: TrainingSettings,
    progress: Progress,
) -> FitHistory:
    """L-BFGS on the whole training likelihood; seven to a few hundred parameters need no stochastic steps."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), lr=1.0, max_iter=60, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-10
    )
    batches = [batch.to(model.device) for batch in training.batches(256)]
    counts = [int(batch.scored.sum()) for batch in batches]
    generator = torch.Generator().manual_seed(settings.seed)

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=model.dtype, device=model.device)
        for batch, count in zip(batches, counts, strict=True):
            part = torch.stack(list(model.loss(batch, objective, generator).values())).sum() * (count / sum(counts))
            part.backward()
            total += part.detach()
        return total

    with progress.task("maximising the likelihood", total=1, unit="fits"):
        optimizer.step(closure)
    final = float(closure())
    if not math.isfinite(final):
        raise NumericalError("the likelihood of the Hawkes process is not finite", fix="check the time unit")
    return FitHistory([final], [validation_loss(model, validation, objective, settings)], best_epoch=0)


# -- state on disk ---------------------------------------------------------------------------------------------------


def run_key(
    model: EventModel, training: PackedEvents, validation: PackedEvents, objective: Objective, settings: Any
) -> str:
    """Digest of everything that decides the result."""
    digest = hashlib.sha256()
    facts = [model.config(), asdict(objective), asdict(settings), torch.__version__]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for part in (training, validation):
        for array in (part.times, part.marks, part.offsets, part.locations, part.vertices):
            digest.update(b"-" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write_state(
    directory: Path,
    key: str,
    model: EventModel,
    best: dict[str, Tensor],
    optimizer: torch.optim.Adam,
    history: FitHistory,
) -> None:
    from safetensors.torch import save_file

    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    steps = []
    for index, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state.get(parameter)
        steps.append(float(state["step"]) if state else 0.0)
        if state:
            tensors |= {f"adam.{index}.{name}": state[name] for name in ("exp_avg", "exp_avg_sq")}
    facts = json.dumps({"key": key, "history": asdict(history), "steps": steps})
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{STATE_FILE}.{os.getpid()}.tmp"
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, temporary, {"facts": facts})
    fsync(temporary)
    temporary.replace(directory / STATE_FILE)


def _read_state(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and facts of a state file, or None if it belongs to another run."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        if facts["key"] != key:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118  (not a dict)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _restore_adam(optimizer: torch.optim.Adam, tensors: dict[str, Tensor], steps: list[float]) -> None:
    for index, (parameter, step) in enumerate(zip(_parameters(optimizer), steps, strict=True)):
        if step:
            optimizer.state[parameter] = {
                "step": torch.tensor(step),
                "exp_avg": tensors[f"adam.{index}.exp_avg"],
                "exp_avg_sq": tensors[f"adam.{index}.exp_avg_sq"],
            }
