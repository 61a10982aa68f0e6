"""What sparse attention read and lost, over the prompts of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from burnish.core.statistics import interval

COSTS, LAYERS = "sparse_attention", "sparse_layers"
"""Names of the ledger's tables."""
MEANS = ("density", "mass_recall", "output_error", "kv_bytes", "index_bytes", "dense_bytes")


def cost_row(costs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the prompts of a task that had a query to answer sparsely; {} where none had.

    `read_share` is keys, values and what finds them over all keys and values.
    """
    asked = [cost for cost in costs if cost.get("queries")]
    if not asked:
        return {}
    row: dict[str, Any] = {"queries": float(np.mean([cost["queries"] for cost in asked]))}
    row |= {name: float(np.mean([cost[name] for cost in asked])) for name in MEANS}
    shares = np.array([(cost["kv_bytes"] + cost["index_bytes"]) / cost["dense_bytes"] for cost in asked])
    found = interval(np.array([cost["density"] for cost in asked]))
    if len(asked) > 1:
        row |= {"density_low": found.low, "density_high": found.high}
    return row | {"read_share": float(shares.mean())}


def layer_rows(costs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same of every layer."""
    asked = [cost["layers"] for cost in costs if cost.get("queries")]
    if not asked:
        return []
    means = {name: np.mean([layers[name] for layers in asked], axis=0).tolist() for name in asked[0]}
    return [
        {"layer": layer} | {name: values[layer] for name, values in means.items()}
        for layer in range(len(next(iter(means.values()))))
    ]
