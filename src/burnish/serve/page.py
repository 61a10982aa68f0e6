"""The page of a simulation: policies side by side, who was served when, and what was computed twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.core.page import Cell, Column, Datum, Figure, Row, Section, Series, Small, Table, render, write
from burnish.core.page.charts import NUM_STYLES
from burnish.core.page.numbers import DASH, decimal, number_count, number_seconds, percent
from burnish.serve.measures import relative

FILE = "report.html"
_SHOWN = 6
"""Tenants that are drawn."""


def write_page(directory: Path, results: Mapping[str, Any]) -> Path:
    """Writes the page beside `results.json`, of which it is made."""
    policies: Mapping[str, dict[str, Any]] = results["policies"]
    text = render(
        "burnish.serve",
        "serve.html.j2",
        source=results["trace"]["source"],
        heading=_heading(policies),
        said=sentences(policies),
        about=_about(results),
        synthetic=results["trace"]["synthetic"],
        slo=next(iter(policies.values()))["slo"],
        policies=policy_table(policies),
        cache=cache_table(policies),
        quantiles=[_quantile_figure(policies, "ttft", "Time to the first token"), _completion_figure(policies)],
        served=[_served_figure(name, one) for name, one in policies.items() if len(one["tenants"]) > 1],
        tenants=_tenants(policies) if any(len(one["tenants"]) > 1 for one in policies.values()) else None,
        notes=results["notes"],
        engine=[(key, str(value)) for key, value in results["engine"].items()],
        files=[(name, one["settings"].items()) for name, one in policies.items()],
    )
    return write(directory / FILE, text)


def _heading(policies: Mapping[str, dict[str, Any]]) -> str:
    if len(policies) == 1:
        return f"What {next(iter(policies))} would do"
    return f"{' and '.join(policies) if len(policies) == 2 else f'{len(policies)} policies'}, side by side"


def sentences(policies: Mapping[str, dict[str, Any]]) -> list[str]:
    """What each policy changes, beside the first; and what was measured, beside what a simulation says of it."""
    live = {name: one for name, one in policies.items() if "live" in one}
    policies = {name: one for name, one in policies.items() if "live" not in one} or live
    base, *others = policies
    said = [_beside(name, one, policies) for name, one in live.items() if one["live"]["policy"] in policies]
    for name in others:
        one, first = policies[name], policies[base]
        ratio = relative(policies, base)[name]
        words = "faster than" if ratio >= 1 else "slower than"
        factor = ratio if ratio >= 1 else 1 / ratio
        told = f"{name}: mean completion time {decimal(factor, 2)} times {words} {base}"
        if abs(ratio - 1) < 0.005:
            told = f"{name}: the mean completion time of {base}"
        tail = [side["ttft"]["quantiles"]["0.99"][0] for side in (one, first)]
        told += f"; 99 % of first tokens within {number_seconds(tail[0])} ({base}: {number_seconds(tail[1])})"
        jain = [side["fairness"]["jain"] for side in (one, first)]
        if None not in jain:
            told += f"; Jain's index {decimal(jain[0], 3)} ({base}: {decimal(jain[1], 3)})"
        said.append(f"{told}.")
    only = policies[base]
    share = percent(only["good_share"])
    said.insert(0, f"{base}: {share} of {only['requests']:,} requests were within the limits of good service.")
    return said


def _beside(name: str, live: Mapping[str, Any], policies: Mapping[str, dict[str, Any]]) -> str:
    """A live run and the simulation of its policy."""
    told, simulated = [], policies[live["live"]["policy"]]
    for which, what in (("ttft", "first token"), ("completion", "completion")):
        measured, guessed = live[which]["mean"], simulated[which]["mean"]
        off = percent(abs(guessed / measured - 1)) if measured else DASH
        way = "above" if guessed > measured else "below"
        told.append(
            f"mean time to the {what} {number_seconds(guessed)} simulated, {off} {way} {number_seconds(measured)}"
        )
    return f"{name}: {'; '.join(told)} measured."


def _about(results: Mapping[str, Any]) -> str:
    trace = results["trace"]
    dropped = "".join(f", {count:,} rows left out ({why})" for why, count in trace["dropped"].items())
    engines = f"{results['instances']} engines" if results["instances"] > 1 else "one engine"
    asked = f"{trace['requests']:,} requests in {trace['workflows']:,} workflows of {trace['source']}"
    live = any("live" in one for one in results["policies"].values())
    return f"{asked}{dropped}; {engines}, {'live and ' if live else ''}simulated."


def policy_table(policies: Mapping[str, dict[str, Any]], *, brief: bool = False) -> Table:
    """Latencies, goodput and fairness; `brief` leaves out intervals, for a terminal."""
    rows = []
    for name, one in policies.items():
        cells = [
            _timed(one[which], q, brief=brief) for which, q in (("ttft", "0.5"), ("ttft", "0.99"), ("tpot", "0.5"))
        ]
        cells.append(Cell(number_seconds(one["completion"]["mean"])))
        cells.append(Cell(percent(one["good_share"])))
        cells.append(Cell(number_count(round(one["tokens_per_second"]))))
        jain, gap = one["fairness"]["jain"], one["fairness"]["largest_gap"]
        cells.append(Cell(DASH if jain is None else decimal(jain, 3)))
        cells.append(Cell(DASH if gap is None else number_count(round(gap))))
        rows.append(Row(name, cells))
    columns = [
        Column("First token", "median"),
        Column("First token", "99 %"),
        Column("A token", "median"),
        Column("Whole", "mean"),
        Column("Good", "of requests"),
        Column("Output", "tokens/s"),
        Column("Jain's index"),
        Column("Largest gap"),
    ]
    return Table("Policies", "Policy", columns, [Section(rows)])


def _timed(spread: Mapping[str, Any], quantile: str, *, brief: bool) -> Cell:
    if quantile not in spread["quantiles"]:
        return Cell(DASH)
    value, low, high = spread["quantiles"][quantile]
    small = [] if brief else [Small(f"{number_seconds(low)} to {number_seconds(high)}")]
    return Cell(number_seconds(value), small)


def cache_table(policies: Mapping[str, dict[str, Any]]) -> Table:
    """What was found again, what was computed twice, and what was held for whom."""
    rows = []
    for name, one in policies.items():
        texts = [
            percent(one["cached_tokens"] / one["prompt_tokens"]),
            number_count(one["evicted_tokens"]),
            f"{one['preemptions']:,}",
            number_count(one["redone_tokens"]),
            decimal(one["contexts_recomputed"], 2),
            number_count(round(one["useful_block_seconds"])),
            number_count(round(one["wasted_block_seconds"])),
        ]
        rows.append(Row(name, [Cell(text) for text in texts]))
    columns = [
        Column("Found cached"),
        Column("Cache lost", "tokens"),
        Column("Places lost"),
        Column("Their cost", "tokens"),
        Column("Contexts"),
        Column("Held, useful", "block s"),
        Column("Held, wasted", "block s"),
    ]
    return Table("Keys and values", "Policy", columns, [Section(rows)])


def _quantile_figure(policies: Mapping[str, dict[str, Any]], which: str, title: str) -> Figure:
    def data(one: Mapping[str, Any]) -> list[Datum]:
        return [Datum(float(q), *values) for q, values in one[which]["quantiles"].items()]

    series = [
        Series(name, data(one), line=True, style=place % NUM_STYLES)
        for place, (name, one) in enumerate(policies.items())
    ]
    told = "; ".join(f"{one.name}: {', '.join(f'{d.y:.3g} s' for d in one.data)}" for one in series)
    return Figure(title, told, "share of requests", "seconds", series, log_y=None, half=True)


def _completion_figure(policies: Mapping[str, dict[str, Any]]) -> Figure:
    return _quantile_figure(policies, "completion", "Time to the end of a workflow")


def _served_figure(name: str, one: Mapping[str, Any]) -> Figure:
    times, series = one["fairness"]["times"], []
    for place, tenant in enumerate(list(one["tenants"])[:_SHOWN]):
        values = one["fairness"]["served"][tenant]
        points = [Datum(time, value) for time, value in zip(times, values, strict=True)]
        series.append(Series(tenant or "no tenant", points, line=True, markers=False, style=place))
    rest = len(one["tenants"]) - len(series)
    return Figure(
        f"Service under {name}",
        "; ".join(f"{line.name}: {line.data[-1].y:.3g}" for line in series),
        "seconds",
        "price of tokens",
        series,
        note=f"Cumulative; {rest} smaller tenants are not drawn." if rest else "Cumulative.",
        log_y=False,
        half=True,
    )


def _tenants(policies: Mapping[str, dict[str, Any]]) -> Table:
    sections = []
    for name, one in policies.items():
        rows = [
            Row(
                tenant or "no tenant",
                [
                    Cell(f"{row['requests']:,}"),
                    Cell(number_count(row["prompt_tokens"])),
                    Cell(number_count(row["output_tokens"])),
                    Cell(number_seconds(row["ttft_mean"])),
                    Cell(number_seconds(row["ttft_99"])),
                ],
            )
            for tenant, row in list(one["tenants"].items())[:20]
        ]
        sections.append(Section(rows, title=name))
    columns = [
        Column("Requests"),
        Column("Prompt", "tokens"),
        Column("Output", "tokens"),
        Column("First token", "mean"),
        Column("First token", "99 %"),
    ]
    return Table("Tenants", "Tenant", columns, sections)
