"""Longitudes and latitudes in degrees as places on a sphere: unwrapped near a meridian, and back.

A model works on a plane. On it longitudes are taken within 180 degrees of those of the training data, so that the date
line is nowhere near them; what crosses the seam on the other side of the earth is counted there by its images 360
degrees away. Distances are chords in degrees of arc (of the earth's radius 180/pi), which differ from great circles by
a thousandth at nine degrees; with them the energy score is proper on the whole sphere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[Any]
"""(..., 2) longitude and latitude."""


def mean_longitude(longitudes: NDArray[Any]) -> float:
    """Of the mean direction."""
    angle = np.deg2rad(longitudes)
    return float(np.rad2deg(np.arctan2(np.sin(angle).mean(), np.cos(angle).mean())))


def unwrapped(places: Places, meridian: float) -> Places:
    """Longitudes from 180 degrees west to 180 degrees east of a meridian."""
    longitude = meridian + np.mod(places[..., 0] - meridian + 180.0, 360.0) - 180.0
    return np.stack([longitude, places[..., 1]], axis=-1)


def wrapped(places: Places) -> Places:
    """Longitudes from -180 to 180, latitudes from -90 to 90: what lies beyond a pole comes down on its other side."""
    latitude = np.mod(places[..., 1] + 90.0, 360.0) - 90.0  # from -90 to 270
    beyond = latitude > 90.0
    longitude = places[..., 0] + np.where(beyond, 180.0, 0.0)
    return unwrapped(np.stack([longitude, np.where(beyond, 180.0 - latitude, latitude)], axis=-1), 0.0)


def embedded(places: Places) -> NDArray[np.float64]:
    """(..., 3) points of space whose distances are chords in degrees."""
    longitude, latitude = np.deg2rad(places[..., 0]), np.deg2rad(places[..., 1])
    flat = np.cos(latitude)
    return np.rad2deg(1.0) * np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=-1)


def local(places: Places, around: Places) -> Places:
    """Degrees east and north of a place, as they are at its latitude."""
    near = unwrapped(places, float(around[0])) - around
    return near * np.array([np.cos(np.deg2rad(around[1])), 1.0])
