"""Training by verifiable rewards: what was earned, how it was distributed, lengths by difficulty, control, time.

The reward that is drawn is the unfiltered one: of every answer that was drawn, before rules of length and before any
group is left out. A page of what was drawn is beside the ledger, where there is one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from burnish.core.page import Cell, Column, Datum, Figure, Row, Section, Series, Small, Table, numbers
from burnish.core.page.charts import GUIDE
from burnish.data.trajectories.pages import LIST_FILE
from burnish.report.figures import is_number, newest_tables
from burnish.report.run import RunRecord

TRAINING, SOLVED, DIFFICULTY, COUNTS, ANSWERS = "rl_training", "rl_solved", "rl_difficulty", "rl_counts", "rl_answers"
AGES = "rl_staleness"
DRAWN = (SOLVED, AGES, DIFFICULTY, COUNTS, ANSWERS)
"""Names of the ledger's tables that are shown here alone."""
PAGES = "drawn"
"""Folder of a run with pages of what each node has drawn."""

EARNED = {"accuracy": "right", "reward": "reward with the rule of length", "alpha": "alpha", "target": "target"}
SHARES = {
    "without variance": "nothing to learn from: all answers earned the same",
    "none solved": "no answer right",
    "all solved": "all answers right",
    "cut off": "answers cut off",
    "unscorable": "answers without a reward",
    "clipped": "tokens clipped",
    "replayed": "groups of earlier updates",
    "refilled": "groups of problems drawn in the places of others",
    "groups with variance of all drawn": "groups with variance, of all that were drawn",
    "cut off by the correction": "tokens that the correction cuts off",
}
RATIO, KL = {"ratio furthest from 1": "of the token furthest from 1"}, {"KL to the sampler": "k3, a token"}
STALENESS = {"staleness": "mean", "staleness at most": "largest"}
"""Columns of the table of updates, and what their series are called."""
SECONDS = ("seconds of drawing", "seconds of judging", "seconds of the update")
DRAWN_AHEAD = "seconds of drawing ahead"
"""What the answers of an update took who drew them; the seconds of drawing are then those that the learner waited."""
APART = {*EARNED, *SHARES, *RATIO, *KL, *STALENESS, *SECONDS, DRAWN_AHEAD} - {"accuracy"}
"""Columns that are drawn here and need no picture that compares nodes."""


@dataclass(frozen=True)
class RLView:
    """What the page shows of one node.

    Attributes:
        node: its name.
        page: address of the list of what was drawn; "" where there is none.
        figures: of its updates, and lengths by difficulty.
        difficulty: accuracy and tokens before and after; None where nothing was held out.
        counts: name and number.
        answers: some that were written, before and after.
    """

    node: str
    page: str
    figures: list[Figure]
    difficulty: Table | None
    counts: list[tuple[str, str]]
    answers: list[tuple[str, ...]]


def views(run: RunRecord, place: Path) -> list[RLView]:
    """One for each node that was trained so.

    Args:
        run: what was logged.
        place: directory of the report, from which pages are linked.
    """
    rows = {name: {one.node: one.rows for one in newest_tables(run, name)} for name in (TRAINING, *DRAWN)}
    return [
        RLView(
            node,
            _address(run, node, place),
            _figures(updates, {name: rows[name].get(node, []) for name in (SOLVED, AGES, DIFFICULTY)}),
            _difficulty(rows[DIFFICULTY][node]) if rows[DIFFICULTY].get(node) else None,
            [(str(row["what"]), f"{row['number']:,}") for row in rows[COUNTS].get(node, [])],
            [_answer(row) for row in rows[ANSWERS].get(node, [])],
        )
        for node, updates in rows[TRAINING].items()
        if updates
    ]


def _address(run: RunRecord, node: str, place: Path) -> str:
    page = run.directory / PAGES / node / LIST_FILE
    return quote(Path(os.path.relpath(page, place)).as_posix()) if page.is_file() else ""


def _answer(row: Mapping[str, Any]) -> tuple[str, ...]:
    judged = "right" if row["right"] else "wrong"
    return str(row["question"]), str(row["when"]), judged, f"{row['tokens']:,}", str(row["answer"])


# -- pictures ----------------------------------------------------------------------------------------------------------


def _figures(updates: Sequence[Mapping[str, Any]], tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Figure]:
    """Of the updates, and of other tables of the ledger by name."""
    solved = tables[SOLVED]
    made = [
        _over_updates(updates, EARNED, "Reward of every answer, and the controller", "share, or alpha"),
        _solve_rates(
            tables[SOLVED], "problems", "How many answers of a problem are right", "share of the problems", bars=True
        ),
        _solve_rates(solved, "tokens", "Length against how hard a problem is", "tokens of its answers"),
        _lengths(tables[DIFFICULTY]),
        _over_updates(updates, SHARES, "Shares", "share"),
        _over_updates(updates, RATIO, "Ratio of trainer to sampler, less 1", "", note=_EXACT),
        _over_updates(updates, KL, "Divergence of trainer and sampler", "nats"),
        _over_updates(updates, STALENESS, "Staleness", "updates since the weights that drew"),
        _ages(tables[AGES]),
        _seconds(updates),
    ]
    return [one for one in made if one is not None]


_EXACT = "Each token's probability when it is trained on, against the one that it was drawn with."


