"""One self-contained HTML page for an evaluation: tables and drawings as inline SVG, no script and no download."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray

from burnish.core.checkpoint import write_atomically
from burnish.events import metrics
from burnish.events.data import EventDataset, EventSequence
from burnish.events.evaluation import WIDTH_LEVELS, ForecastEvaluation
from burnish.events.forecaster import EventForecaster
from burnish.events.locations import LocationRegion

ROWS = (
    ("loglik", "log-likelihood, nats per event", True),
    ("loglik_time", "of which time", True),
    ("loglik_mark", "of which type, given the time", True),
    ("crps", "CRPS of the time", False),
    ("calibration_score_19", "calibration score, 19 levels", False),
    ("calibration_score_upper", "calibration score, levels from 0.5", False),
    ("pit_ks", "PIT, Kolmogorov-Smirnov distance", False),
    ("coverage_50", "share below the 50 % quantile", None),
    ("coverage_90", "share below the 90 % quantile", None),
    ("mae", "mean absolute error of the median", False),
    ("rmse", "root mean squared error of the mean", False),
    ("accuracy", "type accuracy, before the event", True),
    ("accuracy_given_time", "type accuracy, given the time", True),
    ("accuracy_head", "type accuracy of the separate head", True),
    ("ece", "type calibration error", False),
    ("location_cs", "calibration score of the place, levels 0.5 to 0.9", False),
    ("energy_score", "energy score of the place", False),
    ("location_error", "mean distance to the mean place", False),
)


@dataclass(frozen=True)
class Axis:
    """A linear map from data to the drawing, with ticks."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.0
        return round(self.start + share * (self.stop - self.start), 2)

    def ticks(self, count: int = 5) -> list[tuple[float, str]]:
        raw = (self.high - self.low) / max(count, 1)
        step = 10 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
        step = next((step * factor for factor in (1, 2, 5, 10) if step * factor >= raw), step)
        first = math.ceil(self.low / step) * step
        values = [first + i * step for i in range(int((self.high - first) / step + 1e-9) + 1)]
        return [(self(value), f"{value:.6g}") for value in values]


WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 44


def _axes(x: tuple[float, float], y: tuple[float, float], width: int = WIDTH) -> tuple[Axis, Axis]:
    return Axis(*x, LEFT, width - RIGHT), Axis(*y, HEIGHT - BOTTOM, TOP)


