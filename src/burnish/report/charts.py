"""Charts as plain geometry: what the SVG templates draw, already in pixels.

Every chart is made twice, wide for a desk and narrow for a phone, because text in a scaled picture would become too
small to read. Series differ by colour, marker and dash together, so that no reader depends on colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from burnish.report.scale import Scale, fit, tick_labels

WIDTHS = {"wide": (720, 320), "narrow": (344, 280)}
SHORT_HEIGHT = 180
_FONT = 12.0
_LETTER = 0.56 * _FONT
NUM_STYLES = 6
_MAX_POINTS = 400
_MAX_LABELS = 16


@dataclass(frozen=True)
class Datum:
    """A point in data units."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    title: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one colour and marker."""

    name: str
    data: Sequence[Datum]
    line: bool = False
    markers: bool = True


@dataclass(frozen=True)
class Figure:
    """What to draw, before it has a size.

    Attributes:
        title, description: the description is what a reader who cannot see the picture is told.
        steps: corners of the best-quality-for-its-size line, in data units.
        log_x, log_y: None lets the spread of the data decide.
        tick_x: how the x ticks are written, where plain numbers would not do.
        short: a lower picture, for what only accompanies.
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
    tick_x: Callable[[float], str] | None = None
    short: bool = False


@dataclass
class Mark:
    """A drawn point; `low`, `high` are pixels of its error bar."""

    x: float
    y: float
    low: float | None
    high: float | None
    title: str
    path: str


@dataclass
class Label:
    x: float
    y: float
    anchor: str
    text: str


@dataclass
class Line:
    """A drawn series."""

    name: str
    style: int
    path: str
    band: str
    marks: list[Mark]
    symbol: str


@dataclass
class Chart:
    """A figure at one width."""

    variant: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    steps: str = ""
    labels: list[Label] = field(default_factory=list)


def draw(figure: Figure, variant: str) -> Chart:
    """Lays a figure out at one of `WIDTHS`."""
    width, height = WIDTHS[variant]
    height = SHORT_HEIGHT if figure.short else height
    points = [datum for series in figure.series for datum in series.data]
    xs = [datum.x for datum in points]
    ys = [end for d in points for end in (d.y, d.low, d.high) if end is not None and math.isfinite(end)]
    x_low, x_high, x_log = fit(xs, from_zero=figure.from_zero_x, log=figure.log_x)
    y_low, y_high, y_log = fit(ys, from_zero=figure.from_zero_y, log=figure.log_y)
    top, bottom = 30.0 if figure.y_label else 14.0, height - 44.0
    y = Scale(y_low, y_high, bottom, top, y_log)
    y_ticks = y.ticks(3 if figure.short else 5)
    y_texts = tick_labels(y_ticks)
    left = 14 + max((len(text) for text in y_texts), default=1) * _LETTER
    right = width - 12.0
    x = Scale(x_low, x_high, left + 4, right, x_log)
    x_ticks = x.ticks(6 if variant == "wide" else 4)
    x_texts = [figure.tick_x(t) for t in x_ticks] if figure.tick_x else tick_labels(x_ticks)
    lines = [_line(series, index, x, y) for index, series in enumerate(figure.series)]
    return Chart(
        variant=variant,
        width=width,
        height=height,
        left=round(left, 1),
        right=right,
        top=top,
        bottom=bottom,
        x_ticks=[(x(tick), text) for tick, text in zip(x_ticks, x_texts, strict=True)],
        y_ticks=[(y(tick), text) for tick, text in zip(y_ticks, y_texts, strict=True)],
        lines=lines,
        steps=_path([(x(a), y(b)) for a, b in figure.steps]),
        labels=_labels(figure, x, y, left, right, top, bottom),
    )


def _line(series: Series, index: int, x: Scale, y: Scale) -> Line:
    style = index % NUM_STYLES
    data = thin(series.data, _MAX_POINTS)
    path = _path([(x(d.x), y(d.y)) for d in data]) if series.line else ""
    band = ""
    if series.line and not series.markers and all(d.low is not None and d.high is not None for d in data):
        upper = [(x(d.x), y(d.high)) for d in data if d.high is not None]
        lower = [(x(d.x), y(d.low)) for d in reversed(data) if d.low is not None]
        band = _path(upper + lower) + "Z"
    marks = []
    if series.markers:
        for d in data:
            low = y(d.low) if d.low is not None else None
            high = y(d.high) if d.high is not None else None
            marks.append(Mark(x(d.x), y(d.y), low, high, d.title, marker(style, x(d.x), y(d.y))))
    return Line(series.name, style, path, band, marks, marker(style, 13, 7))


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


def marker(style: int, x: float, y: float, size: float = 5.0) -> str:
    """The outline of a marker: circle, square, triangle, diamond, cross, inverted triangle."""
    r, s = size, size * 0.9
    t = size * 1.2
    match style % NUM_STYLES:
        case 0:
            return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
        case 1:
            return f"M{x - s:.1f} {y - s:.1f}h{2 * s}v{2 * s}h{-2 * s}Z"
        case 2:
            return f"M{x:.1f} {y - t:.1f}l{t} {1.75 * t}h{-2 * t}Z"
        case 3:
            return f"M{x:.1f} {y - t:.1f}l{t} {t}l{-t} {t}l{-t} {-t}Z"
        case 4:
            a = size * 0.38
            b = size - a
            return (
                f"M{x - a:.1f} {y - size:.1f}h{2 * a:.1f}v{b:.1f}h{b:.1f}v{2 * a:.1f}h{-b:.1f}v{b:.1f}"
                f"h{-2 * a:.1f}v{-b:.1f}h{-b:.1f}v{-2 * a:.1f}h{b:.1f}Z"
            )
        case _:
            return f"M{x:.1f} {y + t:.1f}l{-t} {-1.75 * t}h{2 * t}Z"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in points) if points else ""


def _labels(figure: Figure, x: Scale, y: Scale, left: float, right: float, top: float, bottom: float) -> list[Label]:
    """Names beside points where they fit: right, left, above or below, clear of markers and of each other."""
    named = [datum for series in figure.series for datum in series.data if datum.label]
    if not named or len(named) > _MAX_LABELS:
        return []
    taken = [(x(d.x) - 6, y(d.y) - 6, x(d.x) + 6, y(d.y) + 6) for series in figure.series for d in series.data]
    placed = []
    for datum in named:
        px, py = x(datum.x), y(datum.y)
        text = datum.label if len(datum.label) <= 28 else datum.label[:27] + "…"
        wide = len(text) * _LETTER
        for anchor, tx, ty in (
            ("start", px + 10, py + 4),
            ("end", px - 10, py + 4),
            ("start", px + 8, py - 8),
            ("end", px - 8, py - 8),
            ("start", px + 8, py + 17),
            ("end", px - 8, py + 17),
            ("middle", px, py - 12),
            ("middle", px, py + 21),
        ):
            begin = tx - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            box = (begin, ty - _FONT, begin + wide, ty + 3)
            inside = box[0] >= left and box[2] <= right + 8 and box[1] >= top - 14 and box[3] <= bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                placed.append(Label(round(tx, 1), round(ty, 1), anchor, text))
                break
    return placed


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
