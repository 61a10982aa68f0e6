"""The page of an evaluation: how honest forecast times are, beside forecasts without a model."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from burnish.core import page
from burnish.core.page import Cell, Column, Datum, Figure, Row, Section, Series, Table, numbers
from burnish.core.page.charts import GUIDE, NUM_STYLES
from burnish.events import metrics
from burnish.events.data import EventDataset
from burnish.events.evaluation import WIDTH_LEVELS, ForecastEvaluation
from burnish.events.forecaster import EventForecaster
from burnish.events.locations import LocationRegion
from burnish.events.sequence import EventSequence

_HIGHER, _LOWER, _LEVEL, _NOISE = "higher", "lower", "near level", "below is luck"
_SCORES = (
    ("loglik", "log-likelihood, nats per event", _HIGHER),
    ("loglik_time", "of which time", _HIGHER),
    ("loglik_tie", "of the time's, whether tied with the event before", _HIGHER),
    ("loglik_untied", "of the time's, untied gaps", _HIGHER),
    ("loglik_mark", "of which type, given the time", _HIGHER),
    ("crps", "CRPS of the time", _LOWER),
    ("calibration_score_19", "calibration score, 19 levels", _LOWER),
    ("calibration_score_19_by_chance", "that of the true law on so many events, by chance", _NOISE),
    ("calibration_score_upper", "calibration score, levels from 0.5", _LOWER),
    ("calibration_score_conformal", "calibration score of conformal levels, 19 levels", _LOWER),
    ("pit_ks", "PIT, Kolmogorov-Smirnov distance", _LOWER),
    ("coverage_50", "share below the 50 % quantile", _LEVEL),
    ("coverage_90", "share below the 90 % quantile", _LEVEL),
    ("mae", "mean absolute error of the median", _LOWER),
    ("rmse", "root mean squared error of the mean", _LOWER),
    ("accuracy", "type accuracy, before the event", _HIGHER),
    ("accuracy_given_time", "type accuracy, given the time", _HIGHER),
    ("accuracy_head", "type accuracy of the separate head", _HIGHER),
    ("ece", "type calibration error", _LOWER),
    ("loglik_location", "log-likelihood of the place given the time, nats per event", _HIGHER),
    ("location_cs", "calibration score of the place, levels 0.5 to 0.9", _LOWER),
    ("location_cs_by_chance", "that of the true law on so many places, by chance", _NOISE),
    ("energy_score", "energy score of the place", _LOWER),
    ("location_error", "mean distance to the mean place", _LOWER),
)
Place = tuple[LocationRegion, NDArray[np.float64], NDArray[np.float64]]
"""A region, the places before it, and where the event was."""


def calibration_figure(result: ForecastEvaluation) -> Figure:
    """Coverage against level; the diagonal is honest, the band is noise (95 %, over sequences)."""
    levels = np.linspace(0.01, 0.99, 99)
    pit = result.events["pit"]
    covered = metrics.coverage(pit, tuple(levels))
    noise = metrics.share_reach(pit[:, None] < levels, result.events["sequence"])
    honest = [Datum(q, q, max(q - e, 0), min(q + e, 1)) for q, e in zip(levels, noise, strict=True)]
    found = [Datum(q, c) for q, c in zip(levels, covered, strict=True)]
    return Figure(
        title="Calibration",
        note="The curve of an honest forecast stays on the diagonal; above it, events come sooner than forecast.",
        description=f"the forecast's median has {numbers.percent(covered[49])} of the gaps below it",
        x_label="level",
        y_label="share of gaps below the quantile",
        series=[_honest(honest), Series("this forecast", found, line=True, markers=False, style=0)],
        range_x=(0, 1),
        range_y=(0, 1),
        half=True,
    )


def pit_figure(result: ForecastEvaluation, num_bins: int = 20) -> Figure:
    """Histogram of the PIT: flat for the true law; the band is noise (95 %, over sequences)."""
    pit = result.events["pit"]
    bins = np.minimum((pit * num_bins).astype(int), num_bins - 1)
    inside = bins[:, None] == np.arange(num_bins)
    density = inside.mean(0) * num_bins
    noise = num_bins * metrics.share_reach(inside, result.events["sequence"])
    top = max(1.3, float(density.max()) * 1.05)
    edges = [(i / num_bins, (i + 1) / num_bins, e) for i, e in enumerate(noise)]
    honest = [Datum(x, 1.0, max(1 - e, 0), min(1 + e, top)) for left, right, e in edges for x in (left, right)]
    bars = [Datum((i + 0.5) / num_bins, value) for i, value in enumerate(density)]
    return Figure(
        title="Probability integral transform",
        note="Flat is honest; a hump means intervals too wide, a bowl too narrow, a slope a shift.",
        description=f"densities from {density.min():.2f} to {density.max():.2f}",
        x_label="F(gap)",
        y_label="density",
        series=[Series("this forecast", bars, bars=0.9 / num_bins, style=0), _honest(honest)],
        range_x=(0, 1),
        range_y=(0, top),
        half=True,
    )


def _honest(data: list[Datum]) -> Series:
    return Series("honest, with 95 % noise", data, line=True, markers=False, style=GUIDE)


def width_figure(result: ForecastEvaluation, unit: str) -> Figure:
    """Mean width of central intervals against the coverage they reach."""
    data = []
    for level in WIDTH_LEVELS:
        width, covered = (result.scores[f"{name}_{round(100 * level)}"] for name in ("width", "central_coverage"))
        if math.isfinite(width):
            told = f"asked {numbers.percent(level, 0)}, reached {numbers.percent(covered)}, width {width:.3g}"
            data.append(Datum(covered, width, label=numbers.percent(level, 0), title=told))
    return Figure(
        title="Interval width against coverage",
        note="What a central interval costs in width for the share of events that it held; at each point, the share "
        "that was asked for.",
        description="; ".join(one.title for one in data),
        x_label="coverage reached",
        y_label=f"mean width{f', {unit}' if unit else ''}",
        series=[Series("", data, line=True)],
        range_x=(0, 1),
        range_y=(0, 1.1 * max((one.y for one in data), default=1.0)),
        half=True,
    )


def forecast_figure(
    forecaster: EventForecaster, sequence: EventSequence, names: tuple[str, ...], num_shown: int = 24
) -> Figure:
    """The last events of a sequence and, before each, the 50 % and 90 % intervals for when it would come."""
    first = max(len(sequence) - num_shown, 1)
    prefixes = [sequence.head(i) for i in range(first, len(sequence))]
    law = forecaster.next_events(EventDataset(tuple(prefixes), names))
    with torch.no_grad():
        quantiles = law.quantile([0.05, 0.25, 0.5, 0.75, 0.95]).double().numpy()
    gaps, marks = sequence.gaps[first:], sequence.marks[first:]
    finite = quantiles[np.isfinite(quantiles)]
    top = float(max(np.quantile(finite, 0.98) if len(finite) else 1.0, gaps.max())) * 1.08
    rows = list(enumerate(np.minimum(quantiles, top), start=first))
    came = [
        Datum(first + i, gap, title=f"event {first + i}, {names[mark]}: {gap:.3g}")
        for i, (gap, mark) in enumerate(zip(gaps, marks, strict=True))
    ]
    types = list(dict.fromkeys(marks)) if len(set(marks)) < NUM_STYLES else []
    by_type = [
        (f", type {names[kind]}", [d for d, mark in zip(came, marks, strict=True) if mark == kind]) for kind in types
    ]
    return Figure(
        title=f"Forecasts on sequence {sequence.name}: when each event was expected, and when it came",
        description="; ".join(one.title for one in came),
        x_label="event",
        y_label=f"gap{f', {forecaster.unit}' if forecaster.unit else ''}",
        series=[
            Series("90 % interval", [Datum(i, q[2], q[0], q[4]) for i, q in rows], bars=0.6, style=GUIDE),
            Series("50 % interval", [Datum(i, q[2], q[1], q[3]) for i, q in rows], bars=0.6, style=0),
            *(Series(f"came{name}", data, style=1 + i) for i, (name, data) in enumerate(by_type or [("", came)])),
        ],
        range_y=(0, top),
    )


def location_figure(region: LocationRegion, history: NDArray[np.float64], observed: NDArray[np.float64]) -> Figure:
    """Density of the next place, darker the higher, its 90 % region, recent events and where it happened."""
    low, high = np.array([region.x[0], region.y[0]]), np.array([region.x[-1], region.y[-1]])
    recent = history[((history > low) & (history < high)).all(axis=1)][-30:]
    top = float(region.density.max())
    denser = [region.threshold + share * (top - region.threshold) for share in (0.25, 0.5, 0.75)]
    return Figure(
        title="Where the next event was expected, and where it was",
        description=f"it happened at {observed[0]:.4g}, {observed[1]:.4g}",
        x_label="x",
        y_label="y",
        series=[
            _above(region, 0.02 * top, "", GUIDE),
            _above(region, region.threshold, "90 % region", 0),
            *(_above(region, level, "", 0) for level in denser),
            Series("earlier events", [Datum(float(a), float(b)) for a, b in recent], style=3),
            Series("where it was", [Datum(float(observed[0]), float(observed[1]))], style=1),
        ],
        range_x=(float(low[0]), float(high[0])),
        range_y=(float(low[1]), float(high[1])),
        half=True,
    )


def _above(region: LocationRegion, level: float, name: str, style: int) -> Series:
    """Where the density is at least `level`: in each column of the grid, boxes over its runs of such cells."""
    dx, dy = (float(axis[1] - axis[0]) for axis in (region.x, region.y))
    boxes = []
    for x, column in zip(region.x, region.density.T, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], column >= level, [False]]).astype(int)))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            bottom = float(region.y[start]) - dy / 2
            boxes.append(Datum(float(x), bottom, bottom, bottom + dy * int(stop - start)))
    return Series(name, boxes, bars=dx, style=style)


def headline(forecaster: EventForecaster, result: ForecastEvaluation, last: EventSequence | None) -> list[str]:
    """What the numbers say, in sentences."""
    scores, percent = result.scores, numbers.percent
    said = [
        f"Intervals asked to hold {percent(0.9, 0)} of the gaps held {percent(scores['central_coverage_90'])}, "
        f"those asked to hold {percent(0.5, 0)} held {percent(scores['central_coverage_50'])}."
    ]
    reach = float(metrics.share_reach(result.events["pit"][:, None] < 0.5, result.events["sequence"])[0])
    below = scores["coverage_50"]
    if abs(below - 0.5) > reach:
        said.append(
            f"Events come {'sooner' if below > 0.5 else 'later'} than forecast: {percent(below)} of the gaps are below "
            "the median that was forecast, more than chance explains."
        )
    losing = _losing(result)
    if losing:
        said.insert(0, losing)
    beside = _best(result, "crps")
    if beside is not None and not losing:
        name, best = beside
        gain = 1 - scores["crps"] / best if best > 0 else 0.0
        said.append(
            f"The error of the forecast time (CRPS) is {percent(gain)} smaller than that of the best forecast without "
            f"a model ({name})."
            if gain >= 0.0005
            else f"The error of the forecast time (CRPS) is that of the best forecast without a model ({name})."
        )
    majority = [values["accuracy"] for name, values in result.baselines.items() if "majority" in name]
    if majority and forecaster.model.num_marks > 1:
        said.append(
            f"The most likely type was right in {percent(scores['accuracy'])} of the cases; always saying the most "
            f"frequent one gives {percent(majority[0])}."
        )
    if "share_tied" in scores:
        said.append(
            f"{percent(scores['share_tied'])} of the events came at the time of the one before; the forecast "
            f"probability of that is {percent(scores['prob_tie'])} on average."
        )
    return said if last is None else [*said, _example(forecaster, last)]


def _best(result: ForecastEvaluation, measure: str) -> tuple[str, float] | None:
    """The baseline that is best in a measure of which less is better."""
    values = {name: scores[measure] for name, scores in result.baselines.items() if measure in scores}
    return min(values.items(), key=lambda pair: pair[1]) if values else None


def _losing(result: ForecastEvaluation) -> str:
    """What a forecast without a model does better, as the first thing to say; empty where nothing."""
    scores, lost = result.scores, []
    best = _best(result, "crps")
    if best is not None and scores["crps"] > best[1] * 1.0005:
        lost.append(f"times (CRPS {numbers.significant(scores['crps'])}, {best[0]} {numbers.significant(best[1])})")
    known = {name: values["loglik"] for name, values in result.baselines.items() if "loglik" in values}
    if known and scores["loglik"] < max(known.values()):
        name = max(known, key=lambda key: known[key])
        lost.append(f"likelihood ({scores['loglik']:.3f} nats per event, {name} {known[name]:.3f})")
    types = {name: values["accuracy"] for name, values in result.baselines.items() if "accuracy" in values}
    if types and scores["accuracy"] < max(types.values()) - 0.0005:
        name = max(types, key=lambda key: types[key])
        lost.append(f"types ({numbers.percent(scores['accuracy'])} right, {name} {numbers.percent(types[name])})")
    if not lost:
        return ""
    return f"A forecast without a model is better here in {' and '.join(lost)}: use it, or fit longer or on more data."


def _example(forecaster: EventForecaster, last: EventSequence) -> str:
    law = forecaster.next_event(last)
    low, high = law.interval(0.9)
    probs = law.mark_probs()
    top = max(probs, key=lambda name: probs[name])
    wait = f"{low:.3g} to {high:.3g}{f' {forecaster.unit}' if forecaster.unit else ''}"
    return (
        f"For example, after the last event of sequence {last.name}: with {numbers.percent(0.9, 0)} probability the "
        f"next one comes within {wait}, most likely of type {top} ({numbers.percent(probs[top], 0)})."
    )


def score_table(result: ForecastEvaluation) -> Table:
    """The model's scores with their errors, those of the baselines beside them."""
    rows = []
    for name, label, better in _SCORES:
        if name in result.scores:
            value, error = result.scores[name], result.errors.get(name)
            beside = [values.get(name) for values in result.baselines.values()]
            model = numbers.significant(value, 4) if error is None else numbers.with_error(value, error)
            texts = [model, *("" if value is None else numbers.significant(value, 4) for value in beside), better]
            rows.append(Row(label, [Cell(text) for text in texts]))
    columns = [Column(name) for name in ("Model", *result.baselines, "Better")]
    return Table("Scores of the model and of forecasts without one", "Measure", columns, [Section(rows)])


