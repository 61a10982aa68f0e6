"""The training loop of the event models: Adam, cosine schedule, best epoch by validation loss, resumable.

Every draw of an epoch (order, noise, dropout) comes from a seed made of (seed, epoch), so a run that is killed and
continued from its last epoch ends bit-equal to one that was not.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from burnish.core.checkpoint.identity import tensors_digest
from burnish.core.errors import DataError, NumericalError, SettingsError
from burnish.core.progress import Progress
from burnish.events.batches import PackedEvents
from burnish.events.exponential import ExponentialHawkes
from burnish.events.fit_state import FitHistory, FitState
from burnish.events.model import EventModel, Objective


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
        if not 0 < self.lr < math.inf:
            raise SettingsError(f"lr is {self.lr}, but must be positive and finite")


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
    """Fits `model` in place and leaves it at its best epoch, or as it was where no epoch made it better.

    Args:
        state_dir: where the state after every epoch goes; a run with the same weights, data and settings continues
            from it.

    Raises:
        DataError: a part without a gap.
        NumericalError: a loss that is not finite.
        CheckpointError: `state_dir` holds the state of another fit.
    """
    progress = progress or Progress(enabled=False)
    for name, part in (("training", training), ("validation", validation)):
        if part.num_scored == 0:
            raise DataError(f"the {name} part has no gap to learn from", fix="give it sequences of two events or more")
    if isinstance(model, ExponentialHawkes):
        return _maximise_likelihood(model, training, validation, objective, settings, progress)
    state = FitState(model, torch.optim.Adam(model.parameters(), lr=settings.lr, foreach=True))
    key = {} if state_dir is None else fit_key(model, training, validation, objective, settings)
    if state_dir is not None and state.read(state_dir, key):
        progress.log(f"continuing after epoch {len(state.history.train)} of {settings.epochs}")
    history = state.history
    if not history.train:
        history.start = validation_loss(model, validation, objective, settings)
    with progress.task("fitting", total=settings.epochs, unit="epochs") as task:
        task.advance(len(history.train))
        for epoch in range(len(history.train), settings.epochs):
            if history.stopped_early:
                break
            history.train.append(_one_epoch(model, training, objective, settings, state.optimizer, epoch))
            value = validation_loss(model, validation, objective, settings)
            better = value < history.best
            history.validation.append(value)
            if better:
                history.best_epoch = epoch
                state.remember_best()
            history.stopped_early = bool(settings.patience) and epoch - history.best_epoch >= settings.patience
            if state_dir is not None:
                state.write(state_dir, key)
            task.note(f"validation loss {value:.4f}")
            task.advance(1)
    model.load_state_dict(state.best)
    return history


def fit_key(
    model: EventModel,
    training: PackedEvents,
    validation: PackedEvents,
    objective: Objective,
    settings: TrainingSettings,
) -> dict[str, Any]:
    """Everything that decides the result, by named parts."""
    return {
        "model": model.config(),
        "weights": tensors_digest(model.state_dict().items()),
        "training data": training.digest(),
        "validation data": validation.digest(),
        "objective": asdict(objective),
        **asdict(settings),
        "torch": torch.__version__,
    }


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
    """Mean loss over the validation events, with the same noise every time and without the terms that stand beside."""
    model.eval()
    generator = torch.Generator().manual_seed(settings.seed + 1)
    total, count = 0.0, 0
    for batch in validation.batches(max(settings.batch_size, 32)):
        scored = int(batch.scored.sum())
        if scored:
            terms = model.loss(batch.to(model.device), objective, generator)
            total += sum(float(value) for name, value in terms.items() if name not in model.beside) * scored
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

    start = validation_loss(model, validation, objective, settings)
    with progress.task("maximising the likelihood", total=1, unit="fits"):
        optimizer.step(closure)
    final = float(closure())
    if not math.isfinite(final):
        raise NumericalError("the likelihood of the Hawkes process is not finite", fix="check the time unit")
    found = validation_loss(model, validation, objective, settings)
    return FitHistory([final], [found], start=start, best_epoch=0)
