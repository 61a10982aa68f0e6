"""What a token uses of a mixture of experts, by transformers' names, which model types without a row have as well."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from burnish.core.kinds import Plan

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def num_experts(config: PretrainedConfig) -> int | None:
    """Routed experts of a layer, None where there are none."""
    text = config.get_text_config()
    counts = (getattr(text, key, None) for key in ("num_local_experts", "num_experts", "n_routed_experts"))
    return next((count for count in counts if count), None)


def share_used(config: PretrainedConfig) -> float:
    """Routed experts that a token uses over those of a layer; 1 for a network without experts."""
    used, count = getattr(config.get_text_config(), "num_experts_per_tok", None), num_experts(config)
    return used / count if used and count else 1.0


def is_routed(name: str) -> bool:
    """Whether a parameter of this name, in memory or on disk, is of routed experts."""
    return ".experts." in name


def num_active_parameters(plan: Plan) -> int:
    """Parameters that one token uses: all but those of the experts that it is not sent to."""
    routed = sum(prod(shape) for name, shape in plan.shapes.items() if is_routed(name))
    return plan.num_parameters - round(routed * (1 - share_used(plan.config))) if routed else plan.num_parameters
