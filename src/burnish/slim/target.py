"""From a wish ("20 %", "24GB") to widths, from configurations alone.

The width of an expert and the number of experts enter the parameter count linearly, so two counts on the meta device
decide the rest. Counts are those of the real class, not of a formula.
"""

from __future__ import annotations

import copy
import math
import re
from typing import TYPE_CHECKING, Any, Literal

from burnish.arch import Architecture, Experts, describe
from burnish.core.checkpoint import plan_config
from burnish.core.errors import SettingsError
from burnish.core.progress import byte_count

if TYPE_CHECKING:
    from burnish.core.kinds import Plan

BYTES_PER_PARAMETER = 2
"""A target in bytes is one in bfloat16, weights only."""

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def experts_of(config: Any) -> Experts:
    """The facts on routed experts.

    Raises:
        SettingsError: the model has none.
    """
    experts = describe(config).experts
    if experts is None:
        raise SettingsError(
            f"slim makes mixtures of experts smaller, but a {config.model_type} model has no experts",
            fix="quantize makes dense models smaller; convert upcycle makes a mixture of a dense Llama",
        )
    return experts


def parse_target(target: str, before: Plan) -> int:
    """Parameters that a target allows.

    Args:
        target: "20%" of the parameters, or bytes of weights in bfloat16: "24GB", "22.4GiB".
        before: the model as it is.

    Raises:
        SettingsError: neither.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%|[KMGT]i?B)\s*", target, flags=re.IGNORECASE)
    unit = match[2].upper() if match else ""
    if match is None or (unit != "%" and unit not in UNITS):
        raise SettingsError(f"target is {target!r}", fix="give a share of the parameters (20%) or a size (24GB, 800MB)")
    if unit == "%":
        return math.floor(before.num_parameters * float(match[1]) / 100)
    return math.floor(float(match[1]) * UNITS[unit] / BYTES_PER_PARAMETER)


def resized(
    config: Any,
    *,
    width: int | None = None,
    num_experts: int | None = None,
    num_key_value_heads: int | None = None,
) -> Any:
    """A copy of the configuration with other expert widths, numbers of experts or attention groups.

    A shared expert whose width follows from `width` (DeepSeek) changes with it; one with a key of its own stays.

    Raises:
        SettingsError: a value that is not below the present one, or that the architecture cannot take.
    """
    facts, experts = describe(config), experts_of(config)
    new = copy.deepcopy(config)
    if width is not None:
        _check_below("width", width, experts.intermediate_size, config)
        setattr(new, facts.key("moe_intermediate_size"), width)
    if num_experts is not None:
        _check_below("num_experts", num_experts, experts.num_experts, config)
        groups = router_groups(config)
        allowed = experts.top_k if groups == 1 else max(experts.top_k, 2 * groups)  # the router ranks groups by top 2
        if num_experts < allowed or num_experts % groups:
            inside = f" and divide by its {groups} groups of experts" if groups > 1 else ""
            raise SettingsError(
                f"num_experts is {num_experts}, but it must be at least {allowed} (the router chooses {experts.top_k})"
                f"{inside}"
            )
        setattr(new, facts.key("num_experts"), num_experts)
    if num_key_value_heads is not None:
        check_groups(facts, num_key_value_heads)
        queries = facts.num_attention_heads // facts.num_key_value_heads
        new.head_dim = facts.head_dim  # otherwise it would follow from the smaller number of heads
        setattr(new, facts.key("num_key_value_heads"), num_key_value_heads)
        setattr(new, facts.key("num_attention_heads"), queries * num_key_value_heads)
    return new


def check_groups(facts: Architecture, num_key_value_heads: int) -> None:
    """Refuses to cut attention groups where that would change the others."""
    if facts.attention == "mla":
        raise SettingsError(
            "attention groups cannot be cut: with latent attention there are no key-value heads",
            where=facts.model_type,
            fix="leave num_key_value_heads out",
        )
    if facts.qk_norm == "all_heads":
        raise SettingsError(
            "attention groups cannot be cut: its norm of queries and keys spans all heads, so cutting one changes the "
            "others",
            where=facts.model_type,
            fix="leave num_key_value_heads out",
        )
    _check_below("num_key_value_heads", num_key_value_heads, facts.num_key_value_heads, facts.config)


def _check_below(name: str, value: int, present: int, config: Any) -> None:
    if not 1 <= value <= present:
        raise SettingsError(f"{name} is {value}, but the {config.model_type} model has {present}, and slim only cuts")


def router_groups(config: Any) -> int:
    """Groups of experts that the router ranks first (DeepSeek), 1 for all others."""
    routing = experts_of(config).routing
    return config.n_group or 1 if routing in ("sigmoid_groups", "softmax_groups") else 1


def fit(
    config: Any, allowed: int, *, by: Literal["width", "num_experts"], multiple: int, num_key_value_heads: int | None
) -> int:
    """The largest width, or number of experts, with at most `allowed` parameters in all.

    Args:
        config: of the model as it is.
        allowed: parameters.
        by: what shrinks.
        multiple: of which a width is taken; a number of experts is a multiple of the router's groups.
        num_key_value_heads: as it will be, None to keep it.

    Raises:
        SettingsError: the model fits already, or even the smallest choice does not.
    """
    experts = experts_of(config)
    present = experts.intermediate_size if by == "width" else experts.num_experts
    step = multiple if by == "width" else router_groups(config)
    least = step if by == "width" else max(experts.top_k, 2 * step if step > 1 else 1)
    least = step * math.ceil(least / step)
    if step >= present:
        raise SettingsError(
            f"{by} is {present}, so there is no smaller multiple of {step}",
            fix="lower multiple" if by == "width" else None,
        )

    def count(value: int) -> int:
        return plan_config(resized(config, num_key_value_heads=num_key_value_heads, **{by: value})).num_parameters

    full = count(present)
    per_step = (full - count(present - step)) // step
    fixed = full - present * per_step
    if full <= allowed:
        raise SettingsError(
            f"the model has {full:,} parameters and the target allows {allowed:,}, so there is nothing to cut",
            fix="choose a smaller target",
        )
    value = step * ((allowed - fixed) // per_step // step)
    if value < least:
        smallest = fixed + least * per_step
        size = byte_count(BYTES_PER_PARAMETER * smallest)
        raise SettingsError(
            f"the target allows {allowed:,} parameters, but {fixed:,} are not in experts and the smallest {by} that "
            f"works is {least}, with {smallest:,} parameters ({size} in bfloat16)",
            fix="choose a larger target, cut attention groups too (num_key_value_heads), or quantize afterwards",
        )
    return value
