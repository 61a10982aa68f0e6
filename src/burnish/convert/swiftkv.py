"""SwiftKV: later layers take keys and values from the output of an earlier one, so that a prompt does not run them.

With L layers of N linear weights each, of which k are projections to keys and values, a token of a prompt needs

    (l N + (L - l) k) / (L N)

of the products of the original's layers: those of the first l and, behind them, what fills the cache. The last token
alone runs all. Weights are those of the original, which was trained on another input of these projections, so the
conversion costs quality and is the start of a distillation. The forward pass itself is
`burnish.core.checkpoint.modeling_swiftkv`, which lies beside the weights of what is made.

Source: SwiftKV (2024, arXiv:2410.03960).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from burnish.arch import describe
from burnish.convert.own_network import check_residuals, own_config, own_network, own_plan
from burnish.core.checkpoint.own_classes import SWIFTKV
from burnish.core.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from burnish.convert.stage import SwiftKV
    from burnish.core.kinds import Plan

TYPES = (
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "smollm3",
    "cwm",
    "granite",
    "helium",
    "seed_oss",
    "ernie4_5",
    "arcee",
    "gemma",
)
"""Whose attention `modeling_swiftkv` computes; tests compare it with each of them."""


def swiftkv_config(config: PretrainedConfig, from_layer: int | None) -> Any:
    """The configuration in which layers behind the first `from_layer` have keys and values of its output.

    Args:
        config: of the source.
        from_layer: the number of that layer, from 1; None for half of them.

    Raises:
        SettingsError: there is no such layer, or another is not behind it; or no such form for this type of model.
    """
    what = f"there is no SwiftKV for a {config.model_type} model"
    if config.model_type not in TYPES:
        raise SettingsError(f"{what}, only for {', '.join(TYPES)}")
    check_residuals(config, what)
    num_layers = describe(config).num_layers
    number = max(1, num_layers // 2) if from_layer is None else from_layer
    if number >= num_layers:
        raise SettingsError(
            f"from_layer is {number}, but the model has {num_layers} layers, and one at least must be behind it",
            where="from_layer",
            fix=f"name a layer from 1 to {num_layers - 1}" if num_layers > 1 else "use a model of several layers",
        )
    return own_config(config, SWIFTKV, num_key_value_layers=number)


def swiftkv(module: PreTrainedModel, from_layer: int | None) -> Any:
    """The network whose later layers have keys and values of that layer's output, sharing no memory with the module."""
    return own_network(module, swiftkv_config(module.config, from_layer))


def prefill_share(shapes: Mapping[str, Sequence[int]], from_layer: int) -> float:
    """Products of linear layers that a token of a prompt needs, as a share of those of all decoder layers.

    Args:
        shapes: {name: shape} of the parameters.
        from_layer: the first so many layers are run.
    """
    needed = whole = 0
    for name, shape in shapes.items():
        found = re.search(r"\blayers\.(\d+)\.(.+)\.weight$", name)
        if found is None or len(shape) < 2:
            continue
        whole += math.prod(shape)
        if int(found[1]) < from_layer or found[2] in ("self_attn.k_proj", "self_attn.v_proj"):
            needed += math.prod(shape)
    return needed / whole


def plan(settings: SwiftKV, before: Plan) -> Plan:
    """What is made is of a class of its own, with the sizes of the source."""
    config = swiftkv_config(before.config, settings.from_layer)
    number, share = config.num_key_value_layers, prefill_share(before.shapes, config.num_key_value_layers)
    return own_plan(
        before,
        config,
        custom_code=settings.custom_code,
        peak_memory_bytes=2 * before.num_bytes + 500_000_000,
        note=f"keys and values behind layer {number} are of its output, so that a prompt needs {share:.0%} of the "
        "layers' products",
    )
