"""The table of event models: a new one is its file and a line here.

The public names of the room, the choices of `burnish events fit --model` and what a saved forecaster may hold come from
it. What a model needs of the data (places, a graph) it says itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from burnish.events.model import EventModel

MODELS = {
    "smurf-thp": ("smurf", "SmurfTHP"),
    "place-mixture": ("place_mixture", "PlaceMixture"),
    "thp": ("thp", "THP"),
    "structured-thp": ("structured", "StructuredTHP"),
    "smash": ("smash", "Smash"),
    "lognormal-mixture": ("lognormal", "LogNormalMixture"),
    "exponential-hawkes": ("exponential", "ExponentialHawkes"),
}
"""File and class of every model by the name that the command line and config.json use."""


def model_class(name: str) -> type[EventModel]:
    file, class_name = MODELS[name]
    return getattr(import_module(f"burnish.events.{file}"), class_name)
