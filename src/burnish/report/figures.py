"""The plots of the page: quality against size, loss curves, calibration curves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Any

from burnish.core.page import Datum, Figure, Series
from burnish.core.page.numbers import number_bytes, number_count, tick_bytes, tick_count
from burnish.report.compare import Checkpoint, protocols
from burnish.report.metrics import KL, PERPLEXITY, SIZE, Metric, metric
from burnish.report.protocols import describe_protocol, listing
from burnish.report.run import LedgerTable, RunRecord

_MAX_FRONTIERS = 4
LOG_FROM_RATIO = {KL: 20.0, PERPLEXITY: 3.0}
"""Values that span more than this factor get a logarithmic axis; equal steps of log perplexity are equal losses."""
_MOST_MARKERS = 30
_MAX_OTHER_CURVES = 5
_CURVE_NAMES = {"lr": "learning rate", "grad_norm": "gradient norm"}
_STEP_NAMES = ("step", "steps", "iteration")


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -- quality against size ----------------------------------------------------------------------------------------------


def frontiers(columns: Sequence[Checkpoint], runs: Sequence[RunRecord]) -> list[Figure]:
    """Quality against size on disk, one plot per protocol and quality metric with at least two checkpoints."""
    found = []
    known = protocols(columns)
    for digest, protocol in known.items():
        note = describe_protocol(protocol) if len(known) > 1 else ""
        for name in (KL, PERPLEXITY):
            data = [[_point(c, digest, metric(name)) for c in columns if c.run == index] for index in range(len(runs))]
            series = [
                Series(run.name, [datum for datum in of_run if datum]) for run, of_run in zip(runs, data, strict=True)
            ]
            if sum(len(one.data) for one in series) >= 2:
                found.append(_frontier([one for one in series if one.data], metric(name), note))
    return found[:_MAX_FRONTIERS]


def _point(column: Checkpoint, digest: str, what: Metric) -> Datum | None:
    size, quality = column.exact_value(SIZE), column.value(what.name, digest)
    if size is None or size.value is None or quality is None or quality.value is None:
        return None
    interval = what.write_interval(quality)
    title = f"{column.label}: {number_bytes(size.value)}, {what.label} {what.write(quality)}"
    low, high = quality.interval or (None, None)
    return Datum(size.value, quality.value, low, high, column.node, title + (f" ({interval})" if interval else ""))


def _frontier(series: list[Series], what: Metric, note: str) -> Figure:
    everything = [datum for one in series for datum in one.data]
    positive = [d.y for d in everything if d.y > 0]
    log = bool(positive) and max(positive) / min(positive) > LOG_FROM_RATIO[what.name]
    if log and len(positive) < len(everything):  # a start that is its own reference
        at_zero = listing([d.label for d in everything if d.y <= 0])
        series = [Series(one.name, [d for d in one.data if d.y > 0]) for one in series]
        note = "; ".join(filter(None, (note, f"{at_zero}, at 0, is not on the logarithmic axis")))
    points = [(d.x, d.y) for one in series for d in one.data]
    best = best_for_size(points)
    ratio = max(x for x, _ in points) / max(min(x for x, _ in points), 1e-9)
    return Figure(
        title=f"{what.label} against size",
        description="; ".join(datum.title for one in series for datum in one.data),
        x_label="size on disk",
        y_label=f"{what.label}, {what.unit}" if what.unit else what.label,
        series=series,
        steps=staircase(best) if len(best) > 1 else (),
        steps_name="best at its size or smaller" if len(best) > 1 else "",
        note=note,
        log_x=ratio > 8,
        log_y=log,
        from_zero_x=ratio > 2,
        from_zero_y=what.name == KL,
        tick_x=tick_bytes,
    )


def best_for_size(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point beats on both axes, from small to large; lower is better."""
    best: list[tuple[float, float]] = []
    for size, error in sorted(set(points)):
        if not best or error < best[-1][1]:
            best.append((size, error))
    return best


