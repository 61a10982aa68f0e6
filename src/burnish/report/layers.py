"""Error per weight matrix: one row of bars per kind of matrix, one bar per layer, all on one scale.

A bar stands for one matrix, or, for experts, for the median of a layer's matrices of that kind with a whisker to the
largest. Names are read as dotted paths: the first number is the layer, every later number is an expert.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from burnish.core.page import BarRows
from burnish.core.page.numbers import TIMES, significant
from burnish.report.figures import is_number
from burnish.report.protocols import show

WEIGHT_ERROR = "relative_error"
_VALUE_NAMES = (WEIGHT_ERROR, "error", "mse", "proxy", "proxy_loss")
_LABELS = {WEIGHT_ERROR: "weight error"}
_MAX_ROLES = 24
MAX_TABLE_ROWS = 150
_MAX_COLUMNS = 8


@dataclass(frozen=True)
class LayerView:
    """What the page shows of one `layers` table; `value_name` is the column that is drawn."""

    node: str
    value_name: str
    bars: BarRows
    columns: list[str]
    rows: list[list[str]]
    num_left_out: int


def view(node: str, rows: Sequence[dict[str, Any]]) -> LayerView | None:
    """Bars and a table with the worst first, or None where no column holds numbers."""
    columns = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))[
        :_MAX_COLUMNS
    ]
    numeric = [name for name in columns if any(is_number(row.get(name)) for row in rows)]
    value_name = next((name for name in _VALUE_NAMES if name in numeric), numeric[0] if numeric else None)
    if value_name is None:
        return None
    ranked = sorted((row for row in rows if is_number(row.get(value_name))), key=lambda row: -row[value_name])
    label = _LABELS.get(value_name, value_name.replace("_", " "))
    note = (
        f"{len(ranked):,} {'matrix' if len(ranked) == 1 else 'matrices'}, median {label} "
        f"{significant(statistics.median(row[value_name] for row in ranked))}, largest "
        f"{significant(ranked[0][value_name])} in {ranked[0].get('name', 'an unnamed one')}"
    )
    shown = ranked[:MAX_TABLE_ROWS]
    groups = _groups([row for row in rows if is_number(row.get(value_name))], value_name)
    return LayerView(
        node=node,
        value_name=value_name,
        bars=BarRows(node, note, groups, value=label, place="layer"),
        columns=columns,
        rows=[[cell(row.get(name)) for name in columns] for row in shown],
        num_left_out=len(ranked) - len(shown),
    )


def split_name(name: str) -> tuple[int | None, str]:
    """(layer, role) of a matrix: "model.layers.12.mlp.experts.7.w1" is layer 12, role "mlp.experts.*.w1"."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return None, name.removesuffix(".weight")
    first = numbers[0]
    role = ["*" if part.isdigit() else part for part in parts[first + 1 :]] or parts[:first]
    return int(parts[first]), ".".join(role).removesuffix(".weight")


def _groups(rows: Sequence[dict[str, Any]], value_name: str) -> dict[str, dict[int, list[float]]]:
    groups: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        layer, role = split_name(str(row.get("name", "")))
        groups.setdefault(role, {}).setdefault(layer or 0, []).append(float(row[value_name]))
    if len(groups) > _MAX_ROLES:
        largest = sorted(groups, key=lambda role: -max(max(values) for values in groups[role].values()))
        groups = {role: groups[role] for role in largest[:_MAX_ROLES]}
    return groups


def cell(value: Any) -> str:
    """A value of a table of rows."""
    if value is None:
        return ""
    if isinstance(value, float):
        return significant(value, 4)
    if isinstance(value, list | tuple):
        return f" {TIMES} ".join(cell(entry) for entry in value)
    return show(value)
