"""Rows of bars on one scale: one row per kind, one bar per place, such as kinds of matrix and layers.

A bar is the median of what stands at its place, with a whisker to the largest where there are several.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from burnish.core.page.charts import SIZES, framed
from burnish.core.page.numbers import significant
from burnish.core.page.svg import path, tag, text

_PITCH, _BASE, _HIGHEST = 56, 50, 30
"""Pixels from row to row, from a row's top to its base line, and of its highest bar."""


@dataclass(frozen=True)
class BarRows:
    """What to draw; written into a template it draws itself.

    Attributes:
        title, note: of the figure; the note is its small print.
        groups: {kind: {place: values}}; values are not negative.
        value, place: what a bar measures, and what its place is ("layer").
    """

    title: str
    note: str
    groups: Mapping[str, Mapping[int, Sequence[float]]]
    value: str
    place: str

    def __html__(self) -> str:
        return framed(self.title, self.note, *(self.draw(variant) for variant in ("wide", "narrow")))

    def draw(self, variant: str) -> Markup:
        width = SIZES[variant][0]
        num_places = 1 + max(at for places in self.groups.values() for at in places)
        top = max(max(values) for places in self.groups.values() for values in places.values()) or 1.0
        pitch = (width - 8) / max(num_places, 8)
        inside = []
        for index, (kind, places) in enumerate(self.groups.items()):
            base = index * _PITCH + _BASE
            worst = max(places, key=lambda at: max(places[at]))
            where = f", {self.place} {worst}" if len(places) > 1 else ""
            inside += [
                text(0, base - 34, kind, class_="name"),
                text(width, base - 34, f"up to {significant(max(places[worst]))}{where}", anchor="end"),
                path(f"M0 {base}H{width}", "base"),
                *(self._bar(kind, at, values, pitch, base, _HIGHEST / top) for at, values in sorted(places.items())),
            ]
        return tag(
            "svg",
            *inside,
            class_=f"chart {variant}",
            viewBox=f"0 0 {width} {len(self.groups) * _PITCH}",
            role="img",
            aria_label=f"{self.value} per {self.place}: {self.note}",
        )

    def _bar(self, kind: str, at: int, values: Sequence[float], pitch: float, base: float, scale: float) -> Markup:
        middle, largest = statistics.median(values), max(values)
        left, width, height = round(4 + at * pitch, 1), round(pitch * 0.78, 1), round(max(1.0, middle * scale), 1)
        title = f"{kind}, {self.place} {at}: {self.value} {significant(middle)}"
        if len(values) == 1:
            return path(f"M{left} {base}v-{height}h{width}v{height}Z", "block", title=title)
        title += f" (median of {len(values)}, largest {significant(largest)})"
        whisker = path(f"M{left + width / 2:.1f} {base - height:.1f}V{base - largest * scale:.1f}", "whisker")
        return path(f"M{left} {base}v-{height}h{width}v{height}Z", "block", title=title) + whisker