def _line(points: list[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in points)


def calibration_plot(result: ForecastEvaluation) -> dict[str, Any]:
    """Coverage against level; the diagonal is honest, the band is noise (95 %, over sequences)."""
    x, y = _axes((0, 1), (0, 1))
    levels = np.linspace(0.01, 0.99, 99)
    pit = result.events["pit"]
    covered = metrics.coverage(pit, tuple(levels))
    noise = metrics.share_reach(pit[:, None] < levels, result.events["sequence"])
    band = [(x(q), y(min(q + e, 1))) for q, e in zip(levels, noise, strict=True)]
    band += [(x(q), y(max(q - e, 0))) for q, e in reversed(list(zip(levels, noise, strict=True)))]
    return {
        "title": "Calibration",
        "caption": "The curve of an honest forecast stays on the diagonal; above it, events come sooner than forecast.",
        "x": x,
        "y": y,
        "x_label": "level",
        "y_label": "share of gaps below the quantile",
        "polygons": [(_line(band), "band")],
        "lines": [
            (_line([(x(0), y(0)), (x(1), y(1))]), "guide"),
            (_line([(x(q), y(c)) for q, c in zip(levels, covered, strict=True)]), "main"),
        ],
    }


def pit_plot(result: ForecastEvaluation, num_bins: int = 20) -> dict[str, Any]:
    """Histogram of the PIT: flat for the true law; the band is noise (95 %, over sequences)."""
    pit = result.events["pit"]
    bins = np.minimum((pit * num_bins).astype(int), num_bins - 1)
    inside = bins[:, None] == np.arange(num_bins)
    density = inside.mean(0) * num_bins
    noise = num_bins * metrics.share_reach(inside, result.events["sequence"])
    x, y = _axes((0, 1), (0, max(1.3, float(density.max()) * 1.05)))
    bars = [
        (x(i / num_bins), y(value), x((i + 1) / num_bins) - x(i / num_bins) - 1, y(0) - y(value))
        for i, value in enumerate(density)
    ]
    corners = [(i / num_bins, (i + 1) / num_bins, e) for i, e in enumerate(noise)]
    band = [(x(at), y(min(1 + e, y.high))) for left, right, e in corners for at in (left, right)]
    band += [(x(at), y(max(1 - e, 0))) for left, right, e in reversed(corners) for at in (right, left)]
    return {
        "title": "Probability integral transform",
        "caption": "Flat is honest; a hump means intervals too wide, a bowl too narrow, a slope a shift.",
        "x": x,
        "y": y,
        "x_label": "F(gap)",
        "y_label": "density",
        "bars": bars,
        "polygons": [(_line(band), "band")],
        "lines": [(_line([(x(0), y(1)), (x(1), y(1))]), "guide")],
    }


def width_plot(result: ForecastEvaluation, unit: str) -> dict[str, Any]:
    """Mean width of central intervals against the coverage they reach."""
    points = []
    for level in WIDTH_LEVELS:
        width = result.scores[f"width_{round(100 * level)}"]
        if math.isfinite(width):
            points.append((result.scores[f"central_coverage_{round(100 * level)}"], width, level))
    top = max((width for _, width, _ in points), default=1.0)
    x, y = _axes((0, 1), (0, top * 1.1))
    return {
        "title": "Interval width against coverage",
        "caption": "What a central interval costs in width for the share of events that it held.",
        "x": x,
        "y": y,
        "x_label": "coverage reached (number: coverage asked)",
        "y_label": f"mean width{f', {unit}' if unit else ''}",
        "lines": [(_line([(x(c), y(w)) for c, w, _ in points]), "main")],
        "dots": [(x(c), y(w), f"{level:.0%}", "end") for c, w, level in points],
    }


def forecast_plot(
    forecaster: EventForecaster, sequence: EventSequence, names: tuple[str, ...], shown: int = 24
) -> dict[str, Any]:
    """The last events of a sequence and, before each, the 50 % and 90 % intervals for when it would come."""
    first = max(len(sequence) - shown, 1)
    prefixes = [sequence.slice(0, i, start=sequence.start, end=None) for i in range(first, len(sequence))]
    law = forecaster.next_events(EventDataset(tuple(prefixes), names))
    with torch.no_grad():
        quantiles = law.quantile([0.05, 0.25, 0.5, 0.75, 0.95]).double().numpy()
    gaps = sequence.gaps[first:]
    finite = quantiles[np.isfinite(quantiles)]
    top = float(max(np.quantile(finite, 0.98) if len(finite) else 1.0, gaps.max())) * 1.08
    x, y = _axes((first - 0.7, len(sequence) - 0.3), (0, top), width=2 * WIDTH)
    boxes = []
    for i, row in enumerate(np.minimum(quantiles, top)):
        left = x(first + i - 0.3)
        width = x(first + i + 0.3) - left
        boxes.append((left, y(row[4]), width, y(row[0]) - y(row[4]), "outer"))
        boxes.append((left, y(row[3]), width, y(row[1]) - y(row[3]), "inner"))
        boxes.append((left, y(row[2]) - 1, width, 2.0, "median"))
    return {
        "title": f"Forecasts on sequence {sequence.name}: when each event was expected, and when it came",
        "wide": True,
        "x": x,
        "y": y,
        "x_label": "event",
        "y_label": "gap",
        "boxes": boxes,
        "dots": [(x(first + i), y(gap), names[sequence.marks[first + i]][:10]) for i, gap in enumerate(gaps)],
    }


def location_plot(
    region: LocationRegion, history: NDArray[np.float64], observed: NDArray[np.float64]
) -> dict[str, Any]:
    """Density of the next place, its 90 % region, recent events (faded by age) and where it happened."""
    x, y = _axes((float(region.x[0]), float(region.x[-1])), (float(region.y[0]), float(region.y[-1])))
    step = 2
    top = float(region.density.max())
    cells = []
    for i in range(0, len(region.y) - step, step):
        for j in range(0, len(region.x) - step, step):
            value = float(region.density[i : i + step, j : j + step].mean())
            if value > 0.01 * top:
                left, upper = x(region.x[j]), y(region.y[i + step])
                shape = (left, upper, x(region.x[j + step]) - left + 0.3, y(region.y[i]) - upper + 0.3)
                cells.append((*shape, round(value / top, 3), value >= region.threshold))
    inside = (
        (history[:, 0] > region.x[0])
        & (history[:, 0] < region.x[-1])
        & (history[:, 1] > region.y[0])
        & (history[:, 1] < region.y[-1])
    )
    recent = history[inside][-30:]
    return {
        "title": "Where the next event was expected (blue: the 90 % region), and where it was (cross)",
        "x": x,
        "y": y,
        "x_label": "x",
        "y_label": "y",
        "cells": cells,
        "past": [(x(a), y(b)) for a, b in recent],
        "cross": (x(float(observed[0])), y(float(observed[1]))),
    }


def headline(forecaster: EventForecaster, result: ForecastEvaluation, last: EventSequence | None) -> list[str]:
    """What the numbers say, in sentences."""
    scores, unit = result.scores, f" {forecaster.unit}" if forecaster.unit else ""
    said = [
        f"Intervals asked to hold 90 % of the gaps held {scores['central_coverage_90']:.1%}, "
        f"those asked to hold 50 % held {scores['central_coverage_50']:.1%}."
    ]
    reach = float(metrics.share_reach(result.events["pit"][:, None] < 0.5, result.events["sequence"])[0])
    below = scores["coverage_50"]
    if abs(below - 0.5) > reach:
        said.append(
            f"Events come {'sooner' if below > 0.5 else 'later'} than forecast: {below:.1%} of the gaps are below the "
            "median that was forecast, more than chance explains."
        )
    beside = {name: values["crps"] for name, values in result.baselines.items() if "crps" in values}
    if beside:
        name = min(beside, key=lambda key: beside[key])
        gain = 1 - scores["crps"] / beside[name]
        said.append(
            f"The error of the forecast time (CRPS) is {abs(gain):.1%} {'smaller' if gain > 0 else 'larger'} than that "
            f"of the best forecast without a model ({name})."
            + ("" if gain > 0 else " For times that baseline is the better choice, or the model needs a longer fit.")
        )
    majority = [values["accuracy"] for name, values in result.baselines.items() if "majority" in name]
    if majority and forecaster.model.num_marks > 1:
        said.append(
            f"The most likely type was right in {scores['accuracy']:.1%} of the cases; always saying the most frequent "
            f"one gives {majority[0]:.1%}."
        )
    if last is not None:
        law = forecaster.next_event(last)
        low, high = law.interval(0.9)
        probs = law.mark_probs()
        top = max(probs, key=lambda name: probs[name])
        said.append(
            f"For example, after the last event of sequence {last.name}: with 90 % probability the next one comes "
            f"within {low:.3g} to {high:.3g}{unit}, most likely of type {top} ({probs[top]:.0%})."
        )
    return said


def score_rows(result: ForecastEvaluation) -> list[dict[str, Any]]:
    """The table: model with errors, baselines beside."""
    rows = []
    for name, label, higher in ROWS:
        if name not in result.scores:
            continue
        beside = [result.baselines[b].get(name) for b in result.baselines]
        rows.append(
            {
                "label": label,
                "better": {True: "higher", False: "lower", None: "near level"}[higher],
                "value": number(result.scores[name]),
                "error": number(result.errors[name]) if name in result.errors else "",
                "beside": ["" if value is None else number(value) for value in beside],
            }
        )
    return rows


def number(value: float) -> str:
    if math.isinf(value):
        return "infinite"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def write_report(
    path: Path,
    forecaster: EventForecaster,
    test: EventDataset,
    result: ForecastEvaluation,
    *,
    source: str = "",
    location: tuple[LocationRegion, NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> Path:
    """Writes the page.

    Args:
        path: the file.
        test: the events that were scored; a forecast is drawn on one of its longer sequences.
        source: what the data was, for the heading.
        location: a region to draw, the places before it, and where the event was.
    """
    lengths = [len(sequence) for sequence in test.sequences]
    shown = test.sequences[int(np.argsort(lengths)[len(lengths) // 2])] if max(lengths) > 1 else None
    if shown is not None and len(shown) < 2:
        shown = test.sequences[int(np.argmax(lengths))]
    plots = [calibration_plot(result), pit_plot(result), width_plot(result, forecaster.unit)]
    if location is not None:
        plots.append(location_plot(*location))
    if shown is not None:
        plots.append(forecast_plot(forecaster, shown, test.mark_names))
    environment = Environment(
        loader=PackageLoader("burnish.events", "templates"), autoescape=select_autoescape(["html", "j2"])
    )
    page = environment.get_template("report.html.j2").render(
        model=forecaster.model,
        objective=forecaster.objective,
        training=forecaster.training,
        unit=forecaster.unit or "data unit",
        source=source,
        said=headline(forecaster, result, shown),
        rows=score_rows(result),
        baselines=list(result.baselines),
        num_events=len(result.events["gap"]),
        num_sequences=len(test),
        notes=[*forecaster.notes, *result.notes],
        plots=plots,
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)
    return path
