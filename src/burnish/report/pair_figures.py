"""Pictures of a reward on preference pairs: whether its confidence is true, and how its margins lie."""

from __future__ import annotations

from burnish.core.page import Datum, Figure, Series
from burnish.core.page.charts import GUIDE
from burnish.report.figures import is_number, newest_tables
from burnish.report.run import RunRecord

CALIBRATION, MARGINS = "pair_calibration", "pair_margins"
DRAWN = (CALIBRATION, MARGINS)
"""Names of the ledger's tables."""


def figures(run: RunRecord) -> list[Figure]:
    """The calibration curves of all nodes in one picture, then each node's histogram of margins."""
    series = []
    for table in newest_tables(run, CALIBRATION):
        rows = [row for row in table.rows if is_number(row.get("confidence")) and is_number(row.get("right"))]
        data = [Datum(row["confidence"], row["right"], row.get("low"), row.get("high")) for row in rows]
        if data:
            series.append(Series(table.node, data, line=True))
    found = [_calibration(series)] if series else []
    for table in newest_tables(run, MARGINS):
        data = [Datum(row["margin"], row["pairs"]) for row in table.rows if is_number(row.get("margin"))]
        if len(data) > 1:
            found.append(_histogram(table.node, data))
    return found


def _calibration(series: list[Series]) -> Figure:
    told = [f"{one.name}: at {one.data[-1].x:.0%} confidence {one.data[-1].y:.0%} right" for one in series]
    truth = Series("calibrated", [Datum(0.5, 0.5), Datum(1.0, 1.0)], line=True, markers=False, style=GUIDE)
    return Figure(
        title="Calibration on preference pairs",
        description="; ".join(told),
        x_label="confidence, sigma of |margin|",
        y_label="share of pairs ranked right",
        series=[*series, truth],
        note="Parts of like size, by rising margin; 95 % over questions. Below the dotted line it is too sure.",
        range_x=(0.5, 1.0),
        range_y=(0.0, 1.0),
    )


def _histogram(node: str, data: list[Datum]) -> Figure:
    width = data[1].x - data[0].x
    wrong = sum(one.y for one in data if one.x < 0) / max(1, sum(one.y for one in data))
    return Figure(
        title=f"Margins of {node}",
        description=f"{wrong:.0%} of the pairs are below zero, where the rejected answer has the larger reward",
        x_label="reward of the chosen answer minus the rejected one",
        y_label="pairs",
        series=[
            Series("ranked wrong", [one for one in data if one.x < 0], bars=width, style=1),
            Series("ranked right", [one for one in data if one.x > 0], bars=width, style=0),
        ],
        from_zero_y=True,
        log_y=False,
    )
