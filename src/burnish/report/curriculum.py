"""Phases of training: every held-out set over the steps, in one picture, and where phases end."""

from __future__ import annotations

from burnish.core.page import Datum, Figure, Series
from burnish.core.page.charts import GUIDE
from burnish.report.figures import merged
from burnish.report.run import RunRecord

DRAWN = ("held out",)
"""Tables of the ledger that are shown here."""


def figures(run: RunRecord) -> list[Figure]:
    """One picture for each node that trained in phases."""
    phases = merged(run, "phases")
    return [_figure(node, rows, phases.get(node, [])) for node, rows in merged(run, "held out").items() if rows]


def _figure(node: str, rows: list[dict[str, object]], phases: list[dict[str, object]]) -> Figure:
    points: dict[str, list[Datum]] = {}
    for row in rows:
        step, value, low, high = (row.get(name) for name in ("at_step", "value", "low", "high"))
        assert isinstance(step, int | float) and isinstance(value, int | float), "the stage has written numbers"
        bounds = (low, high) if isinstance(low, float) and isinstance(high, float) and row["boundary"] else (None, None)
        points.setdefault(str(row["held_out"]), []).append(Datum(step, value, *bounds))
    solved = any(row.get("low") is not None for row in rows)
    height = 1.0 if solved else max(datum.y for data in points.values() for datum in data)
    ends = [
        Series(f"{phase['phase']} ends", [Datum(end, 0.0), Datum(end, height)], line=True, markers=False, style=GUIDE)
        for phase in phases
        if isinstance(end := phase.get("to_step"), int)
    ]
    told = "; ".join(f"{name} from {data[0].y:.3g} to {data[-1].y:.3g}" for name, data in points.items())
    return Figure(
        title=f"Held-out sets over the phases, {node}",
        description=told,
        x_label="step",
        y_label="solve rate" if solved else "loss, nats a token",
        series=[*(Series(name, data, line=True) for name, data in points.items()), *ends],
        note="; ".join(f"{phase['phase']} to step {phase['to_step']}: {phase['ended']}" for phase in phases),
        from_zero_x=True,
        from_zero_y=True,
        log_y=False,
        range_y=(0.0, 1.0) if solved else None,
    )
