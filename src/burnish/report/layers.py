"""Error per weight matrix: one row of bars per kind of matrix, one bar per layer, all on one scale.

A bar stands for one matrix, or, for experts, for the median of a layer's matrices of that kind with a whisker to the
largest. Names are read as dotted paths: the first number is the layer, every later number is an expert.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from burnish.report.figures import is_number
from burnish.report.numbers import TIMES, significant

_VALUE_NAMES = ("relative_error", "error", "mse", "proxy", "proxy_loss")
_WIDTHS = {"wide": 720, "narrow": 344}
_ROW, _LABEL, _BARS = 56, 16, 30
_MAX_ROLES = 24
MAX_TABLE_ROWS = 150
_MAX_COLUMNS = 8


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    whisker: float | None
    title: str


@dataclass(frozen=True)
class RoleRow:
    """All layers of one kind of matrix."""

    role: str
    y: float
    worst: str
    bars: list[Bar]


@dataclass(frozen=True)
class LayerChart:
    variant: str
    width: int
    height: int
    rows: list[RoleRow]


@dataclass(frozen=True)
class LayerView:
    """What the page shows of one `layers` table."""

    node: str
    value_name: str
    summary: str
    charts: list[LayerChart]
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
    known = [row for row in rows if is_number(row.get(value_name))]
    ranked = sorted(known, key=lambda row: -row[value_name])
    shown = ranked[:MAX_TABLE_ROWS]
    typical = statistics.median(row[value_name] for row in known)
    worst = ranked[0]
    label = value_name.replace("_", " ")
    summary = (
        f"{len(known):,} {'matrix' if len(known) == 1 else 'matrices'}, median {label} {significant(typical)}, "
        f"largest {significant(worst[value_name])} in {worst.get('name', 'an unnamed one')}"
    )
    groups = _groups(known, value_name)
    return LayerView(
        node=node,
        value_name=label,
        summary=summary,
        charts=[_chart(groups, variant, label) for variant in _WIDTHS] if groups else [],
        columns=columns,
        rows=[[cell(row.get(name)) for name in columns] for row in shown],
        num_left_out=len(known) - len(shown),
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


def _chart(groups: dict[str, dict[int, list[float]]], variant: str, label: str) -> LayerChart:
    width = _WIDTHS[variant]
    num_layers = 1 + max(layer for layers in groups.values() for layer in layers)
    top = max(max(values) for layers in groups.values() for values in layers.values()) or 1.0
    pitch = (width - 8) / max(num_layers, 8)
    rows = []
    for index, (role, layers) in enumerate(groups.items()):
        base = index * _ROW + _LABEL + _BARS + 4
        bars = []
        for layer, values in sorted(layers.items()):
            middle = statistics.median(values)
            height = max(1.0, _BARS * max(middle, 0.0) / top)
            whisker = round(base - _BARS * max(values) / top, 1) if len(values) > 1 else None
            title = f"{role}, layer {layer}: {label} {significant(middle)}"
            title += f" (median of {len(values)}, largest {significant(max(values))})" if len(values) > 1 else ""
            x = 4 + layer * pitch
            bars.append(
                Bar(round(x, 1), round(base - height, 1), round(pitch * 0.78, 1), round(height, 1), whisker, title)
            )
        worst = max(layers, key=lambda layer: max(layers[layer]))
        text = f"up to {significant(max(layers[worst]))}"
        text += f", layer {worst}" if len(layers) > 1 else ""
        rows.append(RoleRow(role, base, text, bars))
    return LayerChart(variant, width, math.ceil(len(rows) * _ROW), rows)


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return significant(value, 4)
    if isinstance(value, list | tuple):
        return f" {TIMES} ".join(cell(entry) for entry in value)
    return str(value)
