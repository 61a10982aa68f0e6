"""Rows of bars on one scale: one row per kind, one bar per place, such as kinds of matrix and layers.

A bar is the median of what stands at its place, with a whisker to the largest where there are several.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from burnish.core.page.charts import SIZES
from burnish.core.page.numbers import significant

_PITCH, _LABEL, _BARS = 56, 16, 30
"""Pixels from row to row, of a row's label, and of its highest bar."""


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    whisker: float | None
    title: str


@dataclass(frozen=True)
class BarRow:
    """One kind; `y` is the base line, `largest` says where its largest value stands."""

    name: str
    y: float
    largest: str
    bars: list[Bar]


@dataclass(frozen=True)
class BarChart:
    variant: str
    width: int
    height: int
    rows: list[BarRow]


@dataclass(frozen=True)
class BarRows:
    """What to draw, and what a reader is told who cannot see it."""

    title: str
    note: str
    description: str
    drawings: list[BarChart]


def bar_rows(
    groups: Mapping[str, Mapping[int, Sequence[float]]], *, title: str, note: str, value: str, place: str
) -> BarRows:
    """Rows of bars, for wide and for narrow screens.

    Args:
        groups: {kind: {place: values}}; values are not negative.
        title, note: of the figure; the note is its small print.
        value, place: what a bar measures, and what its place is ("layer").
    """
    drawings = [_chart(groups, variant, value, place) for variant in ("wide", "narrow")]
    return BarRows(title, note, f"{value} per {place}: {note}", drawings)


def _chart(groups: Mapping[str, Mapping[int, Sequence[float]]], variant: str, value: str, place: str) -> BarChart:
    width = SIZES[variant][0]
    num_places = 1 + max(at for places in groups.values() for at in places)
    top = max(max(values) for places in groups.values() for values in places.values()) or 1.0
    pitch = (width - 8) / max(num_places, 8)
    rows = []
    for index, (name, places) in enumerate(groups.items()):
        base = index * _PITCH + _LABEL + _BARS + 4
        bars = [
            _bar(values, 4 + at * pitch, base, pitch * 0.78, top, f"{name}, {place} {at}: {value}")
            for at, values in sorted(places.items())
        ]
        worst = max(places, key=lambda at: max(places[at]))
        largest = f"up to {significant(max(places[worst]))}"
        rows.append(BarRow(name, base, largest + (f", {place} {worst}" if len(places) > 1 else ""), bars))
    return BarChart(variant, width, math.ceil(len(rows) * _PITCH), rows)


def _bar(values: Sequence[float], x: float, base: float, width: float, top: float, title: str) -> Bar:
    middle = statistics.median(values)
    height = max(1.0, _BARS * max(middle, 0.0) / top)
    several = len(values) > 1
    title += f" {significant(middle)}"
    title += f" (median of {len(values)}, largest {significant(max(values))})" if several else ""
    whisker = round(base - _BARS * max(values) / top, 1) if several else None
    return Bar(round(x, 1), round(base - height, 1), round(width, 1), round(height, 1), whisker, title)
