"""The HTML page: gathers what the other files computed and hands it to the templates.

The page is one file without scripts or links to anywhere. Templates escape everything that comes from a ledger.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.checkpoint import Lineage
from burnish.core.errors import DataError, OutputError
from burnish.report import charts, figures, forest, headline, layers, numbers, table, tree
from burnish.report.compare import checkpoints, comparisons, refusals
from burnish.report.paired import Pairing
from burnish.report.protocols import base_name, flatten, protocol_differences, show
from burnish.report.run import Run, read_run

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT_FILE = "report.html"
_KNOWN_TABLES = ("layers", "calibration")
_MAX_OTHER_TABLES = 12
_MAX_OTHER_ROWS = 60
_MAX_OTHER_COLUMNS = 8
_MAX_LAYER_VIEWS = 12
_MAX_NODES = 200
_MAX_TEXT = 20_000


def render(run_directories: Sequence[Path]) -> str:
    """The HTML page of one run, or of several side by side.

    Raises:
        DataError: no directory given, or one of them holds no readable ledger.
    """
    if not run_directories:
        raise DataError("no run directory was given", fix="name at least one")
    runs = [read_run(Path(directory)) for directory in run_directories]
    pairing = Pairing()
    columns = checkpoints(runs)
    pairs = comparisons(columns, runs)
    differences, differences_left_out = forest.forest(pairs, pairing)
    told = headline.headlines(columns, runs, pairing)
    content = {
        "title": " and ".join(run.name for run in runs),
        "runs": [_run_view(run) for run in runs],
        "many": len(runs) > 1,
        "headlines": told[: headline.MAX_HEADLINES],
        "headlines_left_out": len(told) - len(told[: headline.MAX_HEADLINES]),
        "tables": table.tables(columns, runs, pairing) if columns else [],
        "columns_left_out": max(0, len(columns) - table.MAX_COLUMNS),
        "refusals": refusals(columns),
        "frontiers": [_drawn(figure) for figure in figures.frontiers(columns, runs)],
        "forest": differences,
        "forest_left_out": differences_left_out,
        "protocols": [(number, _settings(protocol)) for number, protocol in table.protocol_list(columns)],
        "protocol_differences": _differing_fields(columns),
        "date": max(run.last_time for run in runs),
        "version": _version(),
    }
    return _environment().get_template("page.html.j2").render(content)


def write(*runs: Path, out: Path | None = None) -> Path:
    """Writes the page and returns where it is.

    Args:
        *runs: a run directory, or several to set side by side.
        out: the file; by default `report.html` in the first run directory.

    Raises:
        DataError: as `render`.
        OutputError: the file cannot be written.
    """
    directories = [Path(run) for run in runs]
    text = render(directories)
    target = Path(out) if out is not None else directories[0] / REPORT_FILE
    try:
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror or error})", where=str(target), fix="choose another place with -o"
        ) from None
    return target


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("burnish.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["bytes"] = numbers.number_bytes
    environment.filters["grouped"] = lambda value: f"{value:,}"
    return environment


def _version() -> str:
    from burnish._version import __version__

    return __version__


@dataclass(frozen=True)
class _Drawn:
    figure: charts.Figure
    charts: list[charts.Chart]


def _drawn(figure: charts.Figure) -> _Drawn:
    return _Drawn(figure, [charts.draw(figure, variant) for variant in charts.WIDTHS])


def _run_view(run: Run) -> dict[str, Any]:
    """One run's own part of the page."""
    nodes = run.nodes[:_MAX_NODES]
    layer_views = [
        found for one in figures.newest_tables(run, "layers") if one.rows and (found := layers.view(one.node, one.rows))
    ]
    calibration = figures.calibration_figure(run)
    return {
        "name": run.name,
        "start": base_name(run.start),
        "tree": tree.tree(nodes, base_name(run.start)),
        "nodes_left_out": len(run.nodes) - len(nodes),
        "costs": _costs(run),
        "layers": layer_views[:_MAX_LAYER_VIEWS],
        "layers_left_out": len(layer_views[_MAX_LAYER_VIEWS:]),
        "curves": [_drawn(figure) for figure in [*figures.curves(run), *([calibration] if calibration else [])]],
        "other_tables": _other_tables(run),
        "settings": [(node.name, node.stage, _settings(node.settings)) for node in nodes if node.settings],
        "recipe": _recipe_text(run),
        "provenance": _provenance(run),
    }