def staircase(best: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Corners of the line that goes on at a value until the next better one."""
    corners = [best[0]]
    for (_, error), (size, lower) in itertools.pairwise(best):
        corners += [(size, error), (size, lower)]
    return corners


# -- curves of a table -------------------------------------------------------------------------------------------------


def curve_tables(run: RunRecord) -> list[str]:
    """Names of the tables that are drawn over steps: those whose rows have a step and something measured at it."""
    names = {}
    for table in run.tables:
        step = _step_name(table.rows)
        if step and len(table.rows) > 1 and _numeric(table.rows, skip={step}):
            names[table.name] = None
    return list(names)


def curves(run: RunRecord, *, apart: Collection[str] = ()) -> list[Figure]:
    """What a stage logged over its steps: losses in one picture, one series per node and column; others below.

    Args:
        run: what was logged.
        apart: columns that have pictures elsewhere.
    """
    losses: list[Series] = []
    others: dict[str, list[Series]] = {}
    # What a bound costs comes first: it is what the run was made for, and each further picture may be one too many.
    for table in sorted(curve_tables(run), key=lambda name: name != "constraints"):
        for node, rows in merged(run, table).items():
            for name, data in _over_steps(rows).items():
                if name in apart:
                    continue
                is_loss = "loss" in name or name in ("nats", "kl", "ce")
                label = f"{node}, {name.replace('_', ' ')}" if is_loss and name != "loss" else node
                one = Series(label, data, line=True, markers=len(data) <= _MOST_MARKERS)
                (losses if is_loss else others.setdefault(name, [])).append(one)
    figures = [_curve("Training loss", losses, y_label="loss")] if losses else []
    for name, series in list(others.items())[:_MAX_OTHER_CURVES]:
        label = _CURVE_NAMES.get(name, name.replace("_", " "))
        figures.append(_curve(label[:1].upper() + label[1:], series, short=True))
    return figures


def _over_steps(rows: Sequence[dict[str, Any]]) -> dict[str, list[Datum]]:
    """{column: its values over the steps}; a resumed stage repeats some steps, and its later values count."""
    step = _step_name(rows)
    if step is None:
        return {}
    newest = {row[step]: row for row in rows if is_number(row.get(step))}
    ordered = [newest[number] for number in sorted(newest)]
    return {
        name: [Datum(row[step], row[name]) for row in ordered if is_number(row.get(name))]
        for name in _numeric(ordered, skip={step, "time", "seconds", "epoch", "bound_tokens"})
    }


def _curve(title: str, series: Sequence[Series], *, y_label: str = "", short: bool = False) -> Figure:
    parts = [f"{one.name} from {one.data[0].y:.4g} to {one.data[-1].y:.4g}" for one in series]
    last = max(one.data[-1].x for one in series)
    return Figure(
        title=title,
        description=f"{'; '.join(parts)}, over {last:,.0f} steps",
        x_label="step",
        y_label=y_label,
        series=series,
        from_zero_x=True,
        from_zero_y=short,
        log_y=False,
        short=short,
    )


def _step_name(rows: Sequence[dict[str, Any]]) -> str | None:
    return next((name for name in _STEP_NAMES if rows and name in rows[0]), None)


def calibration_figures(run: RunRecord) -> list[Figure]:
    """Divergence against the number of calibration tokens, one series per method."""
    groups: dict[str, list[Datum]] = {}
    for node, rows in merged(run, "calibration").items():
        for row in rows:
            if is_number(row.get("tokens")) and row["tokens"] > 0 and is_number(row.get("kl")):
                name = str(row.get("method", node))
                low, high = row.get("low"), row.get("high")
                title = f"{name}, {number_count(row['tokens'])} tokens: {row['kl']:.4g}"
                groups.setdefault(name, []).append(Datum(row["tokens"], row["kl"], low, high, title=title))
    if not groups:
        return []
    series = [Series(name, sorted(data, key=lambda d: d.x), line=True) for name, data in groups.items()]
    tokens = [datum.x for one in series for datum in one.data]
    return [
        Figure(
            title=f"{metric(KL).label} against calibration data",
            description="; ".join(datum.title for one in series for datum in one.data),
            x_label="calibration tokens",
            y_label=f"{metric(KL).label}, {metric(KL).unit}",
            series=series,
            log_x=max(tokens) / min(tokens) > 4,
            log_y=None,
            from_zero_y=True,
            tick_x=tick_count,
        )
    ]


def merged(run: RunRecord, name: str) -> dict[str, list[dict[str, Any]]]:
    """{node: rows} of every table of this name, in the order of the ledger."""
    merged: dict[str, list[dict[str, Any]]] = {}
    for table in run.tables:
        if table.name == name:
            merged.setdefault(table.node, []).extend(table.rows)
    return merged


def _numeric(rows: Sequence[dict[str, Any]], *, skip: set[str]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name, value in row.items() if is_number(value))
    return [name for name in names if name not in skip]


def newest_tables(run: RunRecord, name: str) -> list[LedgerTable]:
    """The newest table of this name of each node."""
    return list({table.node: table for table in run.tables if table.name == name}.values())
