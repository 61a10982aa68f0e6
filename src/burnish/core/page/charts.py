"""Charts as inline SVG. A `Figure` says what to draw; written into a template, `{{ figure }}` draws it.

Every chart is drawn twice, for a desk and for a phone, because text in a scaled picture would become too small to read.
Series differ by colour, marker and dash together, so that no reader depends on colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup

from burnish.core.page.scale import Scale, fit, tick_labels
from burnish.core.page.svg import path, tag, text

SIZES = {"wide": (720, 320), "half": (440, 300), "narrow": (344, 280)}
"""{variant: (width, height)} in pixels; a page shows "wide" or "half", and "narrow" in its place on a phone."""
_SHORT_HEIGHT = 180
_FONT = 12.0
_LETTER = 0.56 * _FONT
_MAX_POINTS, _MAX_LABELS, _MAX_SPOKEN = 400, 16, 900
NUM_STYLES = 6
GUIDE = -1


@dataclass(frozen=True)
class Datum:
    """A point in data units; `low` and `high` are its error bar, its edge of a band, or the ends of its box."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    title: str = ""

    @property
    def ends(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Series:
    """Points of one colour and marker.

    Attributes:
        line: joins the points; without markers a band spans `low` to `high`.
        bars: width of bars in data units, 0 for none: boxes from `low` to `high` with a stroke at a y between them, or,
            where those are not given, bars from 0 to y.
        style: 0 to 5 picks another colour and marker than the series' place; `GUIDE` is a grey dotted line.
    """

    name: str
    data: Sequence[Datum]
    line: bool = False
    markers: bool = True
    bars: float = 0.0
    style: int | None = None


@dataclass(frozen=True)
class Figure:
    """What to draw, before it has a size.

    Attributes:
        title, description: the description is what a reader who cannot see the picture is told.
        note: small print below the title.
        steps: corners of a dotted line, in data units, such as the best quality at each size.
        log_x, log_y: None lets the spread of the data decide.
        range_x, range_y: fixed ends of an axis.
        tick_x: how the x ticks are written, where plain numbers would not do.
        short: a lower picture, for what only accompanies.
        half: a narrower one, two of which stand side by side.
    """

    title: str
    description: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    steps: Sequence[tuple[float, float]] = ()
    steps_name: str = ""
    note: str = ""
    log_x: bool | None = False
    log_y: bool | None = None
    from_zero_x: bool = False
    from_zero_y: bool = False
    range_x: tuple[float, float] | None = None
    range_y: tuple[float, float] | None = None
    tick_x: Callable[[float], str] | None = None
    short: bool = False
    half: bool = False

    def __html__(self) -> str:
        drawings = [draw(self, variant) for variant in ("half" if self.half else "wide", "narrow")]
        return framed(self.title, self.note, _legend(self), *drawings)


def framed(title: str, note: str, *inside: Markup) -> Markup:
    """Pictures under their title."""
    caption = tag("figcaption", title, tag("small", note) if note else "")
    return tag("figure", caption, *inside)


class Axes(NamedTuple):
    """Both scales, and the edges of what is drawn in pixels."""

    x: Scale
    y: Scale
    left: float
    top: float
    right: float
    bottom: float


def draw(figure: Figure, variant: str) -> Markup:
    """The picture at one of `SIZES`."""
    width, height = SIZES[variant][0], _SHORT_HEIGHT if figure.short else SIZES[variant][1]
    (x_low, x_high, x_log), (y_low, y_high, y_log) = _ranges(figure)
    top, right, bottom = 30.0 if figure.y_label else 14.0, width - 12.0, height - 44.0
    y = Scale(y_low, y_high, bottom, top, y_log)
    y_ticks = y.ticks(3 if figure.short else 5)
    y_texts = tick_labels(y_ticks)
    left = round(14 + max((len(one) for one in y_texts), default=1) * _LETTER, 1)
    x = Scale(x_low, x_high, left + 4, right, x_log)
    x_ticks = x.ticks(6 if variant == "wide" else 4)
    x_texts = [figure.tick_x(tick) for tick in x_ticks] if figure.tick_x else tick_labels(x_ticks)
    axes = Axes(x, y, left, top, right, bottom)
    return tag(
        "svg",
        path("".join(f"M{left} {y(tick)}H{right}" for tick in y_ticks), "grid"),
        *(text(left - 8, y(at) + 4, name, anchor="end") for at, name in zip(y_ticks, y_texts, strict=True)),
        path(f"M{left} {bottom}H{right}" + "".join(f"M{x(tick)} {bottom}v4" for tick in x_ticks), "axis"),
        *(text(x(at), bottom + 18, name, anchor="middle") for at, name in zip(x_ticks, x_texts, strict=True)),
        text(0, 12, figure.y_label),
        text(right, height - 6, figure.x_label, anchor="end"),
        path(_polyline([(x(a), y(b)) for a, b in figure.steps]), "steps"),
        *(_drawn(series, style, axes) for series, style in _styled(figure)),
        *_labels(figure, axes),
        class_=f"chart {variant}",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{figure.title}. {figure.description}"[:_MAX_SPOKEN],
    )


def _ranges(figure: Figure) -> list[tuple[float, float, bool]]:
    """(low, high, logarithmic) of both axes."""
    points = [(series, datum) for series in figure.series for datum in series.data]
    xs = [end for series, d in points for end in (d.x - series.bars / 2, d.x + series.bars / 2)]
    ys = [end for _, d in points for end in (d.y, d.low, d.high) if end is not None and math.isfinite(end)]
    return [
        (*fixed, False) if fixed else fit(values, from_zero=from_zero, log=log)
        for fixed, values, from_zero, log in (
            (figure.range_x, xs, figure.from_zero_x, figure.log_x),
            (figure.range_y, ys, figure.from_zero_y, figure.log_y),
        )
    ]


def _styled(figure: Figure) -> list[tuple[Series, int]]:
    """Each series with its colour and marker."""
    return [
        (series, index % NUM_STYLES if series.style is None else series.style)
        for index, series in enumerate(figure.series)
    ]


def _class(style: int) -> str:
    return "guide" if style == GUIDE else f"s{style}"


def _legend(figure: Figure) -> Markup:
    """What the lines and markers mean, where there is more than one kind."""
    several = _styled(figure) if len(figure.series) > 1 else []
    entries = [(one.name, _symbol(one, style), _class(style)) for one, style in several if one.name]
    if figure.steps_name:
        entries.append((figure.steps_name, path("M0 7H26", "steps"), ""))
    items = [
        tag("li", tag("svg", symbol, class_=style, viewBox="0 0 26 14", aria_hidden="true"), name)
        for name, symbol, style in entries
    ]
    return tag("ul", *items, class_="legend") if items else Markup()


def _symbol(series: Series, style: int) -> Markup:
    banded = series.line and not series.markers and all(d.ends for d in series.data)
    return Markup().join(
        [
            path("M4 2h18v10h-18Z", "bars") if series.bars else "",
            path("M0 1h26v12h-26Z", "band") if banded else "",
            path("M0 7H26", "line") if series.line else "",
            path(marker(style, 13, 7), "mark") if series.markers and not series.bars else "",
        ]
    )


def _drawn(series: Series, style: int, axes: Axes) -> Markup:
    """A series: band or bars, its line, its points with their error bars."""
    x, y = axes.x, axes.y
    data = thin(series.data, _MAX_POINTS)
    inside = []
    if series.bars:
        inside += _bars(series, axes)
    elif series.line and not series.markers:
        edges = [(x(d.x), *(y(end) for end in d.ends)) for d in data if d.ends]
        if len(edges) == len(data):
            around = [(at, high) for at, _, high in edges] + [(at, low) for at, low, _ in reversed(edges)]
            inside.append(path(_polyline(around) + "Z", "band"))
    if series.line:
        inside.append(path(_polyline([(x(d.x), y(d.y)) for d in data]), "line"))
    for d in data if series.markers and not series.bars else ():
        if d.ends:
            low, high = (y(end) for end in d.ends)
            inside.append(path(f"M{x(d.x)} {low}V{high}m-4 0h8M{x(d.x) - 4:g} {low}h8", "bar-error"))
        inside.append(path(marker(style, x(d.x), y(d.y)), "mark", title=d.title))
    return tag("g", *inside, class_=_class(style))


def _bars(series: Series, axes: Axes) -> list[Markup]:
    """Bars as one path, and the strokes within boxes as another."""
    bars, middles = "", ""
    for d in series.data:
        left, right = axes.x(d.x - series.bars / 2), axes.x(d.x + series.bars / 2)
        low, high = (axes.y(end) for end in d.ends or (0.0, d.y))
        bars += f"M{left} {high}H{right}V{low}H{left}Z"
        middles += f"M{left} {axes.y(d.y)}H{right}" if d.ends and d.ends[0] < d.y < d.ends[1] else ""
    return [path(bars, "bars"), path(middles, "line")]


def thin(data: Sequence[Datum], most: int) -> list[Datum]:
    """At most about `most` points that keep every peak: of each bucket the first, the lowest and the highest."""
    if len(data) <= most:
        return list(data)
    size = math.ceil(len(data) / (most / 3))
    kept: list[Datum] = []
    for begin in range(0, len(data), size):
        bucket = range(begin, min(begin + size, len(data)))
        chosen = {bucket[0], min(bucket, key=lambda i: data[i].y), max(bucket, key=lambda i: data[i].y)}
        kept += [data[i] for i in sorted(chosen)]
    if kept[-1] is not data[-1]:
        kept.append(data[-1])
    return kept


def marker(style: int, x: float, y: float) -> str:
    """The outline of a marker: circle, square, triangle, diamond, cross, inverted triangle."""
    return f"M{x:.1f} {y:.1f}{_MARKERS[style % NUM_STYLES]}"


_MARKERS = (
    "m-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "m-4.5 -4.5h9v9h-9Z",
    "m0 -6l6 10.5h-12Z",
    "m0 -6l6 6l-6 6l-6 -6Z",
    "m-1.9 -5h3.8v3.1h3.1v3.8h-3.1v3.1h-3.8v-3.1h-3.1v-3.8h3.1Z",
    "m0 6l-6 -10.5h12Z",
)


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in points) if points else ""