def _costs(run: Run) -> dict[str, Any]:
    """Time and memory of every node that ran, with bars on a common scale."""
    rows = []
    known = [(node, run.costs[node.name]) for node in run.nodes[:_MAX_NODES] if node.name in run.costs]
    longest = max((cost.seconds or 0.0 for _, cost in known), default=0.0)
    for node, cost in known:
        rows.append(
            {
                "node": node.name,
                "stage": node.stage,
                "time": numbers.number_seconds(cost.seconds) if cost.seconds is not None else numbers.DASH,
                "share": round(100 * (cost.seconds or 0.0) / longest, 1) if longest else 0.0,
                "memory": numbers.number_bytes(cost.peak_memory_bytes) if cost.peak_memory_bytes else numbers.DASH,
            }
        )
    total = sum(cost.seconds or 0.0 for _, cost in known)
    peak = max((cost.peak_memory_bytes or 0.0 for _, cost in known), default=0.0)
    return {
        "rows": rows,
        "total": numbers.number_seconds(total) if total else "",
        "peak": numbers.number_bytes(peak) if peak else "",
    }


def _other_tables(run: Run) -> list[dict[str, Any]]:
    """Tables that have no picture, as they are."""
    drawn = {*_KNOWN_TABLES, *figures.curve_tables(run)}
    newest = {(one.node, one.name): one for one in run.tables if one.name not in drawn and one.rows}
    found = []
    for one in list(newest.values())[:_MAX_OTHER_TABLES]:
        names = list(dict.fromkeys(name for row in one.rows[:_MAX_OTHER_ROWS] for name in row))[:_MAX_OTHER_COLUMNS]
        found.append(
            {
                "node": one.node,
                "name": one.name.replace("_", " "),
                "columns": names,
                "rows": [[layers.cell(row.get(name)) for name in names] for row in one.rows[:_MAX_OTHER_ROWS]],
                "left_out": max(0, len(one.rows) - _MAX_OTHER_ROWS),
            }
        )
    return found


def _settings(content: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, show(value)[:500]) for name, value in flatten(content).items() if name != "hash"]


def _recipe_text(run: Run) -> str:
    path = run.directory / "recipe.yaml"
    return path.read_text(encoding="utf-8", errors="replace")[:_MAX_TEXT] if path.is_file() else ""


def _provenance(run: Run) -> dict[str, Any]:
    by_name = {node.name: node for node in run.nodes}
    return {
        "directory": run.directory.name,
        "start": run.start,
        "first": run.first_time,
        "last": run.last_time,
        "num_rows": run.num_rows,
        "num_unknown_rows": run.num_unknown_rows,
        "checkpoints": [
            (name, digest, by_name[name].key if name in by_name else "")
            for name, digest in list(run.checkpoints.items())[:_MAX_NODES]
        ],
        "versions": _versions(run),
    }


def _versions(run: Run) -> list[tuple[str, str]]:
    """Library versions as the lineage of the run's checkpoints has them; the newest node's where they differ."""
    found: dict[str, str] = {}
    for node in run.nodes:
        lineage = Lineage.read(run.directory / "nodes" / node.name)
        found |= lineage.versions if lineage else {}
    return sorted(found.items())


def _differing_fields(columns: Sequence[Any]) -> list[str]:
    """Fields in which the page's protocols differ from the first, to be read before any two are set side by side."""
    known = [protocol for _, protocol in table.protocol_list(columns)]
    return list(dict.fromkeys(name for one in known[1:] for name, _, _ in protocol_differences(known[0], one)))
