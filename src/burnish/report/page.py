"""The HTML page: gathers what the other files computed and hands it to the templates.

The page is one file without scripts; the only links out of it go to pages of episodes in the run. Templates escape
everything that comes from a ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.core import page
from burnish.core.checkpoint import Lineage
from burnish.core.errors import DataError
from burnish.core.page import Cell, Column, Row, Section, Table, numbers
from burnish.report import (
    curriculum,
    depths,
    engine_speed,
    episodes,
    figures,
    forest,
    headline,
    layers,
    pair_figures,
    rl,
    sparse,
    table,
    tree,
)
from burnish.report.compare import checkpoints, comparisons, protocols, refusals
from burnish.report.paired import Pairing
from burnish.report.protocols import base_name, flatten, protocol_differences, show
from burnish.report.run import NodeRecord, RunRecord, read_run

REPORT_FILE = "report.html"
_KNOWN_TABLES = (
    "layers",
    "calibration",
    *pair_figures.DRAWN,
    *episodes.DRAWN,
    *curriculum.DRAWN,
    *depths.DRAWN,
    *rl.DRAWN,
    *sparse.DRAWN,
)
_MAX_OTHER_TABLES = 12
_MAX_OTHER_ROWS = 60
_MAX_OTHER_COLUMNS = 8
_MAX_LAYER_VIEWS = 12
MAX_NODES = 150
_MAX_TEXT = 20_000


def render(run_directories: Sequence[Path], place: Path | None = None) -> str:
    """The HTML page of one run, or of several side by side.

    Args:
        run_directories: of the runs.
        place: directory that the page is for; by default the first run's.

    Raises:
        DataError: no directory given, or one of them holds no readable ledger.
    """
    if not run_directories:
        raise DataError("no run directory was given", fix="name at least one")
    runs = [read_run(Path(directory)) for directory in run_directories]
    pairing = Pairing()
    columns = checkpoints(runs)
    known = list(protocols(columns).values())
    differences, differences_left_out = forest.forest(comparisons(columns, runs), pairing)
    told = headline.headlines(columns, runs, pairing)
    content = {
        "heading": " and ".join(run.name for run in runs),
        "runs": [_run_view(run, place or runs[0].directory) for run in runs],
        "headlines": told[: headline.MAX_HEADLINES],
        "headlines_left_out": len(told[headline.MAX_HEADLINES :]),
        "first": table.first_table(columns, runs, pairing) if columns else None,
        "speeds": [_speed_view(one) for one in engine_speed.comparisons(columns)],
        "further": table.further_tables(columns, runs, pairing),
        "rows_left_out": len(columns[table.MAX_ROWS :]),
        "refusals": refusals(columns),
        "frontiers": figures.frontiers(columns, runs),
        "forest": differences,
        "forest_left_out": differences_left_out,
        "protocols": [_settings(protocol) for protocol in known],
        "protocol_differences": _differing_fields(known),
        "date": max(max(run.times, default="") for run in runs)[:10],
    }
    return page.render("burnish.report", "page.html.j2", **content)


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
    target = Path(out) if out is not None else directories[0] / REPORT_FILE if directories else Path()
    return page.write(target, render(directories, target.parent))


def _speed_view(found: engine_speed.SpeedComparison) -> dict[str, Any]:
    """Speed in one engine."""
    return {
        "engine": found.engine,
        "sentences": engine_speed.sentences(found),
        "rates": engine_speed.rates_table(found),
        "facts": engine_speed.facts_table(found),
        "protocol": _settings(dict(found.protocol)),
    }


def _run_view(run: RunRecord, place: Path) -> dict[str, Any]:
    """One run's own part of the page."""
    nodes = run.nodes[:MAX_NODES]
    layer_views = [
        found for one in figures.newest_tables(run, "layers") if one.rows and (found := layers.view(one.node, one.rows))
    ]
    shown = layer_views[:_MAX_LAYER_VIEWS]
    return {
        "name": run.name,
        "start": base_name(run.start),
        "tree": tree.tree(nodes, base_name(run.start)),
        "nodes_left_out": len(run.nodes) - len(nodes),
        "costs": _costs(nodes, run),
        "layers": shown,
        "layers_left_out": len(layer_views) - len(shown),
        "weight_error": any(one.value_name == layers.WEIGHT_ERROR for one in shown),
        "episodes": episodes.views(run, place),
        "depths": depths.views(run),
        "rl": rl.views(run, place),
        "curves": [
            *curriculum.figures(run),
            *figures.curves(run, apart={*episodes.BY_KIND, *rl.APART}),
            *episodes.figures(run),
            *figures.calibration_figures(run),
            *pair_figures.figures(run),
            *sparse.figures(run),
        ],
        "other_tables": _other_tables(run),
        "settings": [(node.name, node.stage, _settings(node.settings)) for node in nodes if node.settings],
        "recipe": _recipe_text(run),
        "provenance": _provenance(run),
    }


def _costs(nodes: Sequence[NodeRecord], run: RunRecord) -> dict[str, Any]:
    """Time and memory of every node that ran, with bars on a common scale."""
    known = [(node, run.costs[node.name]) for node in nodes if node.name in run.costs]
    seconds = [cost.seconds or 0.0 for _, cost in known]
    peak = max((cost.peak_memory_bytes or 0.0 for _, cost in known), default=0.0)
    rows = []
    for (node, cost), bar in zip(known, page.meters(seconds), strict=True):
        time = numbers.number_seconds(cost.seconds) if cost.seconds is not None else numbers.DASH
        memory = numbers.number_bytes(cost.peak_memory_bytes) if cost.peak_memory_bytes else numbers.DASH
        rows.append(Row(node.name, [bar, Cell(time), Cell(memory)], below=node.stage))
    columns = [Column("Time as a bar", drawn=True, spare=True), Column("Time"), Column("Peak memory")]
    return {
        "table": Table("Time and memory of each stage", "Node", columns, [Section(rows)]),
        "total": numbers.number_seconds(sum(seconds)) if sum(seconds) else "",
        "peak": numbers.number_bytes(peak) if peak else "",
    }


def _other_tables(run: RunRecord) -> list[dict[str, Any]]:
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


def _recipe_text(run: RunRecord) -> str:
    path = run.directory / "recipe.yaml"
    return path.read_text(encoding="utf-8", errors="replace")[:_MAX_TEXT] if path.is_file() else ""


def _provenance(run: RunRecord) -> list[tuple[str, str]]:
    """Where everything came from: the ledger, versions of libraries, hashes and keys of checkpoints."""
    rows = f"{len(run.ledger.rows):,} rows" + (f", from {run.times[0]} to {run.times[-1]}" if run.times else "")
    if run.num_unknown_rows:
        rows += f"; {run.num_unknown_rows:,} of a kind this version does not know"
    versions: dict[str, str] = {}
    for node in run.nodes:  # the newest node's where they differ
        lineage = Lineage.read(run.directory / "nodes" / node.name)
        versions |= lineage.versions if lineage else {}
    keys = {node.name: f", key {node.key}" for node in run.nodes if node.key}
    hashes = list(run.checkpoints.items())[:MAX_NODES]
    return [
        ("run", run.directory.name),
        ("start", run.start),
        ("ledger", rows),
        *sorted(versions.items()),
        *((name, f"sha256 {digest}{keys.get(name, '')}") for name, digest in hashes),
    ]


def _differing_fields(known: Sequence[dict[str, Any]]) -> list[str]:
    """Fields in which the page's protocols differ from the first, to be read before any two are set side by side."""
    return list(dict.fromkeys(name for one in known[1:] for name, _, _ in protocol_differences(known[0], one)))
