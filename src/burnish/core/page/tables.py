"""A table as data: what `table` in `templates/table.html.j2` draws.

A cell is a value with lines of small print below it, and may hold a bar or an interval on an axis that the whole column
shares. On a narrow screen every row becomes a card in which each value carries the name of its column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from burnish.core.page.scale import Scale

GOOD, BAD, SOFT = "good", "bad", "soft"
"""Tones: classes of the style sheet."""


@dataclass(frozen=True)
class Small:
    """A line of small print."""

    text: str
    tone: str = SOFT


@dataclass(frozen=True)
class Span:
    """An interval on the column's axis; all four in per cent of its width."""

    low: float
    value: float
    high: float
    zero: float


@dataclass(frozen=True)
class Cell:
    """One value.

    Attributes:
        below: small print.
        tone: of the value itself; "" is ink.
        mark: number of a footnote, 0 for none.
        bar: length of a bar in per cent of the column, in place of a text.
        span: an interval in place of a text.
    """

    text: str = ""
    below: Sequence[Small] = ()
    tone: str = ""
    mark: int = 0
    bar: float | None = None
    span: Span | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table; `same` is the one value of all its columns, where they share it."""

    head: str
    cells: Sequence[Cell]
    below: str = ""
    mark: int = 0
    same: str = ""


@dataclass(frozen=True)
class Column:
    """A heading; where columns stack up as cards, `label` names their values, if given.

    `drawn` columns hold bars or intervals; a `spare` one is left out on a narrow screen.
    """

    name: str
    below: str = ""
    label: str = ""
    drawn: bool = False
    spare: bool = False


@dataclass(frozen=True)
class Section:
    """Rows under a heading of their own; `anchor` is the id of an element that says more."""

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

    def mark(self, text: str) -> int:
        """The number of a footnote, 0 for an empty one."""
        if not text:
            return 0
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def spans(intervals: Sequence[tuple[float, float, float]]) -> list[Span]:
    """(low, value, high) of every row on one axis that includes zero."""
    if not intervals:
        return []
    low, high = min(0.0, *(one[0] for one in intervals)), max(0.0, *(one[2] for one in intervals))
    air = (high - low) * 0.05 or 1.0
    place = Scale(low - air, high + air, 0.0, 100.0)
    return [Span(*(place(end) for end in one), zero=place(0.0)) for one in intervals]
