"""Charts as plain geometry: what the SVG templates draw, already in pixels.

Every chart is made twice, for a desk and for a phone, because text in a scaled picture would become too small to read.
Series differ by colour, marker and dash together, so that no reader depends on colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from burnish.core.page.scale import Scale, fit, tick_labels

SIZES = {"wide": (720, 320), "half": (440, 300), "narrow": (344, 280)}
"""{variant: (width, height)} in pixels; a page shows "wide" or "half", and "narrow" in its place on a phone."""
SHORT_HEIGHT = 180
_FONT = 12.0
_LETTER = 0.56 * _FONT
NUM_STYLES = 6
_MAX_POINTS = 400
_MAX_LABELS = 16
_LEVELS = 8


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
        bars: width of bars in data units, 0 for none: a box from `low` to `high` with a stroke at y, or, where those
            are not given, a bar from 0 to y.
        style: 0 to 5 picks another colour and marker than the series' place; `GUIDE` is a grey dotted line.
    """

    name: str
    data: Sequence[Datum]
    line: bool = False
    markers: bool = True
    bars: float = 0.0
    style: int | None = None


GUIDE = -1


@dataclass(frozen=True)
class Cells:
    """A density on a grid: strengths of 0 to 1 by [row, column], and which cells belong to the marked region.

    Attributes:
        x, y: edges of columns and rows, one more than there are.
    """

    x: Sequence[float]
    y: Sequence[float]
    strength: Sequence[Sequence[float]]
    marked: Sequence[Sequence[bool]]


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
        cells: a density below everything else.
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
    cells: Cells | None = None
    short: bool = False
    half: bool = False

    @property
    def drawings(self) -> list[Chart]:
        """For a desk and for a phone."""
        return [draw(self, variant) for variant in ("half" if self.half else "wide", "narrow")]


@dataclass(frozen=True)
class Mark:
    """A drawn point; `low`, `high` are pixels of its error bar."""

    x: float
    y: float
    low: float | None
    high: float | None
    title: str
    path: str


@dataclass(frozen=True)
class Label:
    x: float
    y: float
    anchor: str
    text: str


@dataclass(frozen=True)
class Line:
    """A drawn series; `symbol` is its marker in the legend, `style` its class."""

    name: str
    style: str
    path: str
    band: str
    bars: str
    middles: str
    marks: list[Mark]
    symbol: str


@dataclass(frozen=True)
class Shade:
    """All cells of one strength."""

    path: str
    opacity: float
    marked: bool


@dataclass(frozen=True)
class Chart:
    """A figure at one size."""

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
    steps: str
    labels: list[Label]
    shades: list[Shade]


def draw(figure: Figure, variant: str) -> Chart:
    """Lays a figure out at one of `SIZES`."""
    width, height = SIZES[variant]
    height = SHORT_HEIGHT if figure.short else height
    x_range, y_range = _ranges(figure)
    top, bottom, right = 30.0 if figure.y_label else 14.0, height - 44.0, width - 12.0
    y = Scale(*y_range[:2], bottom, top, y_range[2])
    y_ticks = y.ticks(3 if figure.short else 5)
    y_texts = tick_labels(y_ticks)
    left = 14 + max((len(text) for text in y_texts), default=1) * _LETTER
    x = Scale(*x_range[:2], left + 4, right, x_range[2])
    x_ticks = x.ticks(6 if variant == "wide" else 4)
    x_texts = [figure.tick_x(t) for t in x_ticks] if figure.tick_x else tick_labels(x_ticks)
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
        lines=[_line(series, index, x, y) for index, series in enumerate(figure.series)],
        steps=_path([(x(a), y(b)) for a, b in figure.steps]),
        labels=_labels(figure, x, y, (left, top, right, bottom)),
        shades=_shades(figure.cells, x, y) if figure.cells else [],
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


def _line(series: Series, index: int, x: Scale, y: Scale) -> Line:
    style = index % NUM_STYLES if series.style is None else series.style
    data = thin(series.data, _MAX_POINTS)
    path = _path([(x(d.x), y(d.y)) for d in data]) if series.line else ""
    edges = [(x(d.x), *(y(end) for end in d.ends)) for d in data if d.ends]
    band, bars, middles, marks = "", "", "", []
    if series.bars:
        bars, middles = _bars(series, x, y)
    elif series.line and not series.markers and len(edges) == len(data):
        band = _path([(at, high) for at, _, high in edges] + [(at, low) for at, low, _ in reversed(edges)]) + "Z"
    if series.markers and not series.bars:
        for d in data:
            low, high = (y(end) for end in d.ends) if d.ends else (None, None)
            marks.append(Mark(x(d.x), y(d.y), low, high, d.title, marker(style, x(d.x), y(d.y))))
    name = "guide" if style == GUIDE else f"s{style}"
    return Line(series.name, name, path, band, bars, middles, marks, marker(style, 13, 7))


def _bars(series: Series, x: Scale, y: Scale) -> tuple[str, str]:
    """Paths of the bars and of the strokes within boxes."""
    bars, middles = "", ""
    for d in series.data:
        low, high = d.ends or (0.0, d.y)
        left, width = x(d.x - series.bars / 2), x(d.x + series.bars / 2) - x(d.x - series.bars / 2)
        bars += f"M{left:g} {y(high):g}h{width:.1f}V{y(low):g}h{-width:.1f}Z"
        middles += f"M{left:g} {y(d.y):g}h{width:.1f}" if d.ends else ""
    return bars, middles


def _shades(cells: Cells, x: Scale, y: Scale) -> list[Shade]:
    """One path for all cells that look the same; faintest first, cells of no strength left out."""
    paths: dict[tuple[bool, int], str] = {}
    for i, row in enumerate(cells.strength):
        for j, strength in enumerate(row):
            level = round(strength * _LEVELS)
            if level or cells.marked[i][j]:
                left, right, below, above = x(cells.x[j]), x(cells.x[j + 1]), y(cells.y[i]), y(cells.y[i + 1])
                key = (bool(cells.marked[i][j]), level)
                paths[key] = paths.get(key, "") + f"M{left:g} {below:g}H{right:g}V{above:g}H{left:g}Z"
    return [Shade(path, round(0.1 + 0.8 * key[1] / _LEVELS, 2), key[0]) for key, path in sorted(paths.items())]


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


def _labels(figure: Figure, x: Scale, y: Scale, frame: tuple[float, float, float, float]) -> list[Label]:
    """Names beside points where they fit: right, left, above or below, clear of markers and of each other."""
    named = [datum for series in figure.series for datum in series.data if datum.label]
    if not named or len(named) > _MAX_LABELS:
        return []
    left, top, right, bottom = frame
    taken = [(x(d.x) - 6, y(d.y) - 6, x(d.x) + 6, y(d.y) + 6) for series in figure.series for d in series.data]
    placed = []
    for datum in named:
        text = datum.label if len(datum.label) <= 28 else datum.label[:27] + "…"
        wide = len(text) * _LETTER
        for anchor, dx, dy in _PLACES:
            tx, ty = x(datum.x) + dx, y(datum.y) + dy
            begin = tx - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            box = (begin, ty - _FONT, begin + wide, ty + 3)
            inside = box[0] >= left and box[2] <= right + 8 and box[1] >= top - 14 and box[3] <= bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                placed.append(Label(round(tx, 1), round(ty, 1), anchor, text))
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
