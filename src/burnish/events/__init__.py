"""Event streams with uncertainty: when does the next event come, of which type, where, and how sure are we.

    from burnish.events import EventDataset, EventForecaster, SmurfTHP

    data = EventDataset.from_csv("log.csv", sequence="machine", time="hours", mark="alarm")
    train, validation, test = data.split((0.8, 0.1, 0.1), seed=0)
    forecaster = EventForecaster(SmurfTHP(num_marks=data.num_marks))
    forecaster.fit(train, validation, epochs=30)
    forecaster.next_event(test.sequences[0]).interval(0.9, elapsed=2.0)

Public names are resolved when first used; nothing here imports transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from burnish.events import metrics
    from burnish.events.baselines import Baselines
    from burnish.events.conformal import AdaptiveConformal
    from burnish.events.data import EventDataset
    from burnish.events.distribution import NextEvent, NextEvents
    from burnish.events.evaluation import ForecastEvaluation, evaluate
    from burnish.events.exponential import ExponentialHawkes
    from burnish.events.forecaster import EventForecaster
    from burnish.events.hawkes import HawkesParameters, simulate_hawkes
    from burnish.events.lognormal import LogNormalMixture
    from burnish.events.place_mixture import PlaceMixture
    from burnish.events.sequence import EventSequence
    from burnish.events.smash import Smash
    from burnish.events.smurf import SmurfTHP
    from burnish.events.stream import EventStream
    from burnish.events.structured import StructuredTHP
    from burnish.events.thp import THP

_PUBLIC = {
    "AdaptiveConformal": "conformal",
    "Baselines": "baselines",
    "EventDataset": "data",
    "EventForecaster": "forecaster",
    "EventSequence": "sequence",
    "EventStream": "stream",
    "ForecastEvaluation": "evaluation",
    "ExponentialHawkes": "exponential",
    "HawkesParameters": "hawkes",
    "LogNormalMixture": "lognormal",
    "NextEvent": "distribution",
    "NextEvents": "distribution",
    "PlaceMixture": "place_mixture",
    "Smash": "smash",
    "SmurfTHP": "smurf",
    "StructuredTHP": "structured",
    "THP": "thp",
    "evaluate": "evaluation",
    "simulate_hawkes": "hawkes",
}

__all__ = [
    "THP",
    "AdaptiveConformal",
    "Baselines",
    "EventDataset",
    "EventForecaster",
    "EventSequence",
    "EventStream",
    "ExponentialHawkes",
    "ForecastEvaluation",
    "HawkesParameters",
    "LogNormalMixture",
    "NextEvent",
    "NextEvents",
    "PlaceMixture",
    "Smash",
    "SmurfTHP",
    "StructuredTHP",
    "evaluate",
    "metrics",
    "simulate_hawkes",
]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        return getattr(import_module(f"burnish.events.{_PUBLIC[name]}"), name)
    if name == "metrics":
        return import_module("burnish.events.metrics")
    raise AttributeError(f"module 'burnish.events' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC, "metrics"})
