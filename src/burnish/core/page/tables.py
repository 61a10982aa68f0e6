"""A table as data: what `table` in `templates/table.html.j2` writes, and `console` prints.

A cell is a value with lines of small print below it, or a drawing. On a narrow screen every row becomes a card in which
each value carries the name of its column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from burnish.core.page.scale import Scale
from burnish.core.page.svg import tag

INK, GOOD, BAD, SOFT = "ink", "good", "bad", "soft"
"""Tones: classes of the style sheet."""


@dataclass(frozen=True)
class Small:
    """A line of small print."""

    text: str
    tone: str = SOFT


@dataclass(frozen=True)
class Cell:
    """One value, or a `drawing` in its place; `mark` is the number of a footnote, 0 for none."""

    text: str = ""
    below: Sequence[Small] = ()
    tone: str = INK
    mark: int = 0
    drawing: Markup | None = None


@dataclass(frozen=True)
class Row:
    head: str
    cells: Sequence[Cell]
    below: str = ""


@dataclass(frozen=True)
class Column:
    """A heading with its unit below. A `drawn` column holds drawings; a `spare` one is left out on a narrow screen."""

    name: str
    below: str = ""
    drawn: bool = False
    spare: bool = False


@dataclass(frozen=True)
class Section:
    """Rows, under a heading where there are several sections; `anchor` is the id of an element that says more."""

    rows: Sequence[Row]
    title: str = ""
    detail: str = ""
    anchor: str = ""


@dataclass(frozen=True)
class Table:
    """`caption` is for those who cannot see the page; `notes` are numbered from 1."""

    caption: str
    head: str
    columns: Sequence[Column]
    sections: Sequence[Section]
    notes: Sequence[str] = ()


@dataclass
class Footnotes:
    """Numbers each text when it is first met."""

    texts: list[str] = field(default_factory=list)

    def mark(self, note: str) -> int:
        """The number of a footnote, 0 for an empty one."""
        if note and note not in self.texts:
            self.texts.append(note)
        return self.texts.index(note) + 1 if note else 0


def meters(values: Sequence[float]) -> list[Cell]:
    """Bars on a common scale that begins at zero."""
    longest = max(values, default=0.0) or 1.0
    bars = (tag("rect", class_="block", width=f"{100 * value / longest:.1f}%", height="100%") for value in values)
    return [Cell(drawing=tag("svg", bar, class_="meter", aria_hidden="true")) for bar in bars]


def intervals(values: Sequence[tuple[float, float, float]]) -> list[Cell]:
    """(low, value, high) of every row on one axis that includes zero, at a dashed line."""
    ends = [0.0, *(end for one in values for end in one)]
    air = (max(ends) - min(ends)) * 0.05 or 1.0
    place = Scale(min(ends) - air, max(ends) + air, 0.0, 100.0)
    zero = tag("line", class_="zero", x1=f"{place(0.0)}%", x2=f"{place(0.0)}%", y1="0", y2="100%")
    cells = []
    for low, value, high in ((f"{place(end)}%" for end in one) for one in values):
        span = tag("line", class_="span", x1=low, x2=high, y1="50%", y2="50%")
        dot = tag("circle", class_="dot", cx=value, cy="50%", r=4)
        cells.append(Cell(drawing=tag("svg", zero, span, dot, aria_hidden="true")))
    return cells
