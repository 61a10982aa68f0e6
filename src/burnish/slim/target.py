"""From a wish ("20 %", "24GB") to widths, from configurations alone.

The width of an expert and the number of experts each enter the parameter count linearly, so four counts on the meta
device decide the rest. Counts are those of the real class, not of a formula.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from burnish.arch import Architecture, Experts, describe
from burnish.core.checkpoint import plan_config
from burnish.core.errors import SettingsError
from burnish.core.progress import byte_count
from burnish.core.target import parse_target

if TYPE_CHECKING:
    from burnish.core.kinds import Plan

BYTES_PER_PARAMETER = 2
"""A target in bytes is one in bfloat16, weights only."""

CLOSE = 0.98
"""Share of a target that one size alone must reach; else the other one is cut as well."""


def experts_of(config: Any) -> Experts:
    """The facts on routed experts.

    Raises:
        SettingsError: the model has none.
    """
    experts = describe(config).experts
    if experts is None:
        raise SettingsError(
            f"slim makes mixtures of experts smaller, but a {config.model_type} model has no experts",
            fix="quantize makes dense models smaller, and so does method depth; convert upcycle makes mixtures of them",
        )
    return experts


def allowed_parameters(target: str, before: Plan) -> int:
    """Parameters that a target allows.

    Args:
        target: "20%" of the parameters, their number ("7.65B"), or bytes of weights in bfloat16 ("24GB", "22.4GiB").
        before: the model as it is.

    Raises:
        SettingsError: none of them.
    """
    wanted = parse_target(target, takes=("%", "bytes", "parameters"), whole="the parameters")
    if wanted.unit == "%":
        return wanted.share(before.num_parameters)
    return math.floor(wanted.amount / (BYTES_PER_PARAMETER if wanted.unit == "bytes" else 1))


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
    text = new.get_text_config()
    if width is not None:
        _check_below("width", width, experts.intermediate_size, config)
        if experts.shares_width and width != experts.intermediate_size:
            raise SettingsError(
                f"a {config.model_type} model has one width for its experts and for the MLPs of its other layers, so "
                "its experts cannot be narrowed alone",
                where="width",
                fix="use method: drop, which removes whole experts",
            )
        setattr(text, facts.key("moe_intermediate_size"), width)
    if num_experts is not None:
        _check_below("num_experts", num_experts, experts.num_experts, config)
        groups = router_groups(config)
        allowed = fewest_experts(config)
        if num_experts < allowed or num_experts % groups:
            inside = f" and divide by its {groups} groups of experts" if groups > 1 else ""
            raise SettingsError(
                f"num_experts is {num_experts}, but it must be at least {allowed} (the router chooses {experts.top_k})"
                f"{inside}"
            )
        setattr(text, facts.key("num_experts"), num_experts)
    if num_key_value_heads is not None:
        check_groups(facts, num_key_value_heads)
        queries = facts.num_attention_heads // facts.num_key_value_heads
        text.head_dim = facts.head_dim  # otherwise it would follow from the smaller number of heads
        setattr(text, facts.key("num_key_value_heads"), num_key_value_heads)
        setattr(text, facts.key("num_attention_heads"), queries * num_key_value_heads)
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
    if facts.row.same_heads:
        raise SettingsError(
            f"attention groups cannot be cut: {facts.row.same_heads} have as many heads",
            where=facts.model_type,
            fix="leave num_key_value_heads out",
        )
    _check_below("num_key_value_heads", num_key_value_heads, facts.num_key_value_heads, facts.config)


def _check_below(name: str, value: int, present: int, config: Any) -> None:
    if not 1 <= value <= present:
        raise SettingsError(f"{name} is {value}, but the {config.model_type} model has {present}, and slim only cuts")


def router_groups(config: Any) -> int:
    """Groups of experts that the router ranks first (DeepSeek), 1 for all others."""
    routing, text = experts_of(config).routing, config.get_text_config()
    ranked = routing == "sigmoid_groups" or (routing == "softmax_groups" and text.topk_method != "greedy")
    return text.n_group or 1 if ranked else 1


def fewest_experts(config: Any) -> int:
    """Experts that a layer must keep: those that the router chooses, and two of each group, which it ranks by two."""
    groups = router_groups(config)
    return max(experts_of(config).top_k, 2 * groups if groups > 1 else 1)


@dataclass(frozen=True)
class FittedSizes:
    """What a target becomes.

    Attributes:
        width: of each expert.
        num_experts: in each layer.
        num_parameters: of the whole model.
        next_larger: parameters of the smallest choice above the target.
    """

    width: int
    num_experts: int
    num_parameters: int
    next_larger: int


def fit(
    config: Any,
    allowed: int,
    *,
    by: Literal["width", "num_experts"],
    multiple: int,
    num_key_value_heads: int | None,
) -> FittedSizes:
    """The sizes with the most parameters, at most `allowed`.

    What `by` names shrinks. Where it comes in steps that leave more than 2 % of the target unused, the other one
    shrinks too, by as little as brings the model within 2 %: 20 % of Qwen3-30B-A3B are experts of 128 in place of 768,
    and 120 of them in place of 128; experts of 64 alone would be 13 %.

    Args:
        config: of the model as it is.
        allowed: parameters.
        by: what shrinks first.
        multiple: of which a width is taken; a number of experts is a multiple of the router's groups.
        num_key_value_heads: as it will be, None to keep it.

    Raises:
        SettingsError: the model fits already, or even the smallest choice does not.
    """
    experts, groups = experts_of(config), router_groups(config)
    fewest = groups * math.ceil(fewest_experts(config) / groups)
    widths = [*range(multiple, experts.intermediate_size, multiple), experts.intermediate_size]
    if by == "num_experts" and experts.shares_width:
        widths = widths[-1:]
    numbers = [*range(fewest, experts.num_experts, groups), experts.num_experts]
    if len(widths if by == "width" else numbers) == 1:
        none = f"multiple of {multiple}" if by == "width" else "number that the router can choose from"
        finer = by == "width" and multiple > 8 and experts.intermediate_size > 8
        raise SettingsError(
            f"there is no smaller {by} than {(widths if by == 'width' else numbers)[0]}, {none}",
            fix="use --multiple 8" if finer else f"use --method {'drop' if by == 'width' else 'narrow'}",
        )
    count = _counting(config, widths, numbers, num_key_value_heads)
    full, smallest = count(widths[-1], numbers[-1]), count(widths[0], numbers[0])
    if full <= allowed:
        raise SettingsError(
            f"the model has {full:,} parameters and the target allows {allowed:,}, so there is nothing to cut",
            fix="choose a smaller target",
        )
    if smallest > allowed:
        size = byte_count(BYTES_PER_PARAMETER * smallest)
        groups_too = ", cut attention groups too (num_key_value_heads)" if cuts_groups(config) else ""
        raise SettingsError(
            f"the target allows {allowed:,} parameters, but with experts of {widths[0]}, and {numbers[0]} of them, "
            f"{smallest:,} are left ({size} in bfloat16)",
            fix=f"choose a larger target{groups_too}, or quantize afterwards",
        )
    if by == "width":
        return _nearest(widths, numbers, allowed, count, lambda width, number: (width, number))
    return _nearest(numbers, widths, allowed, count, lambda number, width: (width, number))


def widest(config: Any, allowed: int, num_experts: int, multiple: int, num_key_value_heads: int | None) -> int:
    """The largest width, a multiple, of that many experts with at most `allowed` parameters; 0 if none fits.

    Nor if what fits leaves more than 2 % unused, or no expert would be narrower.
    """
    widths = [*range(multiple, experts_of(config).intermediate_size, multiple)]
    if not widths:
        return 0
    count = _counting(config, widths, [num_experts], num_key_value_heads)
    fitting = bisect_right(widths, allowed, key=lambda width: count(width, num_experts))
    close = fitting and count(widths[fitting - 1], num_experts) >= CLOSE * allowed
    return widths[fitting - 1] if close else 0


def _nearest(
    values: list[int],
    others: list[int],
    allowed: int,
    count: Callable[[int, int], int],
    placed: Callable[[int, int], tuple[int, int]],
) -> FittedSizes:
    """The choice of `fit`.

    Args:
        values, others: ascending, of what shrinks first and of what shrinks where need be.
        allowed: parameters.
        count: (width, number of experts) -> parameters.
        placed: a value and another, as (width, number of experts).
    """

    def sized(value: int, other: int) -> int:
        return count(*placed(value, other))

    choices, above = [], []
    for value in values:
        fitting = bisect_right(others, allowed, key=lambda other, value=value: sized(value, other))
        if fitting:
            choices.append((value, others[fitting - 1]))
        if fitting < len(others):
            above.append(sized(value, others[fitting]))
    within = [choice for choice in choices if sized(*choice) >= CLOSE * allowed]
    if within:
        chosen = max(within, key=lambda choice: (choice[1], choice[0]))
    else:
        chosen = max(choices, key=lambda choice: sized(*choice))
    return FittedSizes(*placed(*chosen), num_parameters=sized(*chosen), next_larger=min(above))


def _counting(
    config: Any, widths: list[int], numbers: list[int], num_key_value_heads: int | None
) -> Callable[[int, int], int]:
    """(width, number of experts) -> parameters, of the real class: a + b w + c n + d w n, from its corners."""
    ends = [(sizes[0], sizes[-1]) for sizes in (widths, numbers)]
    corners = {
        (width, number): plan_config(
            resized(config, width=width, num_experts=number, num_key_value_heads=num_key_value_heads)
        ).num_parameters
        for width in ends[0]
        for number in ends[1]
    }

    def count(width: int, number: int) -> int:
        low, high = (_between(width, ends[0], [corners[end, one] for end in ends[0]]) for one in ends[1])
        return _between(number, ends[1], [low, high])

    return count


def _between(value: int, ends: tuple[int, int], counts: list[int]) -> int:
    """On the line through two counts, exactly."""
    if ends[0] == ends[1]:
        return counts[0]
    return counts[0] + (value - ends[0]) * (counts[1] - counts[0]) // (ends[1] - ends[0])


def cuts_groups(config: Any) -> bool:
    """Whether attention groups can be cut."""
    facts = describe(config)
    fixed = facts.attention == "mla" or facts.qk_norm == "all_heads" or facts.row.same_heads
    return not fixed and facts.num_key_value_heads > 1
