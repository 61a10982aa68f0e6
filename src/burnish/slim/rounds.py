"""Cutting in rounds, each followed by distillation from the first model, as nodes of a recipe.

    f_i = f_0 (f_T / f_0)^(i / T),  i = 1 .. T      widths after each cut, rounded to `multiple`

    cut 1, distil, cut 2, distil ...                every cut but the first is scored on the divergence from the first
                                                    model, which is the teacher throughout

One shot is the case of one round. Each cut is a `slim` and each recovery a `distill` like any other: with an optimizer
state and a learning rate schedule of its own, and with whatever of `distill` the setting `recovery` names.

Source: SlimMoE (2025, arXiv:2506.18349), which gives two or three rounds; the geometric schedule is reconstructed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from burnish.arch import describe
from burnish.core.errors import SettingsError
from burnish.core.recipe import Node
from burnish.distill.stage import Distill
from burnish.slim.maths.keep import geometric_widths, ratio_widths
from burnish.slim.sizes import new_config
from burnish.slim.target import experts_of, router_groups

if TYPE_CHECKING:
    from burnish.core.kinds import Plan
    from burnish.slim.stage import Slim

OF_ROUNDS = ("rounds", "ratios", "data", "budgets", "recovery")
"""Settings of `Slim` that say how to go about it in rounds; no single cut has them."""

SIZES = ("width", "num_experts", "num_key_value_heads")

FIXED = ("teacher", "data", "seed", "device")
"""Settings of the recoveries that follow from those of the cut."""


def expand(settings: Slim, node: Node, before: Plan) -> tuple[Node, ...]:
    """Two nodes for each round.

    Args:
        settings: with `rounds`.
        node: as written in the recipe; the last recovery takes its name.
        before: the plan of the model to cut.

    Raises:
        SettingsError: sizes that leave no room for that many rounds, or settings that `distill` does not have.
    """
    assert settings.rounds is not None, "asked for only where there are rounds"
    sizes = _sizes(settings, before)
    common = settings.model_dump(mode="json", exclude={*OF_ROUNDS, "target", *SIZES})
    nodes: list[Node] = []
    parent = node.parent
    for number in range(1, settings.rounds + 1):
        last = number == settings.rounds
        labels = {"labels": "teacher", "teacher": node.parent} if number > 1 and _by_gradients(settings) else {}
        size = {name: through[number - 1] for name, through in sizes.items()}
        cut = Node(f"{node.name}.cut{number}", "slim", parent, common | size | labels, where=node.where)
        recovered = Node(
            node.name if last else f"{node.name}.distill{number}",
            "distill",
            cut.name,
            _recovery(settings, number) | {"teacher": node.parent},
            node.processes,
            node.where,
        )
        nodes += [cut, recovered]
        parent = recovered.name
    return tuple(nodes)


def _sizes(settings: Slim, before: Plan) -> dict[str, list[int]]:
    """{setting: its values after each cut}, of what changes."""
    assert settings.rounds is not None, "asked for only where there are rounds"
    config = new_config(settings, before)
    was, now = experts_of(before.config), experts_of(config)
    if settings.method == "split":  # in one round
        groups = describe(config).num_key_value_heads
        of_pieces = {"num_experts": [now.num_experts], "width": [now.intermediate_size]}
        return of_pieces | ({"num_key_value_heads": [groups]} if settings.num_key_value_heads else {})
    by = "width" if settings.method == "narrow" else "num_experts"
    ends = {
        "width": (was.intermediate_size, now.intermediate_size, settings.multiple * settings.tp),
        "num_experts": (was.num_experts, now.num_experts, router_groups(config)),
        "num_key_value_heads": (*(describe(one).num_key_value_heads for one in (before.config, config)), settings.tp),
    }
    sizes = {}
    for name, (first, final, step) in ends.items():
        if first == final:
            continue
        if name != by or settings.ratios is None:
            sizes[name] = geometric_widths(first, final, settings.rounds, step)
        else:
            sizes[name] = ratio_widths(first, final, settings.ratios, step)
        if name == by and sorted({first, *sizes[name]}, reverse=True) != [first, *sizes[name]]:
            what = "width" if by == "width" else "number of experts"
            raise SettingsError(
                f"{settings.rounds} cuts from {first} to {final} would go through {', '.join(map(str, sizes[name]))}, "
                f"but each must leave a smaller {what}, a multiple of {step}",
                fix="use fewer rounds, other ratios, or a smaller multiple",
            )
    return sizes


def _recovery(settings: Slim, number: int) -> dict[str, Any]:
    """Settings of the recovery after cut `number` (from 1), without its teacher."""
    given = settings.recovery
    for key in FIXED:
        if key in given:
            raise SettingsError(f"recovery.{key} follows from the setting {key!r} of slim", fix="leave it out there")
    distill = Distill.parse(given, where="recovery")
    fixed = {"data": settings.data, "seed": settings.seed, "device": settings.device}
    if settings.budgets is None:
        return given | fixed
    if distill.steps is not None or "epochs" in given:
        raise SettingsError("budgets and recovery both say how long to distil", fix="leave steps and epochs out there")
    tokens = settings.budgets[0 if len(settings.budgets) == 1 else number - 1]
    return given | fixed | {"steps": math.ceil(tokens / (distill.batch * distill.context))}


def _by_gradients(settings: Slim) -> bool:
    from burnish.slim.maths.scores import SCORES

    return settings.method == "narrow" and SCORES[settings.score_name].needs == "gradients"