def _labels(figure: Figure, axes: Axes) -> list[Markup]:
    """Names beside points where they fit: right, left, above or below, clear of markers and of each other."""
    data = [datum for series in figure.series for datum in series.data]
    named = [datum for datum in data if datum.label]
    if len(named) > _MAX_LABELS:
        return []
    taken = [(axes.x(d.x) - 6, axes.y(d.y) - 6, axes.x(d.x) + 6, axes.y(d.y) + 6) for d in data]
    placed = []
    for datum in named:
        name = datum.label if len(datum.label) <= 28 else datum.label[:27] + "…"
        wide = len(name) * _LETTER
        for anchor, dx, dy in _PLACES:
            x, y = axes.x(datum.x) + dx, axes.y(datum.y) + dy
            begin = x - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            box = (begin, y - _FONT, begin + wide, y + 3)
            inside = (
                box[0] >= axes.left and box[2] <= axes.right + 8 and axes.top - 14 <= box[1] and box[3] <= axes.bottom
            )
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                placed.append(text(round(x, 1), round(y, 1), name, anchor=anchor, class_="name"))
                break
    return placed


_PLACES = (
    ("start", 10, 4),
    ("end", -10, 4),
    ("start", 8, -8),
    ("end", -8, -8),
    ("start", 8, 17),
    ("end", -8, 17),
    ("middle", 0, -12),
    ("middle", 0, 21),
)
"""Where a label may stand, best first: its anchor and its distance from the point."""


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
