"""The page of a run: accuracy against cost, each strategy against a vote of the same cost, populations, the bill."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from burnish.core.page import (
    Cell,
    Column,
    Datum,
    Figure,
    Footnotes,
    Row,
    Section,
    Series,
    Small,
    Table,
    intervals,
    render,
    write,
)
from burnish.core.page.charts import GUIDE
from burnish.core.page.numbers import DASH, decimal, interval_digits, number_count, percent, signed, significant, span
from burnish.core.statistics import Interval
from burnish.reason.calls import Usage
from burnish.reason.journal import Paid
from burnish.reason.tally import Found, PopulationScore, Tally, total

FILE = "report.html"


def write_page(directory: Path, found: Found) -> Path:
    """Writes the page beside the journal."""
    return write(directory / FILE, page(found, directory.resolve().name))


def page(found: Found, name: str) -> str:
    looped = [one for one in found.tallies if one.loops]
    return render(
        "burnish.reason",
        "reason.html.j2",
        name=name,
        heading=_heading(found),
        said=sentences(found),
        about=_about(found),
        picture=_picture(found),
        strategies=_strategies(found),
        reading=_reading(found),
        loops=[_loop_figure(one) for one in looped],
        populations=_populations(looped),
        used=_used(found),
        paid=_paid(found),
        notes=_notes(found),
        models=_models(found),
    )


# -- words -----------------------------------------------------------------------------------------------------------


def _heading(found: Found) -> str:
    compared = [one for one in found.tallies if one.against and one.against.difference]
    better = [one for one in compared if one.against and one.against.difference and one.against.difference.low > 0]
    if better:
        return f"{short(better[0].strategy)} is better than a vote of the same cost"
    dear = any(one.against and one.against.why and one.against.samples > 1 for one in found.tallies)
    if not compared:
        return "What each strategy is worth"
    return f"Nothing {'that could be compared ' if dear else ''}is better than a vote of the same cost"


def sentences(found: Found) -> list[str]:
    """Of every strategy that can be compared with a vote of the same cost, how it compares."""
    said = []
    for one in found.tallies:
        if one.against is None or one.against.difference is None:
            if one.against is not None and one.against.samples > 1:
                why = f"not compared with a vote of the same cost, which {one.against.why}"
                said.append(f"{_said(one)}: {decimal(one.accuracy.value, 3)}, {why}.")
            continue
        ends = span(one.against.difference.low, one.against.difference.high)
        points = signed(decimal(one.against.difference.value, interval_digits(*_ends(one.against.difference))), 1)
        if one.against.difference.value <= 0:
            points = points.lstrip("+")
        within = one.against.difference.low <= 0 <= one.against.difference.high
        verdict = ", within the interval" if within else ""
        said.append(
            f"{_said(one)}: {points} ({ends}) against a vote of "
            f"{decimal(one.against.samples, 1)} samples, which costs the same{verdict}."
        )
    return said or ["The run has no samples to vote on, so that nothing is compared at equal cost."]


def _said(one: Tally) -> str:
    """A label that may be broken where a line ends."""
    return short(one.strategy).replace(",", ", ")


def _about(found: Found) -> str:
    repetitions = max(len(one.repetitions) for one in found.tallies)
    times = f", each {repetitions} times" if repetitions > 1 else ""
    models = ", ".join(f"{name} ({one['model']})" for name, one in found.about.get("models", {}).items())
    graded = f", graded by '{found.about['verifier']}'" if "verifier" in found.about else ""
    prompts = ", ".join(found.about.get("prompts", {}))
    own = f" Prompts of the user's own: {prompts}." if prompts else ""
    return f"{found.num_problems:,} problems{times}{graded}; {models or 'models unknown'}.{own}"


def _reading(found: Found) -> str:
    unit = (
        "Costs are money, at the prices given, for 1,000 problems."
        if found.unit == "money"
        else "Costs are tokens read and written for one problem; prices are not known, so money is not either."
    )
    return (
        f"{unit} Intervals are of 95 % and over problems; repetitions of a problem are averaged first. A vote of n is "
        "the expectation over all subsets of n of the samples of the run. The difference is paired by problem, against "
        "the vote that has the same cost on average; intervals are not widened for several strategies."
    )


def _notes(found: Found) -> list[str]:
    notes = []
    for one in found.tallies:
        if one.unfinished:
            notes.append(
                f"{short(one.strategy)}: {one.unfinished:,} answers were ended by a budget or an error and are counted "
                "as they are; the command of the run goes on with them."
            )
        notes += [f"{short(one.strategy)}: {note} ({times:,} times)" for note, times in one.notes.items()]
    for curve in found.curves:
        if curve.left_out:
            notes.append(f"votes of {curve.model}: {curve.left_out:,} problems have fewer samples and are left out")
    return notes


def _models(found: Found) -> list[tuple[str, list[tuple[str, str]]]]:
    made = []
    for name, one in found.about.get("models", {}).items():
        price = found.prices.get(name)
        money = "unknown"
        if price:
            cached = "" if price.cached_input is None else f", {price.cached_input:g} from the cache"
            money = f"{price.input:g} read, {price.output:g} written{cached}, for a million tokens"
        facts = [("model", one["model"]), ("address", one["address"]), ("price", money)]
        made.append((name, [*facts, ("sampling", json.dumps(one["sampling"]))]))
    return made


def short(label: str) -> str:
    """A label without settings that say nothing here."""
    for usual in (",answer=majority", ",early=0", ",update=replace", ",temperature=0.7"):
        label = label.replace(usual, "")
    return re.sub(r"(\d)\.0(?=[+,)])", r"\1", label)


def name_of(label: str) -> str:
    return label.partition("(")[0]


def settings_of(label: str) -> str:
    return short(label).partition("(")[2].rstrip(")").replace(",", ", ")


# -- pictures --------------------------------------------------------------------------------------------------------


def _picture(found: Found) -> Figure:
    series: list[Series] = []
    for place, curve in enumerate(found.curves):
        if curve.cost:
            name = "" if len(found.curves) == 1 else f" of {curve.model}"
            step = curve.cost * _scale(found)
            series.append(_curve(step, curve.vote, f"vote of n samples{name}", place))
            series.append(_curve(step, curve.best, f"best of n samples{name}, if one knew", GUIDE))
    points = [_point(one, one.cost * _scale(found)) for one in found.tallies if one.cost]
    series.append(Series("strategy", points, style=1))
    if not points:
        series = [Series("strategy", [_point(one, place) for place, one in enumerate(found.tallies)])]
    unit = "money for 1,000 problems" if found.unit == "money" else "tokens read and written for one problem"
    return Figure(
        title="Votes and strategies",
        description="; ".join(f"{one.strategy}: {decimal(one.accuracy.value, 3)}" for one in found.tallies),
        x_label=unit if points else "strategies in order; no cost is known",
        y_label="accuracy",
        series=series,
        note="Bars and band are intervals of 95 % over problems.",
        log_x=None if points else False,
        log_y=False,
    )


def _curve(step: float, values: Sequence[Interval], name: str, style: int) -> Series:
    ends_of = _finite if style != GUIDE else lambda one: (None, None)
    data = [Datum(step * number, one.value, *ends_of(one)) for number, one in enumerate(values, start=1)]
    return Series(name, data, line=True, markers=False, style=style)


def _scale(found: Found) -> float:
    """From the cost of a problem to what is shown."""
    return 1000.0 if found.unit == "money" else 1.0


def _point(one: Tally, at: float) -> Datum:
    return Datum(at, one.accuracy.value, *_finite(one.accuracy), label=short(one.strategy), title=one.strategy)


def _loop_figure(one: Tally) -> Figure:
    def line(name: str, values: Sequence[Interval]) -> Series:
        data = [Datum(loop, each.value, *_finite(each)) for loop, each in enumerate(values, start=1)]
        return Series(name, data, line=True)

    return Figure(
        title=name_of(one.strategy),
        note=settings_of(one.strategy),
        description=f"By population: {', '.join(decimal(loop.mean.value, 3) for loop in one.loops)} on average.",
        x_label="population",
        y_label="accuracy",
        series=[
            line("a drawn member", [loop.mean for loop in one.loops]),
            line("majority", [loop.majority for loop in one.loops]),
            line("any member", [loop.best for loop in one.loops]),
        ],
        tick_x=lambda tick: f"{tick:g}" if tick == round(tick) else "",
        log_y=False,
        half=True,
    )


def _finite(one: Interval) -> tuple[float | None, float | None]:
    return (one.low, one.high) if one.low == one.low else (None, None)


def _ends(one: Interval) -> tuple[float, float]:
    return one.low, one.high


# -- tables ----------------------------------------------------------------------------------------------------------


def _strategies(found: Found) -> Table:
    notes = Footnotes()
    compared = [one for one in found.tallies if one.against and one.against.difference]
    drawn = dict(
        zip(
            [one.strategy for one in compared],
            intervals([_triple(one.against.difference) for one in compared if one.against and one.against.difference]),
            strict=True,
        )
    )
    rows = [
        Row(
            name_of(one.strategy),
            [
                _accuracy(one),
                Cell(_cost(found, one.cost)),
                Cell(_calls(one)),
                *_compared(one, notes),
                drawn.get(one.strategy, Cell()),
            ],
            below=settings_of(one.strategy),
        )
        for one in found.tallies
    ]
    columns = [
        Column("Accuracy", "of a problem, 95 %"),
        Column("Cost", "of 1,000 problems" if found.unit == "money" else "tokens a problem"),
        Column("Calls", "a problem"),
        Column("Vote at equal cost", "accuracy, samples"),
        Column("Difference", "strategy less vote, 95 %"),
        Column("Difference, drawn", drawn=True, spare=True),
    ]
    return Table("Strategies", "Strategy", columns, [Section(rows)], notes.texts)


def _accuracy(one: Tally) -> Cell:
    small = [Small(span(*_ends(one.accuracy)))]
    if len(one.repetitions) > 1:
        small.append(Small(f"{decimal(min(one.repetitions), 3)} to {decimal(max(one.repetitions), 3)} by repetition"))
    return Cell(decimal(one.accuracy.value, 3), small)


def _compared(one: Tally, notes: Footnotes) -> tuple[Cell, Cell]:
    if one.against is None:
        return Cell(DASH), Cell(DASH)
    if one.against.difference is None or one.against.vote is None:
        return Cell(DASH, mark=notes.mark(f"{one.against.why}.".capitalize())), Cell(DASH)
    difference = one.against.difference
    tone = "good" if difference.low > 0 else "bad" if difference.high < 0 else "ink"
    written = signed(decimal(difference.value, interval_digits(*_ends(difference))), difference.value)
    vote = Cell(decimal(one.against.vote, 3), [Small(f"{decimal(one.against.samples, 1)} samples")])
    return vote, Cell(written, [Small(span(*_ends(difference)))], tone)


def _triple(one: Interval) -> tuple[float, float, float]:
    return one.low, one.value, one.high


def _cost(found: Found, cost: float | None) -> str:
    if cost is None:
        return "unknown"
    return significant(cost * _scale(found)) if found.unit == "money" else number_count(round(cost))


def _calls(one: Tally) -> str:
    calls = sum(used.calls for used in one.used.values()) / (one.num * len(one.repetitions))
    return decimal(calls, 0 if calls == round(calls) else 1)


def _populations(looped: Sequence[Tally]) -> Table:
    def row(place: int, loop: PopulationScore) -> Row:
        shares = [loop.mean, loop.majority, loop.best]
        cells = [Cell(decimal(one.value, 3), [Small(span(*_ends(one)))]) for one in shares]
        rest = [significant(loop.distinct), number_count(round(loop.letters)), percent(loop.cut)]
        return Row(f"population {place}", [*cells, *(Cell(text) for text in rest)])

    sections = [
        _section(one.strategy, [row(place, loop) for place, loop in enumerate(one.loops, start=1)]) for one in looped
    ]
    columns = [
        Column("A drawn member"),
        Column("Majority"),
        Column("Any member", "pass@n"),
        Column("Answers", "distinct"),
        Column("Letters", "of a member"),
        Column("Cut", "by the limit"),
    ]
    return Table("Populations", "Population", columns, sections)


def _section(label: str, rows: Sequence[Row]) -> Section:
    return Section(rows, title=name_of(label), detail=settings_of(label))


def _used(found: Found) -> Table:
    sections = []
    for one in found.tallies:
        rows = [Row(model, _tokens(used, used.cost(found.prices.get(model)))) for model, used in one.used.items()]
        if len(rows) > 1:
            costs = [used.cost(found.prices.get(model)) for model, used in one.used.items()]
            rows.append(Row("together", _tokens(sum(one.used.values(), Usage()), total(costs))))
        sections.append(_section(one.strategy, rows))
    columns = [
        Column("Calls"),
        Column("Read"),
        Column("of it cached"),
        Column("Written"),
        Column("of it thought"),
        Column("Money"),
    ]
    return Table("Tokens by kind", "Model", columns, sections)


def _paid(found: Found) -> Table:
    def row(name: str, one: Paid) -> Row:
        cells = [Cell(f"{number:,}") for number in (one.usage.calls, one.retried, one.lost)]
        return Row(name, [*cells, *_tokens(one.usage, one.usage.cost(found.prices.get(name)))[1:]])

    rows = [row(name, one) for name, one in found.paid.items()]
    columns = [
        Column("Requests"),
        Column("of them failed", "and tried again"),
        Column("of them lost", "never came back"),
        Column("Read"),
        Column("of it cached"),
        Column("Written"),
        Column("of it thought"),
        Column("Money"),
    ]
    return Table("Paid", "Model", columns, [Section(rows)])


def _tokens(used: Usage, money: float | None) -> list[Cell]:
    counts = (used.prompt, used.cached, used.completion, used.reasoning)
    unknown = [Small(f"{used.unknown:,} not counted", "bad")] if used.unknown else []
    cells = [Cell(f"{used.calls:,}", unknown), *(Cell(number_count(count)) for count in counts)]
    return [*cells, Cell("unknown" if money is None else significant(money))]
