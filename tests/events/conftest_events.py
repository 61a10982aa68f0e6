"""Small data sets, models and fitted forecasters shared by the tests of the events room."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from burnish.events import EventDataset, EventForecaster, EventSequence, SmurfTHP
from burnish.events.excitation import ExcitedModel
from burnish.events.hawkes import PRESETS, simulate_hawkes
from burnish.events.model import TrainingStatistics

REFERENCE = Path(__file__).parents[1] / "reference" / "events"


@pytest.fixture(scope="session")
def reference() -> Path:
    return REFERENCE


@pytest.fixture(scope="session")
def hawkes() -> EventDataset:
    """60 sequences of 30 events of the three-type process."""
    return simulate_hawkes(PRESETS["hawkes3"], 60, num_events=30, seed=5)


@pytest.fixture(scope="session")
def parts(hawkes: EventDataset) -> tuple[EventDataset, ...]:
    return hawkes.split((0.6, 0.2, 0.2), seed=0)


@pytest.fixture(scope="session")
def fitted(parts: tuple[EventDataset, ...]) -> EventForecaster:
    forecaster = EventForecaster(small(SmurfTHP))
    forecaster.fit(parts[0], parts[1], epochs=2, batch_size=16)
    return forecaster


@pytest.fixture(scope="session")
def places() -> EventDataset:
    """12 sequences with marks 0 and 1 whose places are a step from the last place."""
    rng = np.random.default_rng(3)
    sequences = []
    for name in range(12):
        times = np.cumsum(rng.exponential(1.0, 25))
        walk = np.cumsum(rng.normal(0, 0.3, (25, 2)), 0) + np.array([10.0, -5.0])
        sequences.append(EventSequence(times, rng.integers(0, 2, 25), locations=walk, start=0.0, name=str(name)))
    return EventDataset(tuple(sequences), ("a", "b"))


def small(model, num_marks: int = 3, **extra):
    """A model of a size for tests."""
    settings = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32, "recurrent_size": 8}
    return model(num_marks, **(settings | extra))


def double(model, seed: int = 0):
    """The model in float64 with random weights and the statistics of a mean gap of one."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        if isinstance(model, ExcitedModel):
            jumps = model.excitation.jumps
            jumps.copy_(0.3 * torch.rand(jumps.shape, generator=generator, dtype=torch.float64))
    model.statistics = TrainingStatistics()
    return model.eval()


def drawn_states(model, rows: int, seed: int = 1) -> torch.Tensor:
    """States as after some history: anything of the encoder, and an excitement that is not negative."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, model.state_size, dtype=torch.float64, generator=generator)
    states[:, model.hidden_size :].abs_()
    return states


def without_start(dataset: EventDataset) -> EventDataset:
    return dataset.with_sequences(replace(sequence, start=None) for sequence in dataset.sequences)
