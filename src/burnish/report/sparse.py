"""Scores of RULER against the density of sparse attention: what each mechanism keeps for what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.core.page import Datum, Figure, Series
from burnish.core.page.numbers import percent
from burnish.report.figures import best_for_size, is_number, merged, staircase
from burnish.report.run import RunRecord

COSTS, SCORES = "sparse_attention", "ruler_scores"
DRAWN = (COSTS,)
"""Names of the ledger's tables."""
DENSE = "dense"
_MOST = 6

Row = Mapping[str, Any]
Kind = tuple[str, int, str, tuple[int, ...]]
"""Node, length, protocol, dense layers: what two points of one picture share."""


def figures(run: RunRecord) -> list[Figure]:
    """One picture of every node, length and protocol that was answered sparsely: a series for each task."""
    found: dict[Kind, dict[tuple[str, str], Row]] = {}
    for node, rows in merged(run, COSTS).items():
        for row in rows:
            if all(is_number(row.get(name)) for name in ("length", "density", "score")):
                kind = (node, row["length"], str(row["attention_protocol"]), tuple(row["dense_layers"]))
                found.setdefault(kind, {})[str(row["task"]), str(row["attention"])] = row  # the newest counts
    return [_figure(kind, list(rows.values()), _dense(run, kind)) for kind, rows in list(found.items())[:_MOST]]


def _dense(run: RunRecord, kind: Kind) -> dict[str, Row]:
    """Scores by dense attention at that length, {task: row}."""
    rows = merged(run, SCORES).get(kind[0], [])
    plain = [row for row in rows if row.get("length") == kind[1] and not {"attention", "slip"} & set(row)]
    return {str(row["task"]): row for row in plain}


def _figure(kind: Kind, rows: Sequence[Row], dense: Mapping[str, Row]) -> Figure:
    node, length, protocol, layers = kind
    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    own = [{**row} | {"density": 1.0, "attention": DENSE} for task, row in dense.items() if task in tasks]
    every = [*rows, *own]
    series = [Series(task, [_datum(row) for row in every if row["task"] == task]) for task in tasks]
    best = [(x, -loss) for x, loss in best_for_size([(x, -y) for x, y in _means(every, tasks)])]
    stays = f"; dense layers {', '.join(map(str, layers))}" if layers else ""
    return Figure(
        title=f"Score against density, {node}, {length:,} tokens",
        description="; ".join(datum.title for one in series for datum in one.data),
        x_label="share of the keys that is looked at",
        y_label="score",
        series=series,
        steps=staircase(best) if len(best) > 1 else (),
        steps_name=("best mean of the tasks" if len(tasks) > 1 else "best") + " at its density or below"
        if len(best) > 1
        else "",
        note=f"protocol {protocol}: {'the answer' if protocol == 'A' else 'question and answer'} sparse{stays}",
        range_x=(0.0, 1.0),
        range_y=(0.0, 1.0),
        tick_x=percent,
    )


def _datum(row: Row) -> Datum:
    name = str(row["attention"])
    title = f"{name}, {row['task']}: score {row['score']:.2f} at density {row['density']:.2f}"
    return Datum(row["density"], row["score"], row.get("score_low"), row.get("score_high"), _short(name), title)


def _short(attention: str) -> str:
    """The part that tells a mechanism from others: the last one, which fills what sinks and windows leave."""
    return attention.rpartition("+")[2].partition(":")[0]


def _means(rows: Sequence[Row], tasks: Sequence[str]) -> list[tuple[float, float]]:
    """Mean density and score of every attention that answered all tasks."""
    found = []
    for name in dict.fromkeys(str(row["attention"]) for row in rows):
        own = [row for row in rows if row["attention"] == name]
        if len(own) == len(tasks):
            found.append(tuple(sum(row[key] for row in own) / len(own) for key in ("density", "score")))
    return [(density, score) for density, score in found]