def write_report(
    path: Path,
    forecaster: EventForecaster,
    test: EventDataset,
    result: ForecastEvaluation,
    *,
    source: str = "",
    location: Place | None = None,
) -> Path:
    """Writes the page.

    Args:
        path: the file.
        test: the events that were scored; a forecast is drawn on one of its longer sequences.
        source: what the data was, for the heading.
        location: a place to draw.

    Raises:
        OutputError: the place cannot be written to.
    """
    lengths = [len(sequence) for sequence in test.sequences]
    middle, longest = int(np.argsort(lengths)[len(lengths) // 2]), int(np.argmax(lengths))
    shown = test.sequences[middle if lengths[middle] > 1 else longest] if lengths[longest] > 1 else None
    small = [calibration_figure(result), pit_figure(result), width_figure(result, forecaster.unit)]
    text = page.render(
        "burnish.events",
        "report.html.j2",
        model=forecaster.model,
        objective=forecaster.objective,
        epochs=(forecaster.training.get("epochs_run", 0), forecaster.training.get("best_epoch", 0) + 1),
        unit=forecaster.unit or "data unit",
        source=source,
        said=headline(forecaster, result, shown),
        scores=score_table(result),
        num_events=len(result.events["gap"]),
        num_sequences=len(test),
        remarks=[*forecaster.notes, *result.notes],
        small=[*small, *([location_figure(*location)] if location is not None else [])],
        large=[forecast_figure(forecaster, shown, test.mark_names)] if shown is not None else [],
    )
    return page.write(path, text)
