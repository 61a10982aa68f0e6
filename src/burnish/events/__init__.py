"""Event streams with uncertainty: when does the next event come, of which type, where, and how sure are we.

    from burnish.events import EventDataset, EventForecaster, SmurfTHP

    data = EventDataset.from_csv("log.csv", sequence="machine", time="hours", mark="alarm")
    train, validation, test = data.split((0.8, 0.1, 0.1), seed=0)
    forecaster = EventForecaster(SmurfTHP(num_marks=data.num_marks))
    forecaster.fit(train, validation, epochs=30)
    forecaster.next_event(test.sequences[0]).interval(0.9, elapsed=2.0)

Public names are resolved when first used; nothing here imports transformers.
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy
from burnish.events.models import MODELS

if TYPE_CHECKING:
    from burnish.events import metrics as metrics
    from burnish.events.ahead import Paths as Paths
    from burnish.events.ahead import sample_paths as sample_paths
    from burnish.events.anomaly import p_values as p_values
    from burnish.events.anomaly import surprises as surprises
    from burnish.events.baselines import Baselines as Baselines
    from burnish.events.conformal import AdaptiveConformal as AdaptiveConformal
    from burnish.events.conformal import SplitConformal as SplitConformal
    from burnish.events.data import EventDataset as EventDataset
    from burnish.events.distribution import NextEvent as NextEvent
    from burnish.events.distribution import NextEvents as NextEvents
    from burnish.events.evaluation import ForecastEvaluation as ForecastEvaluation
    from burnish.events.evaluation import evaluate as evaluate
    from burnish.events.exogenous import Exogenous as Exogenous
    from burnish.events.exponential import ExponentialHawkes as ExponentialHawkes
    from burnish.events.forecaster import EventForecaster as EventForecaster
    from burnish.events.hawkes import HawkesParameters as HawkesParameters
    from burnish.events.hawkes import simulate_hawkes as simulate_hawkes
    from burnish.events.lognormal import LogNormalMixture as LogNormalMixture
    from burnish.events.occlusion import influence as influence
    from burnish.events.place_mixture import PlaceMixture as PlaceMixture
    from burnish.events.sequence import EventSequence as EventSequence
    from burnish.events.smash import Smash as Smash
    from burnish.events.smurf import SmurfTHP as SmurfTHP
    from burnish.events.stream import EventStream as EventStream
    from burnish.events.structured import StructuredTHP as StructuredTHP
    from burnish.events.thp import THP as THP

_PUBLIC = {
    "AdaptiveConformal": ".conformal",
    "Baselines": ".baselines",
    "EventDataset": ".data",
    "EventForecaster": ".forecaster",
    "EventSequence": ".sequence",
    "EventStream": ".stream",
    "Exogenous": ".exogenous",
    "ForecastEvaluation": ".evaluation",
    "HawkesParameters": ".hawkes",
    "NextEvent": ".distribution",
    "NextEvents": ".distribution",
    "Paths": ".ahead",
    "SplitConformal": ".conformal",
    "evaluate": ".evaluation",
    "influence": ".occlusion",
    "p_values": ".anomaly",
    "surprises": ".anomaly",
    "sample_paths": ".ahead",
    "simulate_hawkes": ".hawkes",
} | {class_name: f".{file}" for file, class_name in MODELS.values()}

__all__ = sorted([*_PUBLIC, "metrics"])  # pyright: ignore[reportUnsupportedDunderAll]

__getattr__, __dir__ = lazy(__name__, _PUBLIC, modules=("metrics",))