def _over_updates(
    updates: Sequence[Mapping[str, Any]], columns: Mapping[str, str], title: str, y_label: str, note: str = ""
) -> Figure | None:
    series = []
    for column, name in columns.items():
        data = [Datum(row["step"], row[column]) for row in updates if is_number(row.get(column))]
        if not data or (column == "reward" and all(row.get("reward") == row.get("accuracy") for row in updates)):
            continue
        series.append(Series(name, data, line=True, markers=False))
    return _figure(title, "update", y_label, series, note=note) if series else None


def _solve_rates(
    solved: Sequence[Mapping[str, Any]], column: str, title: str, y_label: str, bars: bool = False
) -> Figure | None:
    parts = dict.fromkeys(str(row["part"]) for row in solved)
    width = 0.8 / max(len(parts), 1)
    series = []
    for number, part in enumerate(parts):
        rows = [row for row in solved if row["part"] == part and is_number(row.get(column))]
        move = (number - (len(parts) - 1) / 2) * width if bars else 0.0
        data = [Datum(row["right"] + move, row[column], title=f"{row['right']} of {row['of']}") for row in rows]
        if data:
            series.append(Series(part, data, line=not bars, bars=width if bars else 0.0))
    of = max((row["of"] for row in solved), default=0)
    return _figure(title, f"right answers of {of}", y_label, series) if series else None


def _lengths(difficulty: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Tokens of held-out answers, where there are several difficulties."""
    bins = [name for name in dict.fromkeys(str(row["difficulty"]) for row in difficulty) if name != "mean"]
    if len(bins) < 2:
        return None
    ways = dict.fromkeys((str(row["when"]), str(row["drawn"])) for row in difficulty)
    series = [
        Series(
            f"{when}, {how}",
            [
                Datum(
                    bins.index(row["difficulty"]) + 1, row["tokens"], title=f"{row['difficulty']}: {row['tokens']:.1f}"
                )
                for row in difficulty
                if (row["when"], row["drawn"]) == (when, how) and row["difficulty"] in bins
            ],
            line=True,
        )
        for when, how in ways
    ]
    note = f"Held-out problems, from {bins[0]} to {bins[-1]}."
    return _figure("Tokens by difficulty", "difficulty, from easy to hard", "tokens", series, note=note)


def _ages(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """How many answers were learned from so many updates after the weights were there that drew them."""
    if not rows:
        return None
    series = [Series("answers", [Datum(row["staleness"], row["answers"]) for row in rows], bars=0.8)]
    return _figure("Answers by staleness", "updates since the weights that drew", "answers", series)


def _seconds(updates: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Seconds of an update apart: drawing answers, judging them, and what is left, which is learning.

    An update on answers that were there already draws and judges none.
    """
    rows = [row for row in updates if is_number(row.get(SECONDS[2]))]
    if not rows:
        return None
    drawing, judging = ([row.get(name, 0.0) for row in rows] for name in SECONDS[:2])
    learning = [row[SECONDS[2]] - one - other for row, one, other in zip(rows, drawing, judging, strict=True)]
    parts = {"drawing": drawing, "judging": judging, "learning": learning}
    series = [
        Series(name, [Datum(row["step"], one) for row, one in zip(rows, values, strict=True)], line=True, markers=False)
        for name, values in parts.items()
    ]
    told = ", ".join(f"{name} {numbers.number_seconds(sum(values))}" for name, values in parts.items())
    ahead = sum(row.get(DRAWN_AHEAD, 0.0) for row in rows)
    beside = f" Answers of later updates were drawn in {numbers.number_seconds(ahead)}." if ahead else ""
    return _figure("Time of an update", "update", "seconds", series, note=f"In all: {told}.{beside}")


def _figure(title: str, x_label: str, y_label: str, series: Sequence[Series], note: str = "") -> Figure:
    told = [f"{one.name} from {one.data[0].y:.4g} to {one.data[-1].y:.4g}" for one in series]
    return Figure(
        title=title,
        description="; ".join(told),
        x_label=x_label,
        y_label=y_label,
        series=[
            Series(one.name, one.data, line=True, markers=False, style=GUIDE) if one.name == "target" else one
            for one in series
        ],
        note=note,
        from_zero_x=True,
        from_zero_y=True,
        log_y=False,
    )


# -- the table ---------------------------------------------------------------------------------------------------------


def _difficulty(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for every difficulty, with what was before and after; sampled answers first, as they are trained on."""
    moments = list(dict.fromkeys(str(row["when"]) for row in rows))
    sections = []
    for drawn in sorted({str(row["drawn"]) for row in rows}, reverse=True):
        here = {(row["difficulty"], row["when"]): row for row in rows if row["drawn"] == drawn}
        lines = []
        for name in dict.fromkeys(name for name, _ in here):
            found = [here[name, when] for when in moments if (name, when) in here]
            lines.append(Row(str(name), [*map(_accuracy, found), *(Cell(f"{row['tokens']:.1f}") for row in found)]))
        sections.append(Section(lines, title=drawn))
    columns = [Column(what, below=when) for what in ("Right", "Tokens") for when in moments]
    return Table("Held-out problems by difficulty", "Difficulty", columns, sections)


def _accuracy(row: Mapping[str, Any]) -> Cell:
    bounds = [Small(numbers.span(row["low"], row["high"]))] if is_number(row.get("low")) else []
    return Cell(f"{row['accuracy']:.3f}", below=bounds)
